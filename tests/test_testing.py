"""The contract checks: every built-in passes them, and each clause catches somebody who breaks it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import mistakes
import pytest
import torch
from mistakes import MISTAKES
from mistakes.mistake import Mistake

from streamkd import testing
from streamkd.hookspecs import Group, SourceKind
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema
from streamkd.students import networks
from streamkd.testing import ContractBroken
from streamkd.testing.clauses import same
from streamkd.testing.specimens import IMAGES

torch.set_num_threads(1)

REGISTRY = Registry.load()
OWN = {kind for status in REGISTRY.report() if status.distribution == "streamkd" for kind in status.kinds}
COPIES = "teachers/former"  # of other teachers, which it needs to be anything (tests/teachers/test_former.py)
KINDS = [
    (group, name) for group in get_args(Group) for name in REGISTRY.names(group) if f"{group}/{name}" in OWN - {COPIES}
]
CHECKS: dict[Group, Callable[..., None]] = {
    "students": testing.check_student,
    "teachers": testing.check_teacher,
    "losses": testing.check_loss,
    "gates": testing.check_gate,
    "optimizers": testing.check_optimizer,
    "rows": testing.check_rows,
    "sources": testing.check_source,
    "detectors": testing.check_detector,
    "observers": testing.check_observer,
    "policies": testing.check_policy,
    "admissions": testing.check_admission,
    "selectors": testing.check_selector,
}
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {("sources", "replay"): {"dataset": "digits"}}
FURTHER = {("teachers", "crossed"): {"schema": RecordSchema(inputs=(InputColumn(name="x", shape=(5,)),))}}  # a table


@pytest.mark.parametrize(("group", "name"), KINDS, ids=["/".join(kind) for kind in KINDS])
def test_every_built_in_keeps_its_contract(group: Group, name: str, tmp_path: Path) -> None:
    """Whatever a configuration can name passes the checks of its group."""
    model = OPTIONS | {("teachers", "checkpoint"): {"path": _written(tmp_path)}, ("sources", "files"): {"path": "new"}}
    kind, further = REGISTRY.kind(group, name), FURTHER.get((group, name), {})
    CHECKS[group](kind, model.get((group, name)), **further)


def _written(folder: Path) -> Path:
    """A model that knows two of the three labels that teachers are checked with, the last and the first."""
    student = networks.build(REGISTRY.kind("students", "mlp"), networks.MlpOptions(hidden=(4,)), IMAGES, 2, seed=3)
    about = {"student": {"name": "mlp", "options": {"hidden": [4]}}, "schema": IMAGES.model_dump(mode="json")}
    networks.write_published(folder, student, {**about, "classes": [2, 0], "seed": 3})
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
    for name in (name for group, name in KINDS if group == "students"):
        testing.check_student(REGISTRY.kind("students", name), schema=RecordSchema(inputs=(column,)))


def test_a_running_averages_layers_are_shown() -> None:
    """A teacher is asked for the layers that it is checked with."""
    testing.check_teacher(REGISTRY.kind("teachers", "ema"), layers=("body.head", "normalise"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{m.group}: {m.name}" for m in MISTAKES])
def test_a_mistake_is_found_by_the_clause_that_is_meant(mistake: Mistake) -> None:
    """Who breaks one clause is told that clause, what was seen, and how to mend it."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(True), pytest.raises(ContractBroken) as caught:
        CHECKS[mistake.group](mistake.kind, **mistake.given)
    assert mistake.clause in caught.value.clause
    found = caught.value
    assert f" broken breaks its contract: {found.clause}\n  seen: {found.seen}\n  mend: {found.mend}" in str(found)
    assert found.seen
    assert found.mend


RIGHT: list[tuple[Group, Any]] = [
    ("students", mistakes.students.Body),
    ("teachers", mistakes.teachers.Average),
    ("teachers", mistakes.teachers.Counts),
    ("teachers", mistakes.teachers.Tally),
    ("losses", mistakes.losses.Plain),
    ("gates", mistakes.gates.Base),
    ("optimizers", mistakes.optimizers.Descent),
    ("optimizers", mistakes.optimizers.Taught),
    ("rows", mistakes.rows.Echo),
    ("sources", mistakes.sources.Counting),
    ("detectors", mistakes.watchers.Counter),
    ("observers", mistakes.watchers.Watching),
    ("policies", mistakes.policies.Oldest),
    ("selectors", mistakes.selectors.Even),
    ("admissions", mistakes.admissions.Half),
]


@pytest.mark.parametrize(("group", "make"), RIGHT, ids=[make.__name__ for _, make in RIGHT])
def test_without_their_mistake_they_pass(group: Group, make: Any) -> None:
    """What the mistakes are made in keeps its contract."""
    right = Mistake(group, "none", "", make, {"schema": mistakes.sources.SCHEMA} if group == "sources" else {})
    CHECKS[group](right.kind, **right.given)


def test_the_document_has_every_mistake_and_what_is_told() -> None:
    """The table in plugins/README.md is that of the test above, row by row."""
    document = Path(__file__).parents[1] / "plugins" / "README.md"
    rows = [line for line in document.read_text().splitlines() if re.match(r"\| (\w+): ", line)]
    assert rows == [f"| {m.group}: {m.name} | {m.clause} |" for m in MISTAKES]


def test_a_source_without_a_schema_asks_for_one() -> None:
    """A source that describes nothing is checked with a schema that the caller gives."""
    with pytest.raises(ContractBroken, match="it describes none, so give one to this check"):
        testing.check_source(SourceKind("broken", mistakes.sources.Counting))


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
