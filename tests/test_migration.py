"""A state that goes on with further columns: what was learned stays, what cannot is taught again, nothing is lost."""

import copy
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from baselines import REGISTRY

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import ConfigError, Overloaded, StateConflict, StateError
from streamkd.learner import Learner
from streamkd.migration import Migrated, migrate
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.state.environment import environment
from streamkd.state.tree import pack
from streamkd.streams.log.log import Log
from streamkd.wiring import open_source, schema_of

from .endtoend.conftest import records

RECORDS, LEARNED = 150, 120
COLUMN: dict[str, Any] = {"name": "x", "shape": [8], "fit": 50}
AGE: dict[str, Any] = {"name": "age", "fit": 50, "follow": True}
SHOP: dict[str, Any] = {"name": "shop", "kind": "category", "shape": [4], "missing": "fill"}
TREE: dict[str, Any] = {
    "stream": {
        "source": {"name": "http"},
        "records": {"inputs": [COLUMN], "task": "task"},
        "batch": {"size": 10},
    },
    "student": {"name": "mlp", "hidden": [8]},
    "memory": {"size": 100, "replay": 20},
    "teachers": [
        *({"name": name} for name in ("ema", "memory", "analytic", "last-label", "linear", "crossed", "forgetting")),
        {"name": "former", "every": 40},
    ],
    "device": "cpu",
}


def config(*inputs: dict[str, Any], **changes: Any) -> Config:
    tree = copy.deepcopy(TREE)
    tree["stream"]["records"] |= {"inputs": list(inputs), **changes.pop("records", {})}
    return configuration.from_tree({**tree, **changes}, REGISTRY)


def learn(directory: StateDirectory, under: Config, until: int) -> Learner:
    """Learn on from the newest checkpoint, and write one at the end."""
    schema = schema_of(under, REGISTRY)
    source, log = open_source(under, REGISTRY, schema, directory.log)
    assert log is not None
    with directory.lock(), closing(CheckpointStore(directory)) as store, closing(log):
        one = Learner(under, REGISTRY, source, schema, journal=log)
        if (found := store.latest()) is not None:
            one.restore(found.tree, found.info.offsets, configuration.from_tree(found.config))
        while one.offsets["main/0"] < until and one.advance():
            pass
        place = {"offsets": one.offsets, "records": one.records}
        mark = {"main/0": str(log.mark(one.offsets["main/0"]))}
        store.save(one.state(), **place, config=configuration.dump(under), environment=environment(), marks=mark)  # type: ignore[arg-type]
    return one


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Learner]:
    """A state that has learned most of its log, under one column of eight numbers."""
    directory = StateDirectory(tmp_path_factory.mktemp("before") / "state")
    directory.create()
    under = config(COLUMN)
    with closing(Log(directory.log, schema_of(under, REGISTRY))) as log:
        log.append(records(RECORDS), "p", 1)
    return directory.path, learn(directory, under, LEARNED)


@pytest.fixture
def state(before: tuple[Path, Learner], tmp_path: Path) -> StateDirectory:
    """A copy of it."""
    shutil.copytree(before[0], tmp_path / "state")
    return StateDirectory(tmp_path / "state")


def go_on(state: StateDirectory, under: Config, **fills: str) -> tuple[Migrated, Learner]:
    """Migrated, and taken up by a learner that learns nothing yet."""
    return migrate(state.path, under, REGISTRY, fills), learn(state, under, 0)


def rows(learner: Learner) -> torch.Tensor:
    ring = learner.step.memory.replayed
    assert ring.x is not None
    return ring.x[: ring.filled]


def test_the_student_answers_as_before_and_learns_on(state: StateDirectory, before: tuple[Path, Learner]) -> None:
    """It and its average, on every remembered row; the optimiser's moments are there; then the new column tells."""
    under = config(COLUMN, AGE, SHOP)
    done, now = go_on(state, under, age="30")
    then = before[1]
    assert (list(done.news.added), done.batches, done.records) == (["age", "shop"], 1, LEARNED)
    assert torch.equal(rows(now)[:, :8], rows(then))
    assert (rows(now)[:, 8] == 30).all()
    assert rows(now)[0, 9:].tolist() == [0, 0, 0, 1]  # a gap
    for which in (lambda learner: learner.student, lambda learner: learner.step.pool.average.student):
        torch.testing.assert_close(which(now)(rows(now)), which(then)(rows(then)), rtol=1e-5, atol=1e-5)
    assert (now.student.normalise(rows(now))[:, 8] == 0).all()
    first, old = (next(iter(one.step.optimizer.state.values()))["exp_avg"] for one in (now, then))
    assert torch.equal(first[:, :8], old)
    assert not first[:, 8:].any()

    more = {**records(10, RECORDS).to_pydict(), "age": [[25.0 + n] for n in range(10)], "shop": ["a"] * 10}
    with closing(Log(state.log, schema_of(under, REGISTRY))) as log:
        log.append(pa.RecordBatch.from_pydict(more, log.arrow_schema))
    later = learn(state, under, RECORDS + 10)
    assert later.records == RECORDS + 10
    weight = later.student.body.hidden[0].weight
    assert weight[:, 8].any()
    assert later.student.normalise.moments[0, 8] != 30


def test_teachers_that_learn_by_themselves_are_taught_what_is_remembered(
    state: StateDirectory, before: tuple[Path, Learner]
) -> None:
    """They know again what they knew of the labels that are remembered; copies of the past go."""
    done, now = go_on(state, config(COLUMN, SHOP))
    by_key, then = ({t.key: t for t in one.step.pool.everybody} for one in (now, before[1]))
    assert {"analytic", "linear", "crossed", "forgetting", "last-label"} == {*done.anew}
    knew = [key for key in done.anew if then[key].known().any()]
    assert {"analytic", "linear", "forgetting", "last-label"} <= {*knew}
    ring = now.step.memory.replayed
    assert all(by_key[key].known()[ring.y[: ring.filled].unique()].all() for key in knew)
    assert ["former" in key for key in by_key] == [False] * len(by_key)
    assert ["former" in key for key in then].count(True) > 1
    answers = by_key["analytic"].logits(rows(now)).argmax(1)
    assert (answers == ring.y[: ring.filled]).float().mean() > 0.9


def test_a_column_for_teachers_alone_leaves_all_as_it_is(state: StateDirectory, before: tuple[Path, Learner]) -> None:
    """Where the student does not read it, nobody begins anew: the same bits, in rows that are wider."""
    done, now = go_on(state, config(COLUMN, SHOP, records={"student": ["x"]}))
    assert (list(done.anew), done.apart) == ([], 0.0)
    assert torch.equal(now.student(rows(now)), before[1].student(rows(before[1])))
    for key in ("analytic", "linear", "crossed", "forgetting"):
        mine, theirs = (pack(one.step.pool.state_dict()["teachers"][key]).tensors for one in (now, before[1]))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), key


def test_numbers_may_become_wider(state: StateDirectory, before: tuple[Path, Learner]) -> None:
    """float32 to float64: the rows are the same numbers, and nobody begins anew; the other way is refused."""
    done, now = go_on(state, config({**COLUMN, "dtype": "float64"}))
    assert (list(done.news.wider), list(done.anew)) == (["x"], [])
    assert rows(now).dtype == torch.float64
    assert torch.equal(now.student(rows(now)), before[1].student(rows(before[1])))
    with pytest.raises(StateConflict, match="dtype was float64, is float32"):
        migrate(state.path, config(COLUMN), REGISTRY, {})


def test_the_log_has_the_columns_and_a_batch_sent_again_is_still_known(state: StateDirectory) -> None:
    """Each record of it, those not learned yet among them; who sends a batch again has its receipt."""
    under = config(COLUMN, AGE)
    migrate(state.path, under, REGISTRY, {"age": "30"})
    with closing(Log(state.log, schema_of(under, REGISTRY))) as log:
        found = log.read(0, RECORDS).rows
        assert found.column("age").to_pylist() == [[30.0]] * RECORDS
        assert found.column("x").to_pylist() == records(RECORDS).column("x").to_pylist()
        receipt = log.append(found, "p", 1)
    assert (receipt.duplicate, receipt.accepted) == (True, RECORDS)
    assert learn(state, under, RECORDS).records == RECORDS


@pytest.mark.parametrize("where", ["log", "checkpoint"])
def test_a_kill_leaves_what_was_or_what_the_same_command_finishes(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """In the middle of the log the old state goes on; between log and checkpoint no learner starts until it is done."""
    under = config(COLUMN, AGE)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if where == "log":
            patched.setattr("streamkd.streams.log.widening.note", killed)
        else:
            patched.setattr(CheckpointStore, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            migrate(state.path, under, REGISTRY, {"age": "30"})
    if where == "log":
        assert learn(state, config(COLUMN), RECORDS).records == RECORDS
        return
    for either in (under, config(COLUMN)):
        with pytest.raises(StateConflict, match="streamkd migrate STATE CONFIG"):
            learn(state, either, RECORDS)
    assert go_on(state, under, age="30")[0].batches == 0
    assert learn(state, under, RECORDS).records == RECORDS


def refused(state: StateDirectory, under: Config, **fills: str) -> str:
    with pytest.raises((StateConflict, StateError, ConfigError, Overloaded)) as caught:
        migrate(state.path, under, REGISTRY, fills)
    with closing(CheckpointStore(state, read_only=True)) as store, closing(Log(state.log, read_only=True)) as log:
        assert [info.id for info in store.list()] == [1]
        assert log.schema == schema_of(config(COLUMN), REGISTRY)
    return str(caught.value)


CASES: dict[str, Callable[[StateDirectory], str]] = {
    "age: missing": lambda state: refused(state, config(COLUMN, AGE)),
    "age: needed numbers": lambda state: refused(state, config(COLUMN, AGE), age="old"),
    "there is no new column 'agee'": lambda state: refused(state, config(COLUMN, AGE), agee="3"),
    "there is nothing to do": lambda state: refused(state, config(COLUMN)),
    "column 'x' is gone": lambda state: refused(state, config(AGE), age="3"),
    "shape was": lambda state: refused(state, config({**COLUMN, "shape": [9]}, AGE), age="3"),
    "cannot be fitted on the first records": lambda state: refused(
        state, config(COLUMN, {**AGE, "follow": False}), age="3"
    ),
    "fit: 50 at most": lambda state: refused(state, config(COLUMN, {**AGE, "fit": 60}), age="3"),
    "stream.labels": lambda state: refused(
        state,
        config(
            COLUMN, AGE, stream={**TREE["stream"], "records": {"inputs": [COLUMN, AGE], "task": "task"}, "labels": {}}
        ),
        age="3",
    ),
    "written with name='mlp' hidden": lambda state: refused(
        state, config(COLUMN, AGE, student={"name": "mlp", "hidden": [9]}), age="3"
    ),
}


@pytest.mark.parametrize("said", CASES)
def test_what_cannot_be_is_said_and_changes_nothing(state: StateDirectory, said: str) -> None:
    """A fill that is missing or none, other changes beside it, a normalisation of records that are gone."""
    assert said in CASES[said](state)


def test_a_student_that_answers_otherwise_is_refused(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wider must not change what is known: that is looked at, not assumed."""
    monkeypatch.setattr(
        "streamkd.learner.widening.wider", lambda old, axis, size, places: torch.zeros(old.shape[0], size)
    )
    assert "answers otherwise" in refused(state, config(COLUMN, AGE), age="3")
