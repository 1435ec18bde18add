"""Dead letters: what is kept of a refused row, and how much."""

import sqlite3

import pyarrow as pa
import pytest

from streamkd.records import Reject
from streamkd.streams.log.dead_letters import DeadLetter, DeadLetters, letters


@pytest.fixture
def connection() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def table(connection: sqlite3.Connection, **bounds: int) -> DeadLetters:
    made = DeadLetters(connection, **bounds)
    made.create()
    return made


def test_a_row_comes_back_with_its_reason_and_place(connection: sqlite3.Connection) -> None:
    """The record is the row alone, as Arrow, with the columns it came with."""
    rows = pa.record_batch({"x": pa.array([1.0, None]), "other": pa.array(["a", "b"])})
    dead = table(connection)
    dead.put(letters([Reject(1, "missing_input", "x: null")], rows, "p", [10, 11]))
    (letter,) = dead.list()
    assert (letter.source, letter.reason, letter.detail, letter.offset) == ("p", "missing_input", "x: null", 11)
    assert pa.ipc.open_stream(letter.record).read_next_batch() == rows.slice(1, 1)


def test_letters_roll_back_with_the_transaction(connection: sqlite3.Connection) -> None:
    """The caller's transaction is theirs too."""
    dead = table(connection)
    connection.execute("BEGIN")
    dead.put([DeadLetter("p", "decode", "broken")])
    connection.execute("ROLLBACK")
    assert (dead.count(), dead.total()) == (0, 0)


def test_letters_are_listed_in_pages(connection: sqlite3.Connection) -> None:
    """The id of the last one goes on."""
    dead = table(connection)
    dead.put([DeadLetter("p", "decode", str(number)) for number in range(5)])
    first = dead.list(limit=3)
    assert [letter.detail for letter in first] == ["0", "1", "2"]
    assert [letter.detail for letter in dead.list(after=first[-1].id)] == ["3", "4"]


def test_the_newest_are_kept_by_count_and_by_bytes(connection: sqlite3.Connection) -> None:
    """A flood pushes the oldest out; the total still counts them."""
    dead = table(connection, keep=10, keep_bytes=1_000)
    for number in range(30):
        dead.put([DeadLetter("p", "decode", str(number), record=b"x" * 10)])
    assert (dead.count(), dead.total()) == (10, 30)
    for number in range(5):
        dead.put([DeadLetter("p", "decode", f"large {number}", record=b"x" * 400)])
    assert [letter.detail for letter in dead.list()] == ["large 3", "large 4"]


def test_a_row_that_is_too_large_leaves_no_record() -> None:
    """Its reason is kept, its bytes are not."""
    rows = pa.record_batch({"x": pa.array(["a" * 2_000_000])})
    assert letters([Reject(0, "too_large", "2 MB")], rows, "p")[0].record is None
    assert letters([Reject(0, "missing_label", "null")], rows, "p")[0].record is None


def test_a_row_does_not_bring_its_batch_s_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a megabyte of words a letter has its own; and past a batch's bytes the letters have their reason alone."""
    words = pa.array([f"{number:01000}" for number in range(1_000)]).dictionary_encode()
    rejects = [Reject(row, "decode", "") for row in range(1_000)]
    rows = pa.record_batch({"text": words})
    made = letters(rejects, rows, "p")
    assert sum(len(letter.record or b"") for letter in made) < 2_500_000
    assert pa.ipc.open_stream(made[7].record).read_next_batch().column("text").to_pylist() == [f"{7:01000}"]
    monkeypatch.setattr("streamkd.streams.log.dead_letters.BATCH_BYTES", 10_000)
    kept = [letter for letter in letters(rejects, rows, "p") if letter.record is not None]
    assert 1 < len(kept) < 10
