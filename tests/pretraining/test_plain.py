"""``streamkd.meta_train``: only PyTorch."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamkd
from streamkd.errors import ConfigError
from streamkd.gates.gate import FixedGate, FixedOptions
from streamkd.pretraining.plain import MetaTrained, _pair, meta_train

Batches = list[tuple[Tensor, Tensor]]


def _records(count: int, seed: int) -> Batches:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 5, generator=torch.Generator().manual_seed(7))
    drawn = []
    for _ in range(count):
        y = torch.randint(3, (8,), generator=g)
        drawn.append((centres[y] + 0.7 * torch.randn(8, 5, generator=g), y))
    return drawn


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def _right(x: Tensor) -> Tensor:
    centres = torch.randn(3, 5, generator=torch.Generator().manual_seed(7))
    return -2 * torch.cdist(x, centres) ** 2


def _wrong(x: Tensor) -> Tensor:
    return _right(x).roll(1, 1)


def _train(**settings: object) -> tuple[nn.Module, MetaTrained]:
    model = _network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    return model, meta_train(model, {"right": _right, "wrong": _wrong}, optimizer, _records(40, 1), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("held_out", [False, True])
def test_it_trains_the_model_and_finds_the_good_teacher(held_out: bool) -> None:
    """Prequential or with a query: the model is right on other records, and the wrong teacher has little weight."""
    model, trained = _train(query=_records(10, 2) if held_out else None)
    x, y = (torch.cat(part) for part in zip(*_records(20, 3), strict=True))
    assert float((model.eval()(x).argmax(1) == y).float().mean()) > 0.8
    assert trained.weights["wrong"] < 0.1 < trained.weights["right"]
    assert sum(trained.weights.values()) == pytest.approx(1)
    assert trained.adaptations >= 7


class Named(nn.Module):
    """Two inputs by name, and an answer with its logits, as a library's model has them."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, tokens: Tensor, place: Tensor) -> Any:
        return SimpleNamespace(loss=None, logits=self.answer(torch.cat([tokens.float() / 1000, place], 1)))


def test_batches_by_name_and_answers_with_logits_train_alike() -> None:
    """Mappings of a whole-number and a real input, with a query, end in the numbers that pairs of the same end in."""

    def named(batches: Batches) -> list[dict[str, Tensor]]:
        return [{"tokens": (1000 * x[:, :2]).long(), "place": x[:, 2:], "labels": y} for x, y in batches]

    def joined(batches: Batches) -> Batches:
        parts = named(batches)
        return [(torch.cat([part["tokens"].float() / 1000, part["place"]], 1), part["labels"]) for part in parts]

    plain, by_name = _network(), Named(_network())
    found = [
        meta_train(model, teachers, torch.optim.Adam(model.parameters(), 0.01), form(_records(20, 1)), query=form(held))
        for held in [_records(5, 2)]
        for model, teachers, form in ((plain, [_right], joined), (by_name, [Named(_right)], named))
    ]
    assert found[0].losses == found[1].losses
    assert found[0].weights == found[1].weights
    adam = torch.optim.Adam(by_name.parameters())
    odd = {**named(_records(1, 1))[0], "place": torch.zeros(8, 4)}
    with pytest.raises(ConfigError, match=r"needed place \[batch, 3\] as in the first batch, got \[8, 4\]"):
        meta_train(by_name, [Named(_right)], adam, [*named(_records(1, 1)), odd])
    with pytest.raises(ConfigError, match="needed a mapping with tensors and `labels`, got x"):
        meta_train(by_name, [Named(_right)], adam, [{"x": torch.zeros(8, 4)}])


def test_labels_may_be_absent() -> None:
    """Rows of label -1 are taught by the teachers."""
    blind = [(x, torch.where(torch.arange(8) < 6, -1, y)) for x, y in _records(60, 1)]
    model = _network()
    meta_train(model, [_right], torch.optim.Adam(model.parameters(), 0.01), blind)
    x, y = (torch.cat(part) for part in zip(*_records(20, 3), strict=True))
    assert float((model.eval()(x).argmax(1) == y).float().mean()) > 0.8


def test_a_gate_of_one_s_own() -> None:
    """A gate without parameters is used as it is."""
    _, trained = _train(gate=FixedGate(FixedOptions(hard=0.5, teachers={"wrong": 0})))
    assert trained.weights == pytest.approx({"hard": 0.5, "right": 0.5, "wrong": 0.0})
    assert trained.adaptations == 0


def test_what_cannot_be_is_refused() -> None:
    """Several epochs without a query, no teacher, an optimiser that lacks a parameter or has no closed form."""
    model = _network()
    adam = torch.optim.Adam(model.parameters(), 0.01)
    with pytest.raises(ConfigError, match="not trained on"):
        _train(epochs=2)
    with pytest.raises(ConfigError, match="at least one teacher"):
        meta_train(model, [], adam, _records(1, 0))
    with pytest.raises(ConfigError, match=r"does not move '0\.weight'"):
        meta_train(model, [_right], torch.optim.Adam(model[3].parameters(), 0.01), _records(1, 0))
    with pytest.raises(ConfigError, match="SGD, Adam or AdamW"):
        meta_train(model, [_right], torch.optim.RMSprop(model.parameters()), _records(1, 0))


def _fails(x: Tensor) -> Tensor:
    raise RuntimeError("no such file")


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ({"hard": _right}, "'hard' is the label's name"),
        ({"narrow": lambda x: _right(x)[:, :2]}, r"teachers\.narrow.*needed logits \(8, 3\).*got \(8, 2\)"),
        ({"wide": lambda x: torch.cat([_right(x)] * 2, 1)}, r"got \(8, 6\)"),
        ({"broken": _fails}, "it fails on rows.*no such file"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(teachers: object, message: str) -> None:
    """Before the first step, by name: not left out while the model is trained without it."""
    model = _network()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        meta_train(model, teachers, torch.optim.Adam(model.parameters(), 0.01), _records(3, 0))  # type: ignore[arg-type]
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_teachers_may_be_modules_by_name() -> None:
    """A ``ModuleDict`` is heard like a mapping of callables."""
    model, teachers = _network(), nn.ModuleDict({"one": _network().eval(), "other": _network().eval()})
    trained = meta_train(model, teachers, torch.optim.Adam(model.parameters(), 0.01), _records(5, 1))
    assert set(trained.weights) == {"hard", "one", "other"}
    assert trained.weights["one"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y.float()), "labels .* as whole numbers"),
        (lambda x, y: (x, y + 3), "labels below 3.*got 3 to"),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_batches_that_are_none_are_refused(change: Callable[..., object], message: str, asked: bool) -> None:
    """Of the loader and of the query alike; a shorter integer type is as good as int64."""
    model, good = _network(), _records(2, 0)
    adam = torch.optim.Adam(model.parameters(), 0.01)
    bad: Any = [change(x, y) for x, y in good]
    with pytest.raises(ConfigError, match=message):
        meta_train(model, [_right], adam, good if asked else bad, query=bad if asked else None)
    meta_train(model, [_right], adam, [(x, y.int()) for x, y in good])


def test_a_tensor_is_no_batch() -> None:
    """``query=(x, y)`` iterates over two tensors: it is told from a list of pairs."""
    x, y = _records(1, 0)[0]
    with pytest.raises(ConfigError, match=r"query.*needed batches \(x, y\) of tensors, got a tensor \(8, 5\)"):
        [_pair(batch, "query") for batch in (x, y)]


@pytest.mark.parametrize(
    "batch",
    [{"x", "y"}, 3, None, "ab", (torch.zeros(8, 5), [1])],
    ids=["set", "number", "nothing", "text", "labels in a list"],
)
def test_other_batches_are_refused_in_words(batch: Any) -> None:
    """A set, a number, a list of labels."""
    model = _network()
    with pytest.raises(ConfigError, match=r"dataloader.*needed batches \(x, y\) of tensors"):
        meta_train(model, [_right], torch.optim.Adam(model.parameters(), 0.01), iter([batch]))


class _Wrapped(nn.Module):
    """A model that answers as those of some libraries do."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.wrap = _network(), wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.body(x))


@pytest.mark.parametrize("wrap", [lambda x: {"logits": x}, lambda x: (x,), lambda x: None, lambda x: x[0]])
def test_answers_that_are_objects_are_refused_in_words(wrap: Callable[[Tensor], object]) -> None:
    """Of the model and of a teacher alike, with the way out."""
    model = _Wrapped(wrap)
    with pytest.raises(
        ConfigError, match=re.compile(r"model: needed logits \[batch, classes\].*return model", re.DOTALL)
    ):
        meta_train(model, [_right], torch.optim.Adam(model.parameters(), 0.01), _records(1, 0))
    plain = _network()
    with pytest.raises(ConfigError, match=r"teachers\.odd: needed logits"):
        meta_train(plain, {"odd": model}, torch.optim.Adam(plain.parameters(), 0.01), _records(1, 0))  # type: ignore[dict-item]


def test_it_is_offered_by_the_package() -> None:
    """``streamkd.meta_train`` is it, imported late."""
    assert streamkd.meta_train is meta_train


def test_the_page_s_example_runs() -> None:
    """The block of the page that shows it runs as it stands."""
    page = (Path(__file__).parents[2] / "docs/how-to/a-gate-in-plain-pytorch.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict[str, object] = {}
    exec(compile(block, "a-gate-in-plain-pytorch.md", "exec"), names)
    trained = names["trained"]
    assert isinstance(trained, MetaTrained)
    assert trained.weights["good"] > trained.weights["wrong"]
