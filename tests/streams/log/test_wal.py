"""What would be lost of a write-ahead log: told where SQLite would read less than was committed, and nowhere else."""

import contextlib
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from streamkd.errors import LogDamaged, StateError
from streamkd.records import InputColumn, RecordSchema
from streamkd.state.directory import StateDirectory
from streamkd.streams.log.database import note
from streamkd.streams.log.log import Log
from streamkd.streams.log.wal import left_out

COMMITS = 30
SCHEMA = RecordSchema(inputs=(InputColumn(name="x"),))


def connection(path: Path, page_bytes: int = 4096) -> sqlite3.Connection:
    made = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    made.execute(f"PRAGMA page_size = {page_bytes}")
    made.execute("PRAGMA journal_mode = WAL")
    made.execute("PRAGMA synchronous = FULL")
    made.execute("CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b BLOB)")
    return made


def put(writer: sqlite3.Connection, commits: int, size: int = 3_000) -> None:
    """One row a commit."""
    for _ in range(commits):
        writer.execute("INSERT INTO t (b) VALUES (?)", (os.urandom(size),))


def copied(path: Path, to: str, parts: Sequence[str] = ("", "-wal", "-shm")) -> Path:
    """The files as a kill leaves them."""
    target = path.with_name(to) / path.name
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    for part in parts:
        if path.with_name(path.name + part).exists():
            shutil.copy(path.with_name(path.name + part), target.with_name(path.name + part))
    return target


def held(path: Path) -> int:
    """How many rows SQLite reads."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as reader:
        return int(reader.execute("SELECT count(*) FROM t").fetchone()[0])


def wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << (place % 8)
    file.write_bytes(data)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Path]:
    """A database whose commits are all in its log."""
    with contextlib.closing(connection(tmp_path / "a.sqlite")) as writer:
        put(writer, COMMITS)
        yield tmp_path / "a.sqlite"


@pytest.mark.parametrize("page_bytes", [512, 4096, 16_384, 65_536])
def test_nothing_is_left_out_of_a_whole_log(tmp_path: Path, page_bytes: int) -> None:
    """Whatever a writer did: several rounds of the log, transactions taken back, large ones, one cut off by a kill."""
    path = tmp_path / "a.sqlite"
    assert left_out(path) is None
    with contextlib.closing(connection(path, page_bytes)) as writer:
        writer.execute("PRAGMA cache_size = 4")  # what is not committed goes to the log too
        for number in range(20):
            put(writer, 7)
            writer.execute("BEGIN")
            put(writer, 60)
            assert left_out(copied(path, "killed")) is None
            assert left_out(copied(path, "killed", ("", "-wal"))) is None
            writer.execute(["ROLLBACK", "COMMIT"][number % 2])
            put(writer, 1)
            if not number % 5:
                writer.execute(f"PRAGMA wal_checkpoint({['PASSIVE', 'RESTART', 'TRUNCATE'][number % 3]})")
            assert left_out(path) is None
            assert left_out(copied(path, "killed", ("", "-wal"))) is None
    assert not wal(path).exists()
    assert left_out(path) is None


def test_whatever_sqlite_would_not_read_is_told(live: Path) -> None:
    """A bit anywhere in the log: told where fewer rows would be read, silent where all are."""
    dice, whole = random.Random(2), held(copied(live, "whole"))
    told = 0
    for _ in range(60):
        path = copied(live, "hurt")
        flip(wal(path), dice.randrange(wal(path).stat().st_size))
        said = left_out(path)
        assert (said is not None) == (held(path) < whole), said
        told += said is not None
    assert told > 50


def test_it_is_told_of_a_copy_without_shared_memory_too(live: Path) -> None:
    """A backup, or a file that somebody has looked into since: two commits more than a power failure can tear."""
    dice, whole = random.Random(3), held(copied(live, "whole"))
    for _ in range(60):
        path = copied(live, "hurt", ("", "-wal"))
        flip(wal(path), dice.randrange(wal(path).stat().st_size))
        held_now = sqlite_rows_or_none(path)
        said = left_out(path)
        if held_now < whole - 2:
            assert said is not None, held_now
        if held_now == whole:
            assert said is None, said


def sqlite_rows_or_none(path: Path) -> int:
    """How many rows a copy of the files holds; none where even the table is lost."""
    try:
        return held(copied(path, "looked", ("", "-wal")))
    except sqlite3.DatabaseError:
        return 0


def test_a_torn_last_commit_is_none(live: Path) -> None:
    """What a power failure leaves of a commit that nobody was told of."""
    path = copied(live, "torn", ("", "-wal"))
    flip(wal(path), wal(path).stat().st_size - 100)
    assert left_out(path) is None
    assert held(path) == COMMITS - 1


@pytest.mark.parametrize("kept", [0, 31, 32, 4_000, 40_000])
def test_a_log_that_was_cut_off_is_told(live: Path, kept: int) -> None:
    """Of a log that ends too early the shared memory knows."""
    path = copied(live, "cut")
    os.truncate(wal(path), kept)
    said = left_out(path)
    assert said is not None
    assert "that were committed" in said


def test_a_missing_log_is_told(live: Path) -> None:
    """Gone with all that is nowhere else."""
    path = copied(live, "gone", ("", "-shm"))
    assert "is missing, with" in str(left_out(path))


def test_a_damaged_header_is_told(live: Path) -> None:
    """Then SQLite reads nothing of the log at all."""
    for place in range(32):
        path = copied(live, "header", ("", "-wal"))
        flip(wal(path), place)
        assert "header" in str(left_out(path))
    os.truncate(wal(path), 32)  # before its first frame
    assert left_out(path) is None


def test_damaged_shared_memory_tells_nothing(live: Path) -> None:
    """It is made again from the log."""
    for place in range(100):
        path = copied(live, "memory")
        flip(path.with_name("a.sqlite-shm"), place)
        assert left_out(path) is None or place >= 96  # how much is in the file itself has no checksum
        assert held(path) == COMMITS


def test_it_is_silent_while_another_writes(tmp_path: Path) -> None:
    """Frames that are being written, and logs that begin again, are no damage."""
    path, done = tmp_path / "a.sqlite", threading.Event()
    with contextlib.closing(connection(path)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 8")

        def write() -> None:
            for number in range(300):
                put(writer, 1, 2_000 + 40_000 * (number % 3))
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        said = []
        while not done.is_set():
            said.append(left_out(path))
        thread.join()
    assert {*said} == {None}
    assert len(said) > 20


@pytest.mark.parametrize("read_only", [True, False])
def test_a_damaged_log_is_not_opened(tmp_path: Path, read_only: bool) -> None:
    """Neither to be read, for fewer records would be told, nor to be written, which would lie over the others."""
    log = Log(tmp_path / "log.sqlite", SCHEMA)
    for number in range(5):
        x = pa.FixedSizeListArray.from_arrays(pa.array([float(number)], pa.float32()), 1)
        log.append(pa.RecordBatch.from_arrays([x, pa.array([number])], schema=log.arrow_schema))
    path = copied(tmp_path / "log.sqlite", "killed")
    log.close()
    flip(wal(path), wal(path).stat().st_size // 2)
    before = wal(path).read_bytes()
    with pytest.raises(LogDamaged, match=r"log\.sqlite-wal is damaged|whole frames"):
        Log(path, SCHEMA, read_only)
    assert wal(path).read_bytes() == before


@pytest.mark.parametrize("read_only", [True, False])
def test_a_damaged_database_is_not_opened(tmp_path: Path, read_only: bool) -> None:
    """A lost row would serve another version than the one that was pinned."""
    directory = StateDirectory(tmp_path / "state")
    with directory.lock(), contextlib.closing(directory.connect()) as writer:
        note(writer, "log", "main/0")
        killed = StateDirectory(copied(directory.database, "killed").parent)
    flip(wal(killed.database), wal(killed.database).stat().st_size - 50)
    with pytest.raises(StateError, match=r"state\.sqlite-wal"):
        killed.connect(read_only)


def test_what_stands_before_the_damage_can_be_kept(live: Path) -> None:
    """By the way that deploy/README.md gives."""
    path = copied(live, "hurt")
    flip(wal(path), wal(path).stat().st_size // 2)
    assert left_out(path) is not None
    with contextlib.closing(sqlite3.connect(path)) as keeper:
        keeper.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert left_out(path) is None
    assert 0 < held(path) < COMMITS
