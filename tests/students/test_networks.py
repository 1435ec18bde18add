"""Students: growth that changes nothing old, normalisation by the formula, fitting by increments, publishing."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn

from streamkd.errors import PluginError, StateError
from streamkd.hookspecs import Kind, Options
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema
from streamkd.students.networks import (
    Convnet,
    ConvnetOptions,
    Mlp,
    MlpOptions,
    Normalise,
    build,
    load_published,
    write_published,
)

ELEMENTS = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def raw(element: str, *shape: int, seed: int = 0) -> Tensor:
    """Random records of an element type, over its range where that is small."""
    g = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, element)
    if dtype.is_floating_point:
        return (40 * torch.randn(shape, generator=g)).to(dtype)
    limits = torch.iinfo(dtype)
    low, high = max(limits.min, -1000), min(limits.max, 1000)
    return torch.randint(low, high + 1, shape, generator=g).to(dtype)


# growth


def test_growing_in_steps_is_growing_at_once() -> None:
    """A head's weights depend on the seed and the number of classes, not on the way there."""
    at_once, in_steps = toys.mlp(6), toys.mlp(1)
    for classes in (2, 3, 6):
        in_steps.grow(classes)
    for (name, one), other in zip(at_once.state_dict().items(), in_steps.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert in_steps.classes == 6


def test_new_classes_begin_different() -> None:
    """No two rows of the head are equal: equal ones would learn the same for ever."""
    weight = toys.mlp(6, seed=2).body.head.weight
    other = toys.mlp(6, seed=3).body.head.weight
    assert len({tuple(row) for row in torch.cat([weight, other]).tolist()}) == 12


def test_growing_leaves_old_weights_alone() -> None:
    """Every old weight keeps its bits, in the same parameters; so old logits stay, to the rounding of wider products.

    Their bits may change: how a product sums depends on its width and on the processor's kernels.
    """
    student = toys.mlp(3)
    x = toys.batches(1)[0][0]
    said = student(x)
    before = [(p, p.detach().clone()) for p in student.parameters()]
    student.grow(5)
    for mine, (parameter, old) in zip(student.parameters(), before, strict=True):
        assert mine is parameter
        assert torch.equal(mine[: len(old)], old)
    torch.testing.assert_close(student(x)[:, :3], said)
    student.grow(2)
    assert student.classes == 5


def test_a_head_of_thousands_grows_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """8,000 classes at once take one concatenation a tensor, not 8,000: weight, bias, and two moments of each."""
    student = toys.mlp(3)
    optimizer = toys.optimizer_of("adam", list(student.parameters()), lr=0.01)
    _update(student, optimizer, *toys.batches(1)[0])
    copies, cat = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda *args, **options: copies.append(args) or cat(*args, **options))
    student.grow(8_000, optimizer)
    assert student.head.weight.shape == optimizer.state[student.head.weight]["exp_avg"].shape == (8_000, 8)
    assert len(copies) == 6


def test_first_rows_are_those_of_a_generator_each() -> None:
    """Row c is drawn from the seed and c alone, by the formula: streams begin as they always have."""
    head = toys.mlp(6, seed=5).head
    for column, row in enumerate(head.weight.detach()):
        generator = torch.Generator().manual_seed(5 * 1_000_003 + column)
        bound = head.in_features**-0.5
        assert column == 0 or torch.equal(row, torch.empty_like(row).uniform_(-bound, bound, generator=generator))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (("sgd", {"lr": 0.1, "momentum": 0.9}), ("momentum_buffer",)),
        (("adam", {"lr": 0.01}), ("exp_avg", "exp_avg_sq")),
        (("adamw", {"lr": 0.01}), ("exp_avg", "exp_avg_sq")),
        (("adam", {"lr": 0.01, "amsgrad": True}), ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    ],
    ids=["momentum", "adam", "adamw", "amsgrad"],
)
def test_growing_pads_the_optimisers_state(kind: Any, names: tuple[str, ...]) -> None:
    """Old rows keep their moments, new ones begin at 0, and the next step works and treats old rows as before."""
    student = toys.mlp(3)
    optimizer = toys.optimizer_of(kind[0], list(student.parameters()), **kind[1])
    for x, y in toys.batches(3):
        _update(student, optimizer, x, y)
    head = student.body.head
    before = {(p, n): optimizer.state[p][n].clone() for p in (head.weight, head.bias) for n in names}
    steps = copy.deepcopy(optimizer.state[head.weight].get("step"))
    student.grow(5, optimizer)
    for (parameter, name), old in before.items():
        new = optimizer.state[parameter][name]
        assert new.shape == parameter.shape
        assert torch.equal(new[:3], old)
        assert (new[3:] == 0).all()
    assert optimizer.state[head.weight].get("step") == steps
    x, y = toys.batches(1, classes=5, seed=4)[0]
    _update(student, optimizer, x, y)
    assert all(p.isfinite().all() for p in student.parameters())


def _update(student: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(student(x), y).backward()
    optimizer.step()


def test_a_students_first_weights_depend_on_its_seed_alone() -> None:
    """Building draws from no global generator and moves none."""
    before = torch.random.get_rng_state()
    one = toys.mlp(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(77)
    other, third = toys.mlp(seed=3), toys.mlp(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.body.head.weight, third.body.head.weight)


class Headless(nn.Module):
    def __init__(self, options: Options, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(6, classes)


class Biasless(nn.Module):
    def __init__(self, options: Options, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(6, classes, bias=False)


@pytest.mark.parametrize("body", [Headless, Biasless])
def test_a_body_that_cannot_grow_is_refused(body: Any) -> None:
    """A plugin's student needs a linear ``head`` with bias; the error names the student."""
    with pytest.raises(PluginError, match=r"student odd: needed a torch\.nn\.Linear"):
        build(Kind("odd", body), Options(), toys.schema_of(6), 3, 0)


# normalisation


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("shape", [(), (5,), (4, 3)])
def test_normalising_is_the_formula(element: str, shape: tuple[int, ...]) -> None:
    """(x·scale - mean) / std, against float64, for every element type; mean and std go over the last axis."""
    channels = shape[-1] if shape else 1
    mean, std = tuple(0.3 * c - 0.2 for c in range(channels)), tuple(0.5 + 0.25 * c for c in range(channels))
    schema = toys.schema_of(*shape, dtype=element, scale=1 / 255, mean=mean, std=std)
    x = raw(element, 6, *(shape or (1,)))
    wanted = (x.double() / 255 - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std, dtype=torch.float64)
    got = Normalise(schema)(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_columns_keep_their_own_normalisation() -> None:
    """Several columns become one vector, each part with its own scale, mean and std."""
    columns = (
        InputColumn(name="a", shape=(2,), scale=2.0, mean=1.0, std=4.0),
        InputColumn(name="b", shape=(), mean=10.0, std=0.5),
    )
    x = torch.tensor([[1.0, 2.0, 11.0]])
    wanted = torch.tensor([[0.25, 0.75, 2.0]])
    torch.testing.assert_close(Normalise(RecordSchema(inputs=columns))(x), wanted)


@pytest.mark.parametrize("element", ELEMENTS)
def test_fitting_by_batches_is_the_statistics_of_all(element: str) -> None:
    """At every prefix, mean and std equal those of all records so far, in float64; after ``fit`` records they stay."""
    schema = toys.schema_of(3, dtype=element, fit=40, scale=0.5)
    normalise = Normalise(schema)
    x = raw(element, 60, 3)
    seen = 0
    for size in (1, 2, 9, 17, 31):
        normalise.observe(x[seen : seen + size])
        seen += size
        so_far = x[: min(seen, 40)].double() * 0.5
        std = so_far.std(0, correction=0)
        std = torch.where(std > 0, std, 1.0)
        torch.testing.assert_close(
            normalise(x).double(), (x.double() * 0.5 - so_far.mean(0)) / std, rtol=1e-4, atol=1e-4
        )
    assert int(normalise.count) == 40


def test_fitting_leaves_other_columns_alone() -> None:
    """Only a column with ``fit`` takes its statistics from the stream."""
    columns = (InputColumn(name="a", shape=(2,), mean=1.0, std=2.0), InputColumn(name="b", shape=(), fit=10))
    normalise = Normalise(RecordSchema(inputs=columns))
    x = torch.arange(12.0).reshape(4, 3)
    normalise.observe(x)
    torch.testing.assert_close(normalise(x)[:, :2], (x[:, :2] - 1) / 2)
    torch.testing.assert_close(normalise(x)[:, 2], (x[:, 2] - x[:, 2].mean()) / x[:, 2].std(correction=0))


def gappy(rows: int, fit: int = 0) -> tuple[RecordSchema, torch.Tensor, torch.Tensor]:
    """A number, a list of two, a category and an age, each with gaps: the schema, encoded rows, and what is there."""
    columns = (
        InputColumn(name="a", scale=2.0, mean=6.0, std=4.0, missing="fill", fit=fit),
        InputColumn(name="b", shape=(2,), mean=(1.0, 2.0), std=(2.0, 3.0), missing="fill", fit=fit),
        InputColumn(name="c", kind="category", shape=(3,), missing="fill"),
        InputColumn(name="d", kind="time", parts=("hour", "age"), mean=20.0, std=5.0, missing="fill", fit=fit),
    )
    g = torch.Generator().manual_seed(0)
    there = torch.rand(rows, 4, generator=g) < 0.7
    a, b, age = (torch.randn(rows, n, generator=g) * 5 + 9 for n in (1, 2, 1))
    gone = ~there
    parts = [a * there[:, :1], gone[:, :1], b * there[:, 1:3], gone[:, 1:3], torch.eye(3)[torch.arange(rows) % 3]]
    parts += [torch.ones(rows, 2) * there[:, 3:], age * there[:, 3:], gone[:, 3:]]
    return RecordSchema(inputs=columns), torch.cat([part.float() for part in parts], 1), there


AMOUNTS, INDICATORS = [0, 2, 3, 11], [1, 4, 5, 12]


def test_a_gap_is_zero_after_normalising() -> None:
    """Amounts that are there are scaled, missing ones 0; categories, circles and indicators stay what they are."""
    schema, x, there = gappy(50)
    z = Normalise(schema)(x)
    scaled = (x[:, AMOUNTS] * torch.tensor([2.0, 1, 1, 1]) - torch.tensor([6.0, 1, 2, 20])) / torch.tensor(
        [4.0, 2, 3, 5]
    )
    torch.testing.assert_close(z[:, AMOUNTS], torch.where(there, scaled, 0.0))
    others = [place for place in range(x.shape[1]) if place not in AMOUNTS]
    assert torch.equal(z[:, others], x[:, others])


def test_halfway_to_a_gap_is_halfway_to_zero() -> None:
    """A mixture of two rows is normalised to the mixture of what they are normalised to, gaps among them."""
    schema, x, _ = gappy(50)
    normalise = Normalise(schema)
    torch.testing.assert_close(
        normalise(0.3 * x[:25] + 0.7 * x[25:]), 0.3 * normalise(x[:25]) + 0.7 * normalise(x[25:])
    )


def test_gaps_do_not_count_in_fitted_statistics() -> None:
    """At every prefix mean and std are those of the values that were there, in float64."""
    schema, x, there = gappy(60, fit=40)
    normalise, seen = Normalise(schema), 0
    for size in (1, 2, 9, 17, 31):
        normalise.observe(x[seen : seen + size])
        seen += size
        for place, known, scale in zip(AMOUNTS, there[: min(seen, 40)].T, (2, 1, 1, 1), strict=True):
            values = x[: min(seen, 40), place][known].double() * scale
            std = values.std(correction=0) if len(values) > 1 else torch.tensor(1.0)
            mean = values.mean() if len(values) else torch.tensor(0.0)
            torch.testing.assert_close(normalise.moments[0, place], mean.double(), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(normalise.gain[place].double(), scale / std.double(), rtol=1e-5, atol=1e-5)
        assert not normalise(x)[:, AMOUNTS][~there].any()
    one = Normalise(schema)
    one.load_state_dict(normalise.state_dict())
    assert torch.equal(one(x), normalise(x))


def test_following_is_exponential_forgetting() -> None:
    """Mean and std of all records so far, batches fading by 100 / 110 once there are 100; a gap counts in neither."""
    schema, x, there = gappy(300, fit=100)
    columns = tuple(column.model_copy(update={"follow": bool(column.fit)}) for column in schema.inputs)
    normalise = Normalise(RecordSchema(inputs=columns))
    weights = torch.zeros(0, dtype=torch.float64)
    for rows in x.split(10):
        normalise.observe(rows)
        weights = torch.cat([weights, torch.ones(10, dtype=torch.float64)])
        for place, known, scale in zip(AMOUNTS, there[: len(weights)].T, (2, 1, 1, 1), strict=True):
            values, mass = x[: len(weights), place].double() * scale, weights * known
            mean = (values * mass).sum() / mass.sum().clamp_min(1e-9)
            var = ((values - mean) ** 2 * mass).sum() / mass.sum().clamp_min(1e-9)
            torch.testing.assert_close(normalise.moments[0, place], mean, rtol=2e-2, atol=1e-2)
            if known.sum() > 5:
                torch.testing.assert_close(normalise.gain[place].double(), scale / var.sqrt(), rtol=2e-2, atol=1e-3)
        weights *= min(100 / float(weights.sum()), 1.0)


def test_a_level_that_moves_is_followed_where_it_is_asked_for() -> None:
    """A number that is a hundred times as large from one record on is near 1 again; its neighbour's scale stays."""
    columns = InputColumn(name="a", fit=100, follow=True), InputColumn(name="b", fit=100)
    normalise = Normalise(RecordSchema(inputs=columns))
    x = torch.randn(1_100, 2, generator=torch.Generator().manual_seed(0))
    for rows in x[:200].split(10):
        normalise.observe(rows)
    before = normalise.gain.clone()
    for rows in x[200:].split(10):
        normalise.observe(100 * rows)
    z = normalise(100 * x[-200:])
    assert float(z[:, 0].std()) == pytest.approx(1, abs=0.2)
    assert torch.equal(normalise.gain[1], before[1])
    again = Normalise(RecordSchema(inputs=columns))
    again.load_state_dict(normalise.state_dict())
    for one in (normalise, again):
        one.observe(x[:10])
    assert torch.equal(again(x), normalise(x))


def test_a_number_that_stands_still_while_it_is_followed_is_not_blown_up() -> None:
    """Its std is a tenth of what it was, however long it stands."""
    normalise = Normalise(RecordSchema(inputs=(InputColumn(name="a", fit=100, follow=True),)))
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    for rows in (*x.split(10), *torch.zeros(50_000, 1).split(1_000)):
        normalise.observe(rows)
    assert 5 < float(normalise.gain) < 15


def test_following_needs_a_number_of_records() -> None:
    """How many are looked back at is what fit says."""
    with pytest.raises(ValueError, match="follow needs fit"):
        InputColumn(name="a", follow=True)


@pytest.mark.parametrize("constant", [0.1, 1e-3, 12345.678, 0.0])
def test_a_constant_feature_is_not_blown_up(constant: float) -> None:
    """Rounding is no variance: a feature that never moved while fitting has std 1: a later value stays sane."""
    normalise = Normalise(toys.schema_of(1, dtype="float64", fit=100))
    for size in (7, 13, 30, 50):
        normalise.observe(torch.full((size, 1), constant, dtype=torch.float64))
    torch.testing.assert_close(normalise(torch.tensor([[constant + 1.0]])), torch.tensor([[1.0]]), rtol=0, atol=2e-3)


def test_statistics_are_state() -> None:
    """What was fitted, and how many records it took, comes back with the state."""
    one, other = (Normalise(toys.schema_of(3, fit=20)) for _ in range(2))
    x = raw("float32", 30, 3)
    one.observe(x[:13])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for normalise in (one, other):
        normalise.observe(x[13:])
    assert torch.equal(one(x), other(x))


# convolutions


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (1, 9), (2, 10), (9, 2, 2), (3, 33), (1, 1), (28, 28)])
@pytest.mark.parametrize("channels", [(4,), (4, 6), (4, 6, 8)])
def test_convnets_take_images_of_any_size(shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
    """The hidden layer fits what pooling leaves, for narrow images too."""
    options = ConvnetOptions(channels=channels, hidden=5)
    student = build(Kind("convnet", Convnet, ConvnetOptions), options, toys.schema_of(*shape), 3, 0)
    assert student(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (4, 16, 24)])
def test_a_convnet_refuses_images_with_their_channels_first(shape: tuple[int, ...]) -> None:
    """Three pixels high, 32 wide and 32 channels is hardly meant; who means it says channels_last."""
    kind = Kind("convnet", Convnet, ConvnetOptions)
    with pytest.raises(PluginError, match=rf"looks like {shape[0]} channels first[\s\S]*CHW[\s\S]*channels_last"):
        build(kind, ConvnetOptions(), toys.schema_of(*shape), 3, 0)
    assert build(kind, ConvnetOptions(channels_last=True), toys.schema_of(*shape), 3, 0).classes == 3


def test_a_convnet_refuses_what_is_no_image() -> None:
    """The error says the shape and the way out."""
    with pytest.raises(PluginError, match=r"got \(6,\)"):
        build(Kind("convnet", Convnet, ConvnetOptions), ConvnetOptions(), toys.schema_of(6), 3, 0)


@pytest.mark.parametrize(
    ("options", "values"),
    [(MlpOptions, {"hidden": [0]}), (MlpOptions, {"hidden": [-3]}), (ConvnetOptions, {"channels": [0]}),
     (ConvnetOptions, {"channels": []}), (ConvnetOptions, {"hidden": 0})],
)  # fmt: skip
def test_impossible_widths_are_refused(options: type[Options], values: dict) -> None:
    """A layer has at least one unit."""
    with pytest.raises(ValueError, match=r"greater than|at least"):
        options.model_validate(values)


# publishing


def published(tmp_path: Path) -> tuple[Any, Path]:
    schema = toys.schema_of(6, fit=50)
    student = build(Kind("mlp", Mlp, MlpOptions), MlpOptions(hidden=(8,)), schema, 3, 7)
    student.normalise.observe(raw("float32", 20, 6))
    meta = {
        "student": {"name": "mlp", "options": {"hidden": [8]}},
        "schema": schema.model_dump(mode="json"),
        "classes": ["cat", "ant", "dog"],
        "seed": 7,
        "records": 20,
        "published_at": 1.5,
    }
    write_published(tmp_path, student, meta)
    return student, tmp_path


def test_a_published_version_answers_as_the_student_did(tmp_path: Path) -> None:
    """Written and loaded, normalisation included, it gives the same probabilities, bit for bit."""
    student, directory = published(tmp_path)
    loaded = load_published(directory, Registry.load(only=["students"]), 4)
    x = raw("float32", 9, 6, seed=2)
    got = loaded.predict(x.numpy())
    assert got.dtype == np.float32
    assert np.array_equal(got, torch.softmax(student(x), 1).detach().numpy())
    assert np.allclose(got.sum(1), 1)
    assert (loaded.classes, loaded.version, loaded.records, loaded.published_at) == (["cat", "ant", "dog"], 4, 20, 1.5)


def test_a_published_version_takes_inputs_that_may_not_be_written(tmp_path: Path) -> None:
    """Arrays over someone else's memory are read-only; predicting from them warns of nothing and changes nothing."""
    _, directory = published(tmp_path)
    loaded = load_published(directory, Registry.load(only=["students"]))
    x = raw("float32", 4, 6).numpy()
    x.setflags(write=False)
    assert loaded.predict(x).shape == (4, 3)


def test_a_version_of_thousands_of_classes_is_put_together_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading 8,000 classes takes as many concatenations as loading three: each copied the whole head once."""
    _, directory = published(tmp_path)
    wide = build(Kind("mlp", Mlp, MlpOptions), MlpOptions(hidden=(8,)), toys.schema_of(6, fit=50), 8_000, 7)
    copies, cat = [], torch.cat
    registry = Registry.load(only=["students"])
    monkeypatch.setattr(torch, "cat", lambda *args, **options: copies.append(args) or cat(*args, **options))
    load_published(directory, registry)
    few = len(copies)
    meta = json.loads((directory / "model.json").read_text())
    write_published(directory, wide, {**meta, "classes": list(range(8_000))})
    copies.clear()
    loaded = load_published(directory, registry)
    assert torch.equal(loaded.student.head.weight, wide.head.weight)
    assert len(copies) == few


def test_a_later_change_of_the_student_does_not_reach_its_published_version(tmp_path: Path) -> None:
    """Served weights are never trained on."""
    student, directory = published(tmp_path)
    loaded = load_published(directory, Registry.load(only=["students"]))
    x = raw("float32", 3, 6).numpy()
    before = loaded.predict(x)
    with torch.no_grad():
        student.body.head.weight.add_(1)
    assert np.array_equal(loaded.predict(x), before)
    assert all(not p.requires_grad for p in loaded.student.parameters())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _drop_class(path: Path) -> None:
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "classes": meta["classes"][:2]}))


def _forget(path: Path) -> None:
    meta = json.loads(path.read_text())
    del meta["seed"]
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("model.safetensors", _truncate),
        ("model.safetensors", Path.unlink),
        ("model.safetensors", lambda p: p.write_bytes(b"no tensors")),
        ("model.json", _truncate),
        ("model.json", Path.unlink),
        ("model.json", _drop_class),
        ("model.json", _forget),
        ("model.json", lambda p: p.write_text("[]")),
    ],
)
def test_a_damaged_version_is_a_state_error(tmp_path: Path, name: str, harm: Any) -> None:
    """Whatever is missing, cut or does not fit, the error is ours and names the directory."""
    _, directory = published(tmp_path)
    harm(directory / name)
    with pytest.raises(StateError, match="cannot be loaded") as caught:
        load_published(directory, Registry.load(only=["students"]))
    assert caught.value.where == str(directory)
