"""The log: what was appended is on disk, once, and is read exactly."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkd.errors import LogDamaged, Overloaded, SourceError, StateConflict, StateError
from streamkd.records import InputColumn, RecordSchema, Reject
from streamkd.streams.log.database import PAGE_BYTES
from streamkd.streams.log.log import Entry, Log, LogSource
from streamkd.streams.log.paces import Gear
from streamkd.streams.log.receipts import SequenceConflict, digest

Pictures = Callable[..., pa.RecordBatch]


@pytest.fixture
def log(tmp_path: Path, schema: RecordSchema) -> "Log":
    return Log(tmp_path / "log.sqlite", schema)


def labels(log: Log, offset: int, limit: int) -> list[int]:
    """The labels of a read; the tests' rows carry their offset as label."""
    return list(log.read(offset, limit).rows.column("label").to_pylist())


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=12),
    reads=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 30)), max_size=8),
)
@settings(max_examples=20)
def test_a_read_is_a_slice_of_everything_appended(
    sizes: list[int], reads: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However the records were batched, offset and limit cut across the batches exactly."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),))
    log = Log(tmp_path_factory.mktemp("log") / "log.sqlite", schema)
    for size in sizes:
        first = log.end()
        names = pa.array(range(first, first + size))
        x = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * size, pa.float32()), 1)
        log.append(pa.RecordBatch.from_arrays([x, names], schema=log.arrow_schema))
    total = sum(sizes)
    for offset, limit in reads:
        chunk = log.read(offset, limit)
        assert chunk.rows.column("label").to_pylist() == list(range(total))[offset : offset + limit]
        assert chunk.next_offset == offset + chunk.rows.num_rows
    log.close()


def test_small_reads_follow_appends_from_another_process_side(
    log: Log, schema: RecordSchema, pictures: Pictures
) -> None:
    """A reader opened for reading only sees each append, and nothing before it is complete."""
    reader = Log(log.path, schema, read_only=True)
    assert labels(reader, 0, 10) == []
    seen: list[int] = []
    for first in range(0, 30, 6):
        log.append(pictures(6, first=first))
        while new := labels(reader, len(seen), 4):
            seen += new
    assert seen == list(range(30))
    with pytest.raises(StateError, match="reading only"):
        reader.append(pictures(1))


def test_everything_is_there_after_reopening(log: Log, schema: RecordSchema, pictures: Pictures) -> None:
    """Rows, end and schema survive; a log can be opened without saying its schema."""
    log.append(pictures(5))
    log.close()
    again = Log(log.path)
    assert again.end() == 5
    assert again.schema == schema
    assert labels(again, 0, 9) == [0, 1, 2, 3, 4]


def test_a_batch_sent_again_is_answered_and_not_stored(log: Log, schema: RecordSchema, pictures: Pictures) -> None:
    """Within one transaction, in the next, and after a restart: the first receipt comes back, marked."""
    one = Entry(pictures(3), "p", 1, digest=digest(pictures(3)))
    twice = log.append_many([one, one])
    assert [receipt.duplicate for receipt in twice] == [False, True]
    assert log.append(pictures(3), "p", 1).duplicate
    log.close()
    again = Log(log.path, schema)
    receipt = again.append(pictures(3), "p", 1)
    assert (receipt.duplicate, receipt.accepted, receipt.offset) == (True, 3, 3)
    assert again.end() == 3


def test_sequences_that_overtake_each_other_are_all_stored(log: Log, pictures: Pictures) -> None:
    """Two connections of one producer may arrive in any order: a lower sequence not seen before is new."""
    for sequence in (5, 3, 4):
        assert not log.append(pictures(1), "p", sequence).duplicate
    assert log.end() == 3


def test_without_producer_and_sequence_nothing_is_deduplicated(log: Log, pictures: Pictures) -> None:
    """The same batch without metadata counts each time; so does the same sequence of another producer."""
    for producer, sequence in ((None, None), (None, None), ("a", 1), ("b", 1)):
        assert not log.append(pictures(2), producer, sequence).duplicate
    assert log.end() == 8


def test_refused_rows_are_written_with_the_batch(log: Log, pictures: Pictures) -> None:
    """A dead letter carries the reason, the row itself, and the offset of the next good record."""
    original = pictures(3)
    receipt = log.append(original.take([0, 2]), "p", 1, [Reject(1, "not_finite", "x: NaN")], original)
    assert (receipt.accepted, receipt.rejected) == (2, 1)
    (letter,) = log.letters.list()
    assert (letter.source, letter.reason, letter.offset) == ("p", "not_finite", 2)
    assert pa.ipc.open_stream(letter.record).read_next_batch() == original.slice(1, 1)


def test_a_batch_that_fails_takes_its_transaction_with_it(log: Log, pictures: Pictures) -> None:
    """All or nothing: the entries before the failing one are not there either."""
    with pytest.raises(AttributeError):
        log.append_many([Entry(pictures(3), "p", 1), Entry(None, "p", 2)])  # type: ignore[arg-type]
    assert log.end() == 0
    assert not log.append(pictures(3), "p", 1).duplicate


def test_a_full_disk_is_back_pressure_and_loses_nothing(log: Log, pictures: Pictures) -> None:
    """When SQLite finds no room the append raises Overloaded, and what was there stays."""
    log.append(pictures(10))
    log.file.writer.execute("PRAGMA max_page_count = 1")  # SQLite keeps it at the pages in use
    with pytest.raises(Overloaded, match="full"):
        log.append(pictures(60_000))
    assert log.end() == 10
    log.file.writer.execute("PRAGMA max_page_count = 1000000")
    assert log.append(pictures(10)).offset == 20


def test_a_full_quota_is_back_pressure(tmp_path: Path, schema: RecordSchema, pictures: Pictures) -> None:
    """Beyond the quota nothing is appended; trimming makes room again."""
    log = Log(tmp_path / "log.sqlite", schema, quota_bytes=1_200_000)
    for _ in range(10):
        log.append(pictures(2_000))
    with pytest.raises(Overloaded, match="bytes"):
        log.append(pictures(20_000))
    end = log.end()
    assert log.trim(end) > 0
    assert log.append(pictures(2_000)).offset == end + 2_000


def test_trim_keeps_what_no_checkpoint_holds_and_the_newest_batch(log: Log, pictures: Pictures) -> None:
    """Whole batches before the offset go; offsets go on; reading what is gone is an error that says so."""
    for first in range(0, 50, 10):
        log.append(pictures(10, first=first))
    assert log.trim(25) == 20
    assert (log.begin(), log.end()) == (20, 50)
    assert labels(log, 25, 3) == [25, 26, 27]
    log.trim(50)
    assert (log.begin(), log.end()) == (40, 50)
    fresh = Log(log.path)
    with pytest.raises(SourceError, match="offset 5 is gone, the log begins at 40"):
        fresh.read(5, 10)


def test_trim_retains_by_bytes_and_age(log: Log, pictures: Pictures) -> None:
    """Batches behind the checkpoint stay while they are young and within the bytes."""
    for first in range(0, 50, 10):
        log.append(pictures(10, first=first))
    assert log.trim(50, retain_bytes=1 << 20, retain_age_seconds=3_600.0) == 0
    assert log.trim(50, retain_bytes=log.bytes_between(20, 50), retain_age_seconds=3_600.0) == 20
    assert log.trim(50, retain_bytes=1 << 20, retain_age_seconds=0.0) == 20


def test_trim_forgets_no_receipts(log: Log, pictures: Pictures) -> None:
    """A batch whose rows are gone is still known when it is sent again."""
    for sequence in range(3):
        log.append(pictures(10), "p", sequence)
    log.trim(30)
    assert log.append(pictures(10), "p", 0).duplicate


def test_another_schema_or_stream_is_refused_with_both_named(log: Log, schema: RecordSchema) -> None:
    """What is in the log cannot be read under another schema."""
    other = schema.model_copy(update={"label_type": "string"})
    with pytest.raises(StateConflict, match="column 'label': was int64, is string"):
        Log(log.path, other)
    with pytest.raises(StateConflict, match=r"'other'.*'main'"):
        Log(log.path, schema, stream="other")


def test_what_is_no_log_is_refused(tmp_path: Path, schema: RecordSchema) -> None:
    """A missing file without a schema, one that somebody is making, another program's, and a file of something else."""
    with pytest.raises(StateError, match="there is no log"):
        Log(tmp_path / "none.sqlite")
    for statements, said in [((), "there is no log"), (["CREATE TABLE theirs (x)"], "is no log of streamkd")]:
        place = tmp_path / f"{len(statements)}.sqlite"
        with contextlib.closing(sqlite3.connect(place)) as other:
            other.execute("PRAGMA journal_mode = WAL")
            for statement in statements:
                other.execute(statement)
            with pytest.raises(StateError, match=said):
                Log(place, read_only=True)
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"not a database" * 100)
    with pytest.raises(StateError, match="cannot be opened"):
        Log(garbage, schema)


def test_the_first_cut_at_a_start_stands(log: Log, schema: RecordSchema, pictures: Pictures) -> None:
    """Cuts survive, and are seen by whoever opens the log next."""
    log.append(pictures(10))
    log.put_cut(0, 7)
    log.put_cut(0, 9)
    assert Log(log.path, schema).cut_at(0) == 7
    assert log.cut_at(7) is None


def test_the_committed_offset_is_remembered(log: Log, schema: RecordSchema) -> None:
    """Before the learner says it again, a restarted ingress knows what needs no room."""
    assert log.committed() == 0
    log.note_committed(40)
    assert Log(log.path, schema).committed() == 40


def test_the_log_is_a_source(log: Log, pictures: Pictures) -> None:
    """One partition named after the stream, never at its end."""
    source = LogSource(log)
    assert (source.partitions, source.finite) == (("main/0",), False)
    log.append(pictures(4))
    assert source.end("main/0") == 4
    assert source.read("main/0", 1, 2).rows.column("label").to_pylist() == [1, 2]
    assert source.tests() == {}


WRITER = """
    import sys
    import pyarrow as pa
    from pathlib import Path
    from streamkd.records import InputColumn, RecordSchema
    from streamkd.streams.log.log import Log

    log = Log(Path(sys.argv[1]), RecordSchema(inputs=(InputColumn(name="x"),)))
    x = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 10, pa.float32()), 1)
    for sequence in range(100_000):
        rows = pa.RecordBatch.from_arrays([x, pa.array([sequence] * 10)], schema=log.arrow_schema)
        print(log.append(rows, "p", sequence).offset, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """After kill -9 in mid-write every offset that was said is there, whole batches only, each sequence once."""
    path = tmp_path / "log.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().split()]
    log = Log(path)
    assert log.end() >= said[-1]
    sequences = log.read(0, log.end()).rows.column("label").to_pylist()
    assert sequences == [sequence for sequence in range(log.end() // 10) for _ in range(10)]


OLD_TABLES = """
    ALTER TABLE batches DROP COLUMN checksum;
    ALTER TABLE receipts DROP COLUMN digest;
    ALTER TABLE receipts DROP COLUMN created;
"""


def test_a_log_of_before_checksums_and_digests_is_read_and_gets_them(
    log: Log, schema: RecordSchema, pictures: Pictures
) -> None:
    """Its batches are read unchecked, its receipts taken for those of the same batch; what is new has both."""
    log.append(pictures(4), "p", 1)
    log.close()
    with contextlib.closing(sqlite3.connect(log.path)) as connection:
        connection.executescript(OLD_TABLES)
    for again in (Log(log.path, read_only=True), Log(log.path, schema)):
        assert labels(again, 0, 9) == [0, 1, 2, 3]
        again.close()
    again = Log(log.path, schema)
    assert again.append(pictures(4, seed=9), "p", 1).duplicate
    again.append(pictures(4), "p", 2)
    with pytest.raises(SequenceConflict):
        again.append(pictures(4, seed=9), "p", 2)
    assert labels(again, 4, 9) == [0, 1, 2, 3]
    again.close()


DAMAGE: list[tuple[str, str, str]] = [
    # title, what happens to the file, what the reader says
    ("a bit of the payload", "UPDATE batches SET payload = flip(payload) WHERE first = 10", "10 to 19 of producer 'p'"),
    (
        "another batch's payload",
        "UPDATE batches SET payload = (SELECT payload FROM batches) WHERE first = 10",
        "10 to 19",
    ),
    ("the count", "UPDATE batches SET count = 9 WHERE first = 10", "10 to 18"),
    ("a batch that is gone", "DELETE FROM batches WHERE first = 10", "10 to 19 is not there"),
    ("a place that moved", "UPDATE batches SET first = 11 WHERE first = 10", "10 to 10 is not there"),
    (
        "a payload of before checksums",
        "UPDATE batches SET payload = substr(payload, 1, 99), checksum = NULL WHERE first = 10",
        "10 to 19 of producer 'p', sequence 1, cannot be read",
    ),
]


@pytest.mark.parametrize(("title", "damage", "said"), DAMAGE, ids=[row[0] for row in DAMAGE])
def test_a_damaged_batch_is_named_and_not_read(
    title: str, damage: str, said: str, log: Log, schema: RecordSchema, pictures: Pictures
) -> None:
    """What is before it can be read; it itself is refused with its offsets, its sender and the ways out."""
    for sequence in range(3):
        log.append(pictures(10, seed=sequence, first=10 * sequence), "p", sequence)
    log.close()
    with contextlib.closing(sqlite3.connect(log.path)) as connection:
        connection.create_function("flip", 1, lambda data: data[:400] + bytes([data[400] ^ 4]) + data[401:])
        connection.execute(damage)
        connection.commit()
    again = Log(log.path, schema)
    before = labels(again, 5, 20)
    assert before == list(range(5, 10))
    with pytest.raises(LogDamaged, match=said) as caught:
        again.read(10, 20)
    assert "--state" in caught.value.fix
    again.close()


def test_a_cut_that_no_batch_can_have_is_damage(log: Log, pictures: Pictures) -> None:
    """One that ends where it begins, or behind the log's end, would have the learner wait for ever."""
    log.append(pictures(10))
    for stop in (0, 11, 2**62):
        log.file.writer.execute("INSERT OR REPLACE INTO cuts (start, stop) VALUES (0, ?)", (stop,))
        with pytest.raises(LogDamaged, match=f"at offset 0 ends at {stop}, the log at 10"):
            log.cut_at(0)


def test_the_log_keeps_the_pace_of_what_it_keeps(log: Log, pictures: Pictures) -> None:
    """Trimmed, the last entry before the first record stays; the later of two at one offset stands."""
    for _ in range(4):
        log.append(pictures(10))
    for start, rows in ((0, 20), (5, 40), (15, 80), (15, 10), (30, 5)):
        log.put_pace(start, Gear(rows, start))
    assert log.trim(20) == 20
    assert log.paces() == [(15, Gear(10, 15)), (30, Gear(5, 30))]


@pytest.mark.parametrize("what", ["rows", "rehearsals"])
def test_a_pace_that_is_not_the_one_that_was_written_is_damage(log: Log, what: str) -> None:
    """It would cut other batches, or take other steps, than were learned."""
    log.put_pace(0, Gear(20, 2))
    with log.file.writing() as writer:
        writer.execute(f"UPDATE paces SET {what} = 40")
    with pytest.raises(LogDamaged, match="from offset 0 on"):
        log.paces()


def test_a_log_that_knows_no_pace_yet_is_taken_up(tmp_path: Path, schema: RecordSchema, log: Log) -> None:
    """One of an older streamkd: its batches were those of the configuration."""
    with log.file.writing() as writer:
        writer.execute("DROP TABLE paces")
    log.close()
    with closing(Log(tmp_path / "log.sqlite", schema)) as again:
        assert (again.paces(), again.file.fault()) == ([], None)


def _overwrite_pages(path: Path, from_page: int) -> None:
    data = bytearray(path.read_bytes())
    for place in range(from_page * PAGE_BYTES, len(data)):
        data[place] = 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("from_page", [0, 1])
def test_broken_pages_are_one_clear_error(from_page: int, log: Log, schema: RecordSchema, pictures: Pictures) -> None:
    """At the start where the first page is broken, else at the first touch: damage, and not a full disk."""
    for sequence in range(50):
        log.append(pictures(100), "p", sequence)
    log.close()
    _overwrite_pages(log.path, from_page)
    uses = [lambda log: log.read(0, 10), lambda log: log.append(pictures(1), "p", 60), lambda log: log.trim(40)]
    for use in uses:
        with pytest.raises(LogDamaged, match=r"cannot be opened|file is damaged"):  # noqa: PT012
            again = Log(log.path, schema)
            use(again)


def test_a_full_disk_at_the_start_is_told_as_such(
    tmp_path: Path, schema: RecordSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that cannot be opened for want of room may be tried again; it is no broken log."""

    def full(path: Path, read_only: bool) -> None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA max_page_count = 1")
        with contextlib.closing(connection):
            connection.execute("CREATE TABLE t (x)")

    monkeypatch.setattr("streamkd.streams.log.file.connect", full)
    with pytest.raises(Overloaded, match="cannot be opened as a log: database or disk is full"):
        Log(tmp_path / "log.sqlite", schema)


def test_trim_keeps_up_with_a_fast_stream(log: Log, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve times as many batches as one transaction forgets are gone after one call, and the newest stays."""
    monkeypatch.setattr("streamkd.streams.log.batches.TRIM_BATCHES", 20)
    for first in range(250):
        log.append(pictures(1, first=first))
    assert log.trim(250) == 249
    assert (log.begin(), log.end()) == (249, 250)
    assert log.trim(250) == 0


def test_a_trim_is_bounded_by_bytes_and_by_time(log: Log, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction takes a batch at least, a call a transaction; what is left the next call forgets."""
    monkeypatch.setattr("streamkd.streams.log.log.TRIM_SECONDS", 0.0)
    monkeypatch.setattr("streamkd.streams.log.batches.TRIM_BYTES", 1)
    for first in range(0, 40, 10):
        log.append(pictures(10, first=first))
    assert [log.trim(35) for _ in range(4)] == [10, 10, 10, 0]
    assert log.begin() == 30
