"""The ledger: whole files whoever is killed, one driver, strangers among the files named, on disks and in buckets."""

import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import _fs, fs

from streamkd.errors import StateConflict, StateError, StateInUse
from streamkd.search import ledger as ledgers
from streamkd.search.ledger import Ledger, Skipped, TrialRecord

HEADER = {"name": "s", "config": {}, "space": {}, "settings": {"trials": 4}, "objectives": {"accuracy": "max"}}


def reading(records: int, accuracy: float) -> dict[str, Any]:
    return {
        "records": records,
        "objectives": {"accuracy": accuracy},
        "per_seed": {"accuracy": [accuracy]},
        "seconds": 1.5,
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Header and trials come back as they were given, by number, also through another object of the same place."""
    ledger = Ledger.create(tmp_path / "s", HEADER)
    first = TrialRecord(11, {"a.b": 0.5, "c": "x"}, "running", (reading(5, 0.25),), worker="w", begun_at=12.5)
    second = TrialRecord(2, {"a.b": 1, "c": None}, "failed", reason="crash: signal 11")
    for record in (first, second):
        ledger.write(record)
    again = Ledger.open(str(tmp_path / "s"))
    assert again.trials() == [second, first]
    assert again.header == ledger.header
    assert again.header | HEADER == again.header
    assert again.header["directory"] == os.getcwd()


def test_a_report_replaces_the_one_before(tmp_path: Path) -> None:
    """A trial has one file, which holds its newest state."""
    ledger = Ledger.create(tmp_path, HEADER)
    for records in (10, 20):
        ledger.write(TrialRecord(0, {}, "running", tuple(reading(r, 0.5) for r in range(10, records + 1, 10))))
    assert [trial.records for trial in ledger.trials()] == [20]
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["00000.json"]


def test_perturbations_are_kept_in_order(tmp_path: Path) -> None:
    """A trial that took another one over knows whose state it has, since when, and the values that it has now."""
    ledger = Ledger.create(tmp_path, HEADER)
    changes = ({"records": 10, "values": {"a": 2.0}, "parent": 3}, {"records": 30, "values": {"a": 2.5}, "parent": 1})
    ledger.write(TrialRecord(0, {"a": 1.0}, "running", parent=1, changes=changes))
    (trial,) = ledger.trials()
    assert (trial.changes, trial.parent, trial.latest) == (changes, 1, {"a": 2.5})


def test_numbers_that_are_none_are_null(tmp_path: Path) -> None:
    """NaN and infinity are written as null: any JSON reader can read the file."""
    ledger = Ledger.create(tmp_path, HEADER)
    ledger.write(TrialRecord(0, {"a": 1}, "failed", (reading(5, math.nan), reading(9, math.inf)), "nan: loss"))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "trials" / "00000.json").read_text(), parse_constant=refuse)
    assert ledger.trials()[0].objective("accuracy") is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("00001.json", ""),
        ("00001.json", '{"number": 1, "values": {"a"'),
        ("00001.json", "[]"),
        ("00001.json", '{"number": 2, "values": {}, "state": "running"}'),
        ("00001.json", '{"number": 1, "values": {}, "state": "asleep"}'),
        ("00001.json", '{"number": 1, "values": {}, "state": "running", "mood": 1}'),
        ("00001.json", '{"number": 1, "values": {}, "state": "running", "readings": [{"records": 5}]}'),
        ("00001.json", '{"number": 1, "values": {}, "state": "running", "changes": 5}'),
        ("00001.json", '{"number": 1, "values": {}, "state": "running", "seconds": null}'),
        (
            "00001.json",
            '{"number": 1, "values": {}, "state": "running", "readings": [{"records": 5, "objectives": {"a": "x"}}]}',
        ),
        ("00001.json", '{"number": "1", "values": {}, "state": "running"}'),
        ("notes.txt", "mine"),
        ("photo.json", "\x00\xff"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_and_left_out(tmp_path: Path, name: str, text: str) -> None:
    """Whatever lies among the trials, those that are whole are read, and the other is named with what is wrong."""
    ledger = Ledger.create(tmp_path, HEADER)
    ledger.write(TrialRecord(0, {"a": 1}, "finished"))
    (tmp_path / "trials" / name).write_text(text, "latin-1")
    trials, skipped = ledger.read()
    assert [trial.number for trial in trials] == [0]
    assert [one.name for one in skipped] == [name]
    assert skipped[0].reason


def test_a_second_search_in_one_place_is_refused(tmp_path: Path) -> None:
    """A header is written once; the error says how to go on with it."""
    Ledger.create(tmp_path, HEADER)
    with pytest.raises(StateInUse, match="--resume"):
        Ledger.create(tmp_path, HEADER)


def test_what_is_no_search_is_refused(tmp_path: Path) -> None:
    """No header, a damaged one, and one of a newer streamkd: each is said."""
    with pytest.raises(StateError, match="no search directory"):
        Ledger.open(tmp_path)
    assert not ledgers.exists(tmp_path)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(StateError, match="not the header"):
        Ledger.open(tmp_path)
    (tmp_path / "search.json").write_text('{"schema": 99}')
    with pytest.raises(StateConflict, match="99"):
        Ledger.open(tmp_path)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A file where a folder should be, and a URI of no known kind, are errors of ours that name the place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file"):
        Ledger.create(tmp_path / "file" / "s", HEADER)
    with pytest.raises(StateError, match="nowhere://x"):
        Ledger.create("nowhere://x/y", HEADER)


DRIVER = """
import sys, time
from streamkd.search.ledger import Ledger
with Ledger.open(sys.argv[1]).lock():
    print("mine", flush=True)
    time.sleep(60)
"""


def test_two_drivers_of_one_search_are_refused(tmp_path: Path) -> None:
    """The second is told the first one's process id; when that is killed, the search is free again."""
    ledger = Ledger.create(tmp_path, HEADER)
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "mine\n"
        with pytest.raises(StateInUse, match=f"process {driver.pid} "), ledger.lock():
            pass
        driver.kill()
        driver.wait()
    with ledger.lock():
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


WRITER = """
import sys
from streamkd.search.ledger import Ledger, TrialRecord
ledger = Ledger.open(sys.argv[1])
count = int(sys.argv[2])
while True:
    count += 1
    text = str(count) * 20_000
    ledger.write(TrialRecord(7, {"count": count, "text": text}, "running"))
    print(count, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """Ten writers, each killed with -9 at a random moment: the file is whole, and no write that returned is lost."""
    ledger = Ledger.create(tmp_path, HEADER)
    dice, said = random.Random(5), 0
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(said)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(dice.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
            lines = writer.stdout.read().split("\n")[:-1]
        said = max([said + 1, *map(int, lines)])
        trials, skipped = ledger.read()
        count = trials[0].values["count"]
        assert skipped == []
        assert trials[0].values["text"] == str(count) * 20_000
        assert count in (said, said + 1)
        said = count
    with ledger.lock():
        assert [path.name for path in (tmp_path / "trials").iterdir()] == ["00007.json"]


def memory() -> fs.FileSystem:
    return _fs._MockFileSystem()


def subtree(tmp_path: Path) -> fs.FileSystem:
    return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())


@pytest.mark.parametrize("kind", ["memory", "subtree"])
def test_a_ledger_lives_on_any_file_system(tmp_path: Path, kind: str) -> None:
    """Through pyarrow's file systems it gives what it gives on a disk: trials, strangers, one header."""
    files = memory() if kind == "memory" else subtree(tmp_path)
    ledger = Ledger.create("bucket/searches/s", HEADER, files)
    for state in ("running", "finished"):
        ledger.write(TrialRecord(3, {"a": 1}, state, (reading(5, 0.5),)))
    ledger.store.write("trials/00004.json", b"{")
    with ledger.lock():
        trials, skipped = Ledger.open("bucket/searches/s", files).read()
    assert [(trial.number, trial.state) for trial in trials] == [(3, "finished")]
    assert skipped == [Skipped("00004.json", "is empty or cut off")]
    with pytest.raises(StateInUse):
        Ledger.create("bucket/searches/s", HEADER, files)
    assert not ledgers.exists("bucket/searches/t", files)


def test_a_uri_of_a_disk_is_that_disk(tmp_path: Path) -> None:
    """``file://`` has the lock and the durable writes of a folder."""
    ledger = Ledger.create(f"file://{tmp_path}/s", HEADER)
    ledger.write(TrialRecord(0, {}))
    assert Ledger.open(tmp_path / "s").trials() == ledger.trials()
    with ledger.lock(), pytest.raises(StateInUse), Ledger.open(tmp_path / "s").lock():
        pass


def test_a_ledger_goes_to_other_processes(tmp_path: Path) -> None:
    """A copy that was pickled writes to the same place."""
    ledger = Ledger.create(tmp_path, HEADER)
    pickle.loads(pickle.dumps(ledger)).write(TrialRecord(1, {"a": 1}))
    assert [trial.number for trial in ledger.trials()] == [1]
