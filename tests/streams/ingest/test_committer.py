"""The committer: whatever fails, nobody waits for ever, and a bad batch hurts itself alone."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from streamkd.errors import LogDamaged, NotReady
from streamkd.records import RecordSchema
from streamkd.streams.ingest.committer import Committer
from streamkd.streams.log.log import Entry, Log, PutStream
from streamkd.streams.log.receipts import SequenceConflict, digest

Pictures = Callable[..., pa.RecordBatch]


@pytest.fixture
def log(tmp_path: Path, schema: RecordSchema) -> Iterator[Log]:
    opened = Log(tmp_path / "log.sqlite", schema)
    yield opened
    opened.close()


@pytest.fixture
def died(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What left a thread: in a server's process it would end the process."""
    found: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: found.append(what.exc_value))
    return found


class Gate:
    """Holds the committer back while a group gathers."""

    def __init__(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        append = log.append_many
        monkeypatch.setattr(log, "append_many", lambda entries: self._open.wait(10) and append(entries))

    def open(self) -> None:
        self._open.set()


def test_a_batch_that_cannot_be_written_hurts_itself_alone(
    log: Log, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error nobody expected, of one batch in a group: its sender is told, the others' batches are written."""
    gate = Gate(log, monkeypatch)
    committer = Committer(log, lambda entry, receipt: None)
    broken = pa.record_batch({"x": pictures(2).column("x")})
    monkeypatch.setattr(log.letters, "put", lambda letters, offset: 1 / 0 if letters else None)
    first = committer.submit(Entry(pictures(1)))
    group = [committer.submit(Entry(pictures(2), letters=letters)) for letters in ((), (broken,), ())]
    gate.open()
    assert [future.result(10).offset for future in (first, group[0], group[2])] == [1, 3, 5]
    with pytest.raises(ZeroDivisionError):
        group[1].result(10)
    committer.close()


def test_a_committer_that_dies_leaves_nobody_waiting(
    log: Log, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, died: list[Any]
) -> None:
    """Its error leaves the thread; all that wait, and whoever comes after, are told to send again."""
    gate = Gate(log, monkeypatch)
    written: list[Any] = []

    def fail(entry: Entry, receipt: Any) -> None:
        written.append(receipt)
        raise ArithmeticError("date value out of range")

    committer = Committer(log, fail)
    futures = [committer.submit(Entry(pictures(1))) for _ in range(5)]
    gate.open()
    for future in futures:
        with pytest.raises(NotReady, match="shutting down"):
            future.result(10)
    committer.close()
    assert [type(fault) for fault in died] == [ArithmeticError]
    with pytest.raises(NotReady):
        committer.submit(Entry(pictures(1)))


def test_a_damaged_file_ends_the_committer(
    log: Log, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, died: list[Any]
) -> None:
    """No later batch could be written either: the error leaves the thread as it is, for the process to tell."""

    def damaged(entries: Any) -> Any:
        raise LogDamaged("broken")

    monkeypatch.setattr(log, "append_many", damaged)
    committer = Committer(log, lambda entry, receipt: None)
    with pytest.raises(NotReady):
        committer.submit(Entry(pictures(1))).result(10)
    committer.close()
    assert [type(fault) for fault in died] == [LogDamaged]


def test_a_conflict_stops_its_line_and_nobody_else(
    log: Log, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind it on the same put stream is not written; other senders in the same group are."""
    log.append(pictures(3), "day", 0)
    gate = Gate(log, monkeypatch)
    committer = Committer(log, lambda entry, receipt: None)
    put_stream = PutStream()
    other = pictures(3, seed=1)
    entries = [Entry(other, "day", n, digest=digest(other), put_stream=put_stream) for n in range(3)]
    futures = [committer.submit(entry) for entry in [*entries[:2], Entry(pictures(1))]]
    gate.open()
    assert futures[2].result(10).offset == 4
    futures[2] = committer.submit(entries[2])
    for future in futures:
        with pytest.raises(SequenceConflict, match="sequence 0 of producer 'day' was used"):
            future.result(10)
    committer.close()
    assert log.end() == 4
