"""The adapter begins as the encoder is, is all that is learned of it, and a stopped run ends in the same bits."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from streamkd_text import encoder, reading
from streamkd_text.bert import Bert, Sizes, renamed
from streamkd_text.students import Adapter
from torch.func import functional_call

from streamkd import config
from streamkd.errors import PluginError
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.meta import jacobian
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.state.tree import pack, unpack
from streamkd.students import networks
from streamkd.wiring import open_source, schema_of

from .conftest import CONFIG, tensors

TEXTS = ["my card is lost", "", "what is the rate of the late transfer ?"]


def student_of(folder: Path, schema: RecordSchema, registry: Registry, **options: int) -> networks.Student:
    kind = registry.kind("students", "text-encoder")
    return networks.build(kind, kind.options(encoder=str(folder), ngrams=0, **options), schema, 2, seed=1)


def drawn(adapter: Adapter) -> Adapter:
    """As if it had learned."""
    torch.nn.init.normal_(adapter.up, generator=torch.Generator().manual_seed(0))
    return adapter


@pytest.mark.parametrize("layers", [1, 2])
def test_it_begins_as_the_encoder_is(folder: Path, layers: int) -> None:
    """Not one bit of a text's vector differs, and of several together none either but by rounding."""
    found = encoder.find(str(folder))
    adapter = Adapter(found, rank=3, layers=layers)
    for text in TEXTS:
        assert torch.equal(adapter([text]), found([text]))
    torch.testing.assert_close(adapter(TEXTS), found(TEXTS))
    drawn(adapter)
    assert (adapter(TEXTS) - found(TEXTS)).abs().max() > 1e-3
    assert adapter([]).shape == (0, 8)


@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_the_encoder_with_other_weights(folder: Path, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """W + 8/rank · up · down of query and value of the last layers, written into the published weights."""
    adapter = drawn(Adapter(encoder.find(str(folder)), rank=2, layers=layers))
    monkeypatch.setattr(encoder, "TOGETHER", 2)  # of three texts
    weights = tensors()
    with torch.no_grad():
        for number in range(layers):
            for part, name in enumerate(("query", "value")):
                at = f"encoder.layer.{2 - layers + number}.attention.self.{name}.weight"
                weights[at] = weights[at] + 4 * adapter.up[number, part] @ adapter.down[number, part]
        other = Bert(Sizes.of(CONFIG))
        other.load_state_dict(renamed(weights, 2))
        expected = [other(adapter._encoder._numbers(text)) for text in TEXTS]
    torch.testing.assert_close(adapter(TEXTS), torch.stack(expected))


def test_its_gradient_is_that_of_finite_differences() -> None:
    """In float64."""
    network = Bert(Sizes.of(CONFIG)).double().requires_grad_(False)
    network.load_state_dict(renamed(tensors(), 2))
    below = [network.below(torch.tensor(tokens), 2) for tokens in ([2, 5, 4, 9, 3], [2, 3])]
    g = torch.Generator().manual_seed(0)
    up, down = (torch.randn(2, 2, *of, dtype=torch.float64, generator=g, requires_grad=True) for of in ((8, 3), (3, 8)))

    def vectors(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return network.above(torch.cat(below), [5, 2], up @ down)

    assert torch.autograd.gradcheck(vectors, (up, down))


def test_the_gate_learns_through_it(folder: Path, schema: RecordSchema, registry: Registry) -> None:
    """The student's slope along a direction is what two passes beside it say."""
    student = student_of(folder, schema, registry, hidden=4, adapter=2)
    drawn(student.body.adapter)
    x = reading.rows_of(TEXTS, torch.zeros(1, 48, dtype=torch.int8))
    at = dict(student.named_parameters()) | dict(student.named_buffers())
    g = torch.Generator().manual_seed(0)
    u = [torch.randn(p.shape, generator=g) for p in student.parameters() if p.requires_grad]
    slope = jacobian.forward(student, x, at, u).logits[1]
    sides = [
        functional_call(
            student, at | {n: p + s * d for (n, p), d in zip(student.named_parameters(), u, strict=True)}, x
        )
        for s in (1e-3, -1e-3)
    ]
    torch.testing.assert_close(slope, ((sides[0] - sides[1]) / 2e-3).detach(), rtol=0.02, atol=0.02)


def test_it_alone_of_the_encoder_is_learned_and_kept(folder: Path, schema: RecordSchema, registry: Registry) -> None:
    """Two small tensors more; after a step the encoder has the weights that it had, and a copy has its own."""
    student = student_of(folder, schema, registry, hidden=4, adapter=2, layers=1)
    kept = {name: tuple(tensor.shape) for name, tensor in student.body.adapter.state_dict().items()}
    assert kept == {"down": (1, 2, 2, 8), "up": (1, 2, 8, 2)}
    frozen = weights_sha256(student.body._encoder._network.state_dict())
    x = reading.rows_of(TEXTS, torch.zeros(1, 48, dtype=torch.int8))
    before, twin = student(x).detach(), copy.deepcopy(student)
    optimizer = torch.optim.Adam(student.parameters(), 0.05)
    for _ in range(2):  # `down` has no gradient while `up` is 0
        torch.nn.functional.cross_entropy(student(x), torch.tensor([0, 1, 0])).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in student.body.adapter.parameters())
    assert weights_sha256(student.body._encoder._network.state_dict()) == frozen
    assert torch.equal(twin(x), before)


def test_more_layers_than_there_are_is_an_error(folder: Path) -> None:
    """It says how many the encoder has."""
    with pytest.raises(PluginError, match=r"at most the encoder's 2 layers to adapt, got 3(.|\n)*layers: 2"):
        Adapter(encoder.find(str(folder)), rank=2, layers=3)


def learner(folder: Path, path: Path, registry: Registry) -> Learner:
    tree: dict[str, Any] = {
        "stream": {
            "source": {"name": "replay", "path": str(path), "classes_per_task": 2},
            "records": {
                "inputs": [{"name": "text", "kind": "text", "raw": True, "shape": [48]}],
                "label": "label",
                "label_type": "string",
            },
        },
        "student": {
            "name": "text-encoder",
            "encoder": str(folder),
            "hidden": 8,
            "ngrams": 16,
            "adapter": 2,
            "layers": 2,
        },
        "teachers": ["ema", "memory", "snapshot"],
        "memory": {"size": 20, "replay": 10},
        "adapt": {"every": 3, "on_task_steps": 2},
        "device": "cpu",
    }
    made = config.from_tree(tree, registry)
    schema = schema_of(made, registry)
    return Learner(made, registry, open_source(made, registry, schema)[0], schema)


def test_stopping_and_resuming_ends_in_the_same_bits(folder: Path, tmp_path: Path, registry: Registry) -> None:
    """A learner restored in the middle, with nothing cached, ends where one that was never stopped ends."""
    texts = {
        "lost": "my card is lost",
        "rate": "what is the rate",
        "late": "the transfer is late",
        "up": "top up my card",
    }
    rows = [
        json.dumps({"text": f"{text} {' '.join(['the'] * (n % 4))}", "label": label})
        for n in range(25)
        for label, text in texts.items()
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(rows))

    def weights(one: Learner) -> list[str]:
        assert one.step.pool.average is not None
        return [weights_sha256(part.state_dict()) for part in (one.step.student, one.step.pool.average.student)]

    whole, stopped, resumed = (learner(folder, path, registry) for _ in range(3))
    while whole.advance():
        pass
    for _ in range(4):
        stopped.advance()
    encoder.find(str(folder)).forget()
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    while resumed.advance():
        pass
    assert resumed.records == whole.records == 80  # the rest is for testing
    assert weights(resumed) == weights(whole)
    assert whole.step.student.body.adapter.up.abs().max() > 0.01  # type: ignore[union-attr]
