"""The contract checks: every built-in passes them, and each clause catches somebody who breaks it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from streamkd import testing
from streamkd.distill import students
from streamkd.distill.gate import FixedGate, FixedOptions
from streamkd.distill.losses import MatchGate, MatchGateOptions
from streamkd.distill.teachers import EmaOptions, EmaTeacher, RecallTeacher, SnapshotTeacher, copy_of
from streamkd.hookspecs import Group, Kind, Options, SourceKind
from streamkd.plugins import Registry
from streamkd.records import Chunk, InputColumn, RecordSchema
from streamkd.tasks.boundary import NewLabel, NewLabelOptions
from streamkd.testing import ContractBroken
from streamkd.testing.clauses import same
from streamkd.testing.specimens import IMAGES

torch.set_num_threads(1)

REGISTRY = Registry.load()
KINDS = [(group, name) for group in get_args(Group) for name in REGISTRY.names(group)]
LAYERS = {"student": "body.layer", "teacher": {"ema": "its.layer"}}
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("sources", "replay"): {"dataset": "digits"},
    **{("losses", name): LAYERS for name in ("feature", "attention", "relational")},
}
SCHEMA = RecordSchema(inputs=(InputColumn(name="x", shape=(2,)),))


@pytest.mark.parametrize(("group", "name"), KINDS, ids=["/".join(kind) for kind in KINDS])
def test_every_registered_kind_keeps_its_contract(group: Group, name: str, tmp_path: Path) -> None:
    """Whatever a configuration can name passes the checks of its group."""
    model = OPTIONS | {("teachers", "checkpoint"): {"path": _written(tmp_path)}}
    testing.check(group, REGISTRY.kind(group, name), model.get((group, name)))


def _written(folder: Path) -> Path:
    """A model that knows two of the three labels that teachers are checked with, the last and the first."""
    student = students.build(REGISTRY.kind("students", "mlp"), students.MlpOptions(hidden=(4,)), IMAGES, 2, seed=3)
    about = {"student": {"name": "mlp", "options": {"hidden": [4]}}, "schema": IMAGES.model_dump(mode="json")}
    students.write_published(folder, student, {**about, "classes": [2, 0], "seed": 3})
    return folder


def test_every_group_of_built_ins_is_there() -> None:
    """The test above looks at something: no built-in failed to load."""
    assert not [status for status in REGISTRY.report() if status.error and status.distribution == "streamkd"]
    assert {group for group, _ in KINDS} == set(get_args(Group)) - {"observers"}


def test_the_per_sample_gate_keeps_its_floor() -> None:
    """The default gate's floor holds, also after its parameters have moved."""
    testing.check_gate(REGISTRY.kind("gates", "per-sample"), {"floor": 0.3}, floor=0.3)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_students_take_every_element_type(dtype: str) -> None:
    """Students keep their contract over bytes as over floats."""
    column = InputColumn.model_validate({"name": "x", "shape": (6, 6, 2), "dtype": dtype, "scale": 0.1})
    for name in REGISTRY.names("students"):
        testing.check_student(REGISTRY.kind("students", name), schema=RecordSchema(inputs=(column,)))


def test_a_running_averages_layers_are_shown() -> None:
    """A teacher is asked for the layers that it is checked with."""
    testing.check_teacher(REGISTRY.kind("teachers", "ema"), layers=("body.head", "normalise"))


class Body(nn.Module):
    """A student to break: one hidden layer and what a test puts between."""

    def __init__(self, shape: tuple[int, ...], classes: int, between: nn.Module) -> None:
        super().__init__()
        self.hidden, self.between, self.head = nn.Linear(int(np.prod(shape)), 8), between, nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.hidden(x.flatten(1))))


class Unused(nn.Module):
    """A weight that takes part in nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Headless(nn.Module):
    """A student whose last layer goes by another name."""

    def __init__(self, options: Options, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(int(np.prod(shape)), classes)


def body(between: Callable[[], nn.Module]) -> Callable[..., nn.Module]:
    return lambda options, shape, classes: Body(shape, classes, between())


@pytest.mark.parametrize(
    ("make", "clause"),
    [
        (Headless, "whose last linear layer is its attribute `head`"),
        (body(lambda: nn.BatchNorm1d(8)), "each row is answered by itself"),
        (body(nn.Dropout), "it draws nothing from torch's"),
        (body(Unused), "every weight that asks for a gradient gets a finite one"),
        (body(lambda: nn.LayerNorm(7)), "it maps [batch, *shape] to finite logits"),
    ],
    ids=["headless", "batch-norm", "dropout", "unused", "raises"],
)
def test_a_student_that_breaks_a_clause_is_told_which(make: Callable[..., nn.Module], clause: str) -> None:
    """Batch statistics, noise, a missing head, a dead weight: each is named."""
    with pytest.raises(ContractBroken) as caught:
        testing.check_student(Kind("broken", make))
    assert "student broken breaks its contract" in str(caught.value)
    assert clause in str(caught.value)


class Holding(EmaTeacher):
    """Keeps the student instead of a copy."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(EmaOptions(), context)
        self.student = context.student


class Grading(EmaTeacher):
    """Answers with a graph behind it."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(EmaOptions(), context)
        self.student.requires_grad_(True)

    def logits(self, x: Tensor) -> Tensor:
        return self.student(x)


class Stuck(SnapshotTeacher):
    """Does not follow the label space."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(context.key, copy_of(context.student))

    def grow(self, labels: Any) -> None: ...


class Forgetful(EmaTeacher):
    """Leaves its weights out of its state."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(EmaOptions(), context)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Pickled(Forgetful):
    """Puts an object into its state that no checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"student": self.student}


class Roleless(RecallTeacher):
    """Has a role that the pool does not know."""

    role = "wise"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("make", "clause"),
    [
        (Holding, "it keeps no hold of the student"),
        (Grading, "its answers carry no gradient"),
        (Stuck, "a label more widens its answers"),
        (Forgetful, "its state brings another one to the same answers"),
        (Pickled, "needed a state of dicts, lists, JSON scalars, tensors, Arrow tables, got Student"),
        (Roleless, "needed a role, got 'wise'"),
    ],
)
def test_a_teacher_that_breaks_a_clause_is_told_which(make: type, clause: str) -> None:
    """Sharing, gradients, growth, state and role: each is named."""
    with pytest.raises(ContractBroken) as caught:
        testing.check_teacher(Kind("broken", make))
    assert clause in str(caught.value)


def altered(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Options], Any]:
    """Match-gate, and what a test does to its values."""

    class Altered(MatchGate):
        def __call__(self, lesson: Any) -> Tensor:
            return change(lesson, super().__call__(lesson))

    return lambda options: Altered(MatchGateOptions())


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda table: table[:, 1:], "a finite number per sample and source"),
        (lambda table: table * 0.5, "the loss's slope in each weight"),
        (lambda table: table.detach(), "the loss's slope in each weight"),
        (lambda table: table.flip(1), "the loss's slope in each weight"),
    ],
    ids=["teachers", "scale", "detached", "order"],
)
def test_a_loss_that_misleads_the_gate_is_told_so(change: Callable[[Tensor], Tensor], clause: str) -> None:
    """A table without the hard label, scaled, cut from the student, or with its sources in another order."""

    class Misleading(MatchGate):
        def per_source(self, lesson: Any) -> Tensor:
            return change(super().per_source(lesson))

    with pytest.raises(ContractBroken) as caught:
        testing.check_loss(Kind("misleading", lambda options: Misleading(MatchGateOptions())))
    assert clause in str(caught.value)


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda lesson, values: values.mean(), "it gives one finite value per sample"),
        (lambda lesson, values: values - values.mean(), "the value of a sample does not depend on the others"),
        (lambda lesson, values: values + lesson.answers[:, :1].sum((1, 2)), "the order of the teachers"),
        (lambda lesson, values: values + lesson.answers.sum((1, 2)), "a teacher that knows nothing and has no weight"),
        (lambda lesson, values: values / (lesson.answers.shape[1] > 0), "without teachers"),
        (lambda lesson, values: values + lesson.logits.sum(1) - lesson.logits.sum(1).detach(), "is its derivative"),
        (lambda lesson, values: values.detach(), "reaches the student"),
    ],
    ids=["mean", "batch", "order", "deaf", "none", "slope", "detached"],
)
def test_a_loss_that_breaks_a_clause_is_told_which(change: Callable[[Any, Tensor], Tensor], clause: str) -> None:
    """Means, leaks between samples, teachers by place, divisions by zero, false gradients: each is named."""
    with pytest.raises(ContractBroken) as caught:
        testing.check_loss(Kind("broken", altered(change)))
    assert clause in str(caught.value)


def weighing(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Options], nn.Module]:
    """The fixed gate, and what a test does to its weights."""

    class Weighing(FixedGate):
        def forward(self, evidence: Any) -> Tensor:
            return change(evidence, super().forward(evidence))

    return lambda options: Weighing(FixedOptions(hard=0.4))


def credulous(evidence: Any, weights: Tensor) -> Tensor:
    """A label that is not there is given all weight."""
    label = torch.zeros_like(weights)
    label[:, 0] = 1
    return torch.where(evidence.labelled.unsqueeze(1), weights, label)


def shuffled(evidence: Any, weights: Tensor) -> Tensor:
    """Teachers weighed by their place."""
    places = torch.arange(1, weights.shape[1], dtype=weights.dtype) * evidence.heard
    total = places.sum(1, keepdim=True)
    return torch.cat([weights[:, :1], (1 - weights[:, :1]) * places / total.clamp_min(1)], 1)


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda evidence, weights: weights * 2, "sum to 1"),
        (lambda evidence, weights: weights[:, 1:], "sum to 1"),
        (lambda evidence, weights: torch.softmax(weights, 1), "only teachers that are heard have weight"),
        (lambda evidence, weights: weights.roll(1, 0), "only teachers that are heard have weight"),
        (shuffled, "permuting the teachers permutes their weights"),
        (credulous, "rows without label listen to teachers alone"),
    ],
    ids=["sum", "columns", "unheard", "rolled", "place", "credulous"],
)
def test_a_gate_that_breaks_a_clause_is_told_which(change: Callable[[Any, Tensor], Tensor], clause: str) -> None:
    """Sums, unheard teachers, mixed-up samples, weights by place: each is named."""
    with pytest.raises(ContractBroken) as caught:
        testing.check_gate(Kind("broken", weighing(change)))
    assert clause in str(caught.value)


def test_a_gate_below_its_floor_is_told_so() -> None:
    """A hard label that falls below the floor is an error with both numbers."""
    with pytest.raises(ContractBroken, match=r"needed at least 0\.5, got 0\.4"):
        testing.check_gate(Kind("broken", weighing(lambda evidence, weights: weights)), floor=0.5)


class Counting:
    """A source of 20 rows by offset, to be broken."""

    partitions: tuple[str, ...] = ("p/0",)
    finite = True

    def __init__(self, options: Options, schema: RecordSchema) -> None:
        self.reads = 0

    def value(self, offset: int) -> float:
        return float(offset)

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        self.reads += 1
        offsets = range(offset, min(offset + limit, 20))
        x = pa.FixedSizeListArray.from_arrays(
            pa.array([self.value(o) for o in offsets for _ in (0, 1)], pa.float32()), 2
        )
        rows = pa.RecordBatch.from_arrays([x, pa.array([o % 2 for o in offsets], pa.int64())], ["x", "label"])
        return Chunk(rows, partition, offset, offset + len(offsets))

    def end(self, partition: str) -> int | None:
        return 20

    def tests(self) -> dict[str, pa.RecordBatch]:
        return {}

    def close(self) -> None: ...


class Restless(Counting):
    """Other values at every reading."""

    def value(self, offset: int) -> float:
        return float(offset + 100 * self.reads)


class Greedy(Counting):
    """One row more than asked."""

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        return super().read(partition, offset, limit + 1)


class OffByOne(Counting):
    """Says that reading goes on at the last row instead of after it."""

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        chunk = super().read(partition, offset, limit)
        return Chunk(chunk.rows, partition, offset, chunk.next_offset - 1)


class Endless(Counting):
    """Finite without an end."""

    def end(self, partition: str) -> int | None:
        return None


class Early(Counting):
    """An end before the last record."""

    def end(self, partition: str) -> int | None:
        return 12


def test_a_source_that_keeps_its_contract_passes() -> None:
    """The source that the others are broken from is whole."""
    testing.check_source(SourceKind("whole", Counting), schema=SCHEMA)


@pytest.mark.parametrize(
    ("make", "clause"),
    [
        (Restless, "read(offset, n) is n single reads"),
        (Greedy, "needed at most 7 rows, got 8"),
        (OffByOne, "needed a next offset for 7 rows from 0, got +6"),
        (Endless, "needed an offset, as it is finite, got None"),
        (Early, "needed no rows at the end"),
    ],
)
def test_a_source_that_breaks_a_clause_is_told_which(make: type, clause: str) -> None:
    """Values that change, rows too many, offsets off by one, ends that are none: each is named."""
    with pytest.raises(ContractBroken) as caught:
        testing.check_source(SourceKind("broken", make), schema=SCHEMA)
    assert clause in str(caught.value)


def test_a_source_of_other_columns_is_told_the_column() -> None:
    """Rows that do not fit the schema are named by their column."""
    other = RecordSchema(inputs=(InputColumn(name="y", shape=(2,)),))
    with pytest.raises(ContractBroken, match="y"):
        testing.check_source(SourceKind("broken", Counting), schema=other)


def test_a_source_without_a_schema_asks_for_one() -> None:
    """A source that describes nothing is checked with a schema that the caller gives."""
    with pytest.raises(ContractBroken, match="it describes none, so give one to this check"):
        testing.check_source(SourceKind("broken", Counting))


class Amnesiac(NewLabel):
    """Counts batches without saying so in its state."""

    def __init__(self, options: Options) -> None:
        super().__init__(NewLabelOptions())
        self.seen = 0

    def begins(self, *batch: Any) -> str | None:
        self.seen += 1
        return str(self.seen)


class Meddling(NewLabel):
    """Writes into the records that it looks at."""

    def __init__(self, options: Options) -> None:
        super().__init__(NewLabelOptions())

    def begins(self, records: Any, *more: Any) -> str | None:
        records.inputs[:] = 0
        return None


class Truthful(Meddling):
    """Answers yes and no instead of a name."""

    def begins(self, records: Any, *more: Any) -> Any:
        return True


@pytest.mark.parametrize(
    ("make", "clause"),
    [
        (Amnesiac, "stopped before any batch and restored, it goes on as if never stopped"),
        (Meddling, "it leaves the records as they are"),
        (Truthful, "needed a name or None, got True"),
    ],
)
def test_a_detector_that_breaks_a_clause_is_told_which(make: type, clause: str) -> None:
    """State that is forgotten, records that change, answers that are no names: each is named."""
    with pytest.raises(ContractBroken) as caught:
        testing.check_detector(Kind("broken", make))
    assert clause in str(caught.value)


class Watching:
    """An observer of two events."""

    def __init__(self, options: Options) -> None: ...

    def on_step(self, record: int, loss: float, accuracy: float) -> None: ...

    def on_published(self, version: int, record: int) -> None: ...


class Misspelt:
    """An event that does not exist."""

    def __init__(self, options: Options) -> None: ...

    def on_publish(self, version: int) -> None: ...


class Short(Watching):
    """An event with an argument too few."""

    def on_published(self, version: int) -> None: ...  # type: ignore[override]


def test_an_observer_that_keeps_its_contract_passes() -> None:
    """Any of the events may be left out."""
    testing.check_observer(Kind("whole", Watching))


@pytest.mark.parametrize(
    ("make", "clause"),
    [
        (Misspelt, "its events are among on_step"),
        (Short, "on_published takes its arguments"),
        (lambda options: object(), "needed at least one of them"),
    ],
)
def test_an_observer_that_breaks_a_clause_is_told_which(make: Callable[..., Any], clause: str) -> None:
    """Misspelt events and wrong arguments, which would be silent in a run, are named."""
    with pytest.raises(ContractBroken) as caught:
        testing.check_observer(Kind("broken", make))
    assert clause in str(caught.value)


def test_options_that_are_refused_are_told_so() -> None:
    """A check says what the options class says."""
    with pytest.raises(ContractBroken, match=r"(?s)takes those given to this check.*surprise"):
        testing.check_gate(REGISTRY.kind("gates", "fixed"), {"surprise": 1})


def test_numbers_are_compared_in_proportion_to_the_largest() -> None:
    """Logits of a hundred may differ in their last bits, as wider products do; small ones by no more than before."""
    large, small = torch.tensor([100.0, -3.0]), torch.tensor([0.5, 0.1])
    same(large + 2e-5, large)
    for numbers, apart in ((small, 2e-5), (large, 2e-3)):
        with pytest.raises(AssertionError, match="the same numbers"):
            same(numbers + apart, numbers)
    with pytest.raises(AssertionError, match="the same numbers"):
        same(large + 2e-5, large, 0)
