"""Every subset of a state directory's parts, restored: it goes on rightly, or is refused in words; nothing is removed.

One small directory is learned for real, through the log, by the learner as a server runs it; it is copied half-way
(``old``) and at its end (``new``), each time as a kill would leave it, with what SQLite has yet to merge. Each part is
then there, missing, empty or from the older copy, and a learner starts over what came of it.
"""

import hashlib
import itertools
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from streamkd import config as configuration
from streamkd.errors import StateError
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.serve.processes.channel import pair
from streamkd.serve.processes.learner import LearnerProcess
from streamkd.state import coherence
from streamkd.state.directory import StateDirectory
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()
CONFIG = configuration.from_tree(
    {
        "stream": {
            "source": {"name": "flight"},
            "records": {"inputs": [{"name": "x", "shape": [4]}]},
            "batch": {"size": 10, "flush_seconds": 3600},
        },
        "student": {"name": "mlp", "hidden": [4]},
        "memory": {"size": 30, "replay": 5},
        "teachers": [{"name": "ema"}, {"name": "memory"}],
        "device": "cpu",
    },
    REGISTRY,
)
PARTS = ("state.sqlite", "state.sqlite-wal", "checkpoints", "published", "log.sqlite", "log.sqlite-wal")
HOW = ("new", "missing", "empty", "old")
HALF, WHOLE = 100, 220  # records in the older copy and in the newer one; each keeps the last two checkpoints of it
SAMPLE = 60


def rows(first: int, count: int) -> pa.RecordBatch:
    """Rows of one endless stream of three classes."""
    y = np.arange(first, first + count) % 3
    x = np.random.default_rng(first).normal(size=(count, 4)) + 2 * np.eye(4)[y]
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float32).ravel()), 4)
    return pa.record_batch({"x": values, "label": pa.array(y)})


@contextmanager
def started(state: Path, config: configuration.Config = CONFIG) -> Iterator[LearnerProcess]:
    """The learner as ``python -m streamkd.serve.processes.learner`` starts it, up to the point where it says ready."""
    directory = StateDirectory(state)
    channel, theirs = pair()
    with theirs, closing(channel), directory.lock(lambda: coherence.refuse_misfits(directory, pushed=True)):
        process = LearnerProcess(config, REGISTRY, directory, channel)
        try:
            yield process
        finally:
            process.learner.source.close()
            process._checkpoints.close()
            process._publisher.versions.close()


def learn(process: LearnerProcess, upto: int, size: int = 20) -> None:
    """Take records into the log as the ingress does, learn them, commit and publish, in a few goes."""
    log = process._log
    assert log is not None
    while log.end() < upto:
        log.append(rows(log.end(), size), "p", log.end())
        while process.learner.advance() or process.learner.advance():  # what comes short is cut at the second look
            pass
        process._checkpoint()
        process._publish()


@dataclass(frozen=True)
class Copies:
    """The two copies, and the student's weights after so many records of an undisturbed run."""

    folder: Path
    weights: Mapping[int, str]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    folder = tmp_path_factory.mktemp("restores")
    for name, upto in (("old", HALF), ("new", WHOLE)):
        with started(folder / "state") as process:
            learn(process, upto)
            shutil.copytree(folder / "state", folder / name)  # while it is open: a kill leaves the same
    return Copies(folder, undisturbed(folder / "state" / "log.sqlite"))


def undisturbed(log: Path, config: configuration.Config = CONFIG) -> dict[int, str]:
    """The weights after so many records of this log."""
    weights = {}
    schema = schema_of(config, REGISTRY)
    source, journal = open_source(config, REGISTRY, schema, log)
    learner = Learner(config, REGISTRY, source, schema, journal=journal)
    while learner.advance() or learner.advance():
        weights[learner.records] = weights_sha256(learner.student.state_dict())
    source.close()
    return weights


def restore(copies: Copies, chosen: Mapping[str, str], state: Path) -> None:
    """Lay each part down as it was chosen."""
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    for name, how in chosen.items():
        source, target = copies.folder / how / name, state / name
        if how == "empty":
            target.touch() if ".sqlite" in name else target.mkdir()
        elif how != "missing" and source.is_dir():
            shutil.copytree(source, target, copy_function=os.link)  # written once: nobody writes into them
        elif how != "missing" and source.exists():
            shutil.copy(source, target)


def hashes(state: Path) -> dict[str, str]:
    """What lies there, without the lock and SQLite's index of what it has yet to merge."""
    files = (file for file in sorted(state.rglob("*")) if file.is_file() and file.stat().st_size)
    named = {str(file.relative_to(state)): file for file in files}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in named.items()
        if name != "lock" and not name.endswith("-shm") and ".begun-" not in name
    }


def in_folders(found: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in found.items() if "/" in name}


def outcome(copies: Copies, chosen: Mapping[str, str], state: Path) -> str:
    """Start over the restored parts: ``refused``, or ``goes on`` with as many records as the log has."""
    restore(copies, chosen, state)
    before = hashes(state)
    try:
        with started(state) as process:
            assert in_folders(before).items() <= hashes(state).items(), "something was removed"
            return went_on(process, copies, chosen)
    except StateError as refusal:
        said = str(refusal)
        assert any(part in said for part in ("state.sqlite", "checkpoints/", "published/", "log.sqlite")), said
        after = hashes(state)
        assert (before if "DOES NOT FIT" in said else in_folders(before)).items() <= after.items(), said
        return "refused"


def went_on(process: LearnerProcess, copies: Copies, chosen: Mapping[str, str]) -> str:
    """Everything in the log is learned, as by a run that nobody disturbed, and what comes next is too."""
    learner, log = process.learner, process._log
    assert log is not None
    while learner.advance():
        pass
    end = log.end()
    assert end in (HALF, WHOLE, 0)
    assert learner.records == learner.offsets[log.partition] == end
    if end:
        assert weights_sha256(learner.student.state_dict()) == copies.weights[end]
    process._checkpoint()
    process._publish()
    with sqlite3.connect(process._checkpoints._directory.database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert end == WHOLE or not knows_all(chosen), "records that were accepted are gone, and a part knew of them"
    return f"goes on at {end}"


def knows_all(chosen: Mapping[str, str]) -> bool:
    """Whether a part says how many records there were: a database does not without what it has yet to merge."""
    databases = [(chosen[name], chosen[f"{name}-wal"]) for name in ("state.sqlite", "log.sqlite")]
    return "new" in (chosen["checkpoints"], chosen["published"]) or ("new", "new") in databases


def chosen_of(ways: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(PARTS, ways, strict=True))


def one_part_each() -> list[tuple[str, ...]]:
    """Everything new but one part, and everything old but one: what people do."""
    found = []
    for base, place, how in itertools.product(("new", "old"), range(len(PARTS)), HOW):
        ways = [base] * len(PARTS)
        ways[place] = how
        found.append(tuple(ways))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("half", [0, 1])
def test_each_part_missing_empty_or_older_is_refused_or_goes_on(copies: Copies, tmp_path: Path, half: int) -> None:
    """One part is not as the others; whole copies go on at their last record."""
    found = {ways: outcome(copies, chosen_of(ways), tmp_path / "state") for ways in one_part_each()[half::2]}
    whole = {("new",) * len(PARTS): f"goes on at {WHOLE}", ("old",) * len(PARTS): f"goes on at {HALF}"}
    assert {ways: said for ways, said in whole.items() if ways in found}.items() <= found.items()
    assert "refused" in found.values()


def test_any_parts_together_are_refused_or_go_on(copies: Copies, tmp_path: Path) -> None:
    """A seeded draw from all the ways to restore the six parts."""
    dice = random.Random(14)
    for _ in range(SAMPLE):
        outcome(copies, chosen_of(tuple(dice.choices(HOW, k=len(PARTS)))), tmp_path / "state")


@pytest.mark.soak
@pytest.mark.parametrize("first", HOW)
def test_every_way_to_restore_is_refused_or_goes_on(copies: Copies, tmp_path: Path, first: str) -> None:
    """All 4,096 of them, a quarter each."""
    counts: dict[str, int] = {}
    for rest in itertools.product(HOW, repeat=len(PARTS) - 1):
        said = outcome(copies, chosen_of((first, *rest)), tmp_path / "state")
        counts[said] = counts.get(said, 0) + 1
    assert counts["refused"] > sum(counts.values()) / 2
