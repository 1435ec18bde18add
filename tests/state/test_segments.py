"""Segments: what changed is written, all that is needed is there, and a kill leaves the checkpoint before as it was."""

import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamkd.errors import CheckpointDamaged
from streamkd.replay.memory import Memory
from streamkd.replay.table import StoredRows, Table
from streamkd.state import segments, tree
from streamkd.state.checkpoint import CheckpointInfo, CheckpointStore
from streamkd.state.directory import StateDirectory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of some kilobytes go into segments of some hundred bytes."""
    monkeypatch.setattr(tree, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 3_000)
    monkeypatch.setattr(segments, "SPARE", 3)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(tmp_path / "state")
    with directory.lock():
        yield directory


def _table(rows: int) -> Table:
    table = Table(x=torch.zeros(0, 50), n=torch.zeros(0, dtype=torch.int64))
    table.reserve(rows, rows)
    _put(table, torch.arange(rows), 0)
    return table


def _put(table: Table, places: Tensor, value: int) -> None:
    table["x"][places], table["n"][places] = float(value), value
    table.changed(places)


def _save(store: CheckpointStore, state: Any, records: int = 0) -> CheckpointInfo:
    return store.save({"memory": state}, offsets={"main/0": records}, records=records, config={}, environment={})


def _segments(directory: StateDirectory, info: CheckpointInfo) -> dict[str, os.stat_result]:
    folder = directory.checkpoints / str(info.id) / "rows"
    return {file.name: file.stat() for file in folder.iterdir()} if folder.exists() else {}


def _written(directory: StateDirectory, info: CheckpointInfo) -> int:
    """Bytes of the segments that this checkpoint, the newest, has alone."""
    return sum(stat.st_size for stat in _segments(directory, info).values() if stat.st_nlink == 1)


def _read(directory: StateDirectory) -> Any:
    reader = CheckpointStore(directory, read_only=True)
    found = reader.latest()
    reader.close()
    assert found is not None
    assert found.skipped == {}
    return found.tree["memory"]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, StoredRows):
        return _same(dict(one.columns), dict(other.columns))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_what_has_not_changed_is_not_written_again(directory: StateDirectory) -> None:
    """Of a table of 400 rows of which three changed three are written; where nothing changed, nothing is."""
    store, table = CheckpointStore(directory), _table(400)
    row = table.row_bytes + 8
    assert _written(directory, _save(store, table.rows(400))) > 400 * 200
    _put(table, torch.tensor([5, 77, 300]), 1)
    assert 3 * 200 < _written(directory, _save(store, table.rows(400))) < 3 * row + 1_000
    assert _written(directory, _save(store, table.rows(400))) == 0
    assert _same(_read(directory), table.rows(400))
    store.close()


def test_a_save_that_failed_takes_nothing_with_it(directory: StateDirectory) -> None:
    """What changed before it is written by the next one."""
    store, table = CheckpointStore(directory), _table(100)
    _save(store, table.rows(100))
    _put(table, torch.tensor([5]), 1)
    with pytest.raises(Exception, match="got object"):
        _save(store, [table.rows(100), object()])
    _save(store, table.rows(100))
    assert _same(_read(directory), table.rows(100))
    store.close()


def test_what_is_true_no_more_takes_as_much_again_at_most(directory: StateDirectory) -> None:
    """However often rows change, a checkpoint has twice its rows and a few files."""
    store, table, dice = CheckpointStore(directory, keep=2), _table(300), torch.Generator().manual_seed(0)
    for turn in range(40):
        _put(table, torch.randint(300, (20,), generator=dice), turn)
        stats = _segments(directory, _save(store, table.rows(300)))
        assert sum(stat.st_size for stat in stats.values()) < 2 * 300 * 220 + 400 * len(stats)
        assert len(stats) < 3 + 2 * 21 + 21
    assert _same(_read(directory), table.rows(300))
    store.close()


@settings(max_examples=12)
@given(seed=st.integers(0, 1000))
def test_what_is_read_is_what_was_saved_last(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Whatever comes between checkpoints: records, classes, teachers, rows that go, restarts."""
    directory = StateDirectory(tmp_path_factory.mktemp("state"))
    dice = random.Random(seed)
    events = dice.choices(["records", "records", "save", "save", "class", "teacher", "restart"], k=20)
    target, classes, slots = Memory(None, 0.2, 4, 0, bytes=20_000), 2, 0
    with directory.lock():
        store = CheckpointStore(directory, keep=2)
        for number, event in enumerate(["records", "save", *events, "save"]):
            classes, slots = classes + (event == "class"), min(4, slots + (event == "teacher"))
            target.open(slots)
            target.grow(classes)
            if event == "records":
                _show(target, number, classes)
            if event == "save":
                state = target.state_dict()
                _save(store, state)
                assert _same(_read(directory), state)
            if event == "restart":
                store.close()
                store, target = CheckpointStore(directory, keep=2), Memory(None, 0.2, 4, 9, bytes=20_000)
                found = store.latest()
                assert found is not None
                target.load_state_dict(found.tree["memory"], CPU)
                classes, slots = target.replayed.logits.shape[1], target.replayed.slots
        store.close()


def _show(target: Memory, seed: int, classes: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (30,), generator=dice)
    target.insert(torch.rand(30, 9, generator=dice), y, 0, torch.rand(30, classes, generator=dice))
    if target.replayed.slots and (sample := target.sample(8)) is not None:
        every = torch.ones(len(sample.y), dtype=torch.bool)
        sample.answer(0, every, torch.rand(len(sample.y), target.replayed.logits.shape[1], generator=dice), seed + 1)


def test_after_a_restart_the_files_are_gone_on_from(directory: StateDirectory) -> None:
    """What was read is not written again."""
    store, table = CheckpointStore(directory), _table(200)
    _save(store, table.rows(200))
    store.close()
    again, other = CheckpointStore(directory), Table(x=torch.zeros(0, 50), n=torch.zeros(0, dtype=torch.int64))
    found = again.latest()
    assert found is not None
    other.load(found.tree["memory"], 200)
    _put(other, torch.tensor([7]), 3)
    assert _written(directory, _save(again, other.rows(200))) < 1_000
    assert _same(_read(directory), other.rows(200))
    again.close()


def test_a_checkpoint_is_whole_by_itself(directory: StateDirectory) -> None:
    """Without the folders of those before it is read all the same, and goes on."""
    store, table = CheckpointStore(directory, keep=1), _table(200)
    for turn in range(4):
        _put(table, torch.tensor([turn]), turn)
        info = _save(store, table.rows(200))
        assert [folder.name for folder in directory.checkpoints.iterdir()] == [str(info.id)]
        assert _same(_read(directory), table.rows(200))
    store.close()


def test_where_there_are_no_links_all_is_written(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file system without them is said, and costs the whole table each time."""

    def refuse(*names: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    store, table = CheckpointStore(directory), _table(200)
    whole = _written(directory, _save(store, table.rows(200)))
    monkeypatch.setattr(os, "link", refuse)
    with caplog.at_level(logging.WARNING):
        assert _written(directory, _save(store, table.rows(200))) == whole
    assert "written anew" in caplog.text
    assert _same(_read(directory), table.rows(200))
    store.close()


def test_a_damaged_segment_is_found(directory: StateDirectory) -> None:
    """Every checkpoint that has it is damaged; one that is older than it is gone on from."""
    store, table = CheckpointStore(directory), _table(200)
    first = _save(store, table.rows(200), 1)
    _put(table, torch.tensor([7]), 3)
    second = _save(store, table.rows(200), 2)
    [new] = set(_segments(directory, second)) - set(_segments(directory, first))
    (directory.checkpoints / str(second.id) / "rows" / new).write_bytes(b"else")
    found = store.latest()
    assert found is not None
    assert (found.info.records, [*found.skipped]) == (1, [second.id])
    old = next(iter(_segments(directory, first)))
    (directory.checkpoints / str(first.id) / "rows" / old).write_bytes(b"else")
    with pytest.raises(CheckpointDamaged, match="no checkpoint is whole"):
        store.latest()
    store.close()


KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from streamkd.replay.table import Table
from streamkd.state import files, segments, tree
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
tree.WHOLE_BYTES, segments.SEGMENT_BYTES, segments.SPARE = 1_000, 3_000, 3

def put(table, places, value):
    table["n"][places] = value
    table.changed(torch.tensor(places))

def save(store, table, records):
    store.save({"rows": table.rows(300)}, offsets={"a": records}, records=records, config={}, environment={})

def dying(of, name, moments):
    real = getattr(of, name)
    def call(*arguments, **options):
        moments.append(1)
        if len(moments) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(of, name, call)

directory, at, killed = StateDirectory(sys.argv[1]), 0, True
with directory.lock():
    while killed:
        at += 1
        child = os.fork()
        if not child:
            store = CheckpointStore(directory, keep=2)
            found, table = store.latest(), Table(n=torch.zeros(0, 4, dtype=torch.int64))
            if found is None:
                table.reserve(300, 300)
                put(table, [*range(300)], 1)
            else:
                table.load(found.tree["rows"], 300)
            records = found.info.records if found else 0
            save(store, table, records + 1)
            put(table, [records % 300, 7 * records % 300], records + 1)
            moments = []
            for of, name in ((os, "link"), (os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "unlink"), (os, "rmdir")):
                dying(of, name, moments)
            save(store, table, records + 2)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        store = CheckpointStore(directory, keep=2)
        found = store.latest()
        assert not found.skipped
        n, records = found.tree["rows"].columns["n"], found.info.records
        print(at, records, bool((n > 0).all()))
        assert sorted(p.name for p in directory.checkpoints.iterdir()) == sorted(str(i.id) for i in store.list())
        store.close()
"""


def test_a_kill_between_any_two_writes_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """At every link, sync, rename and removal of a save: the newest is whole, none goes back, nothing is left over."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rounds = [line.split() for line in done.stdout.splitlines()]
    assert len(rounds) > 20
    records = [int(line[1]) for line in rounds]
    assert records == sorted(records)
    assert all(line[2] == "True" for line in rounds)
