"""The intake: limits, room, runs of bad rows, and numbers that add up."""

import threading
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkd.errors import LimitExceeded, NotReady, Overloaded, RecordError
from streamkd.records import InputColumn, RecordSchema, Reject
from streamkd.settings import Limits
from streamkd.streams.encoding.contract import in_words
from streamkd.streams.ingest.admission import Sifted, admit_batch, admit_lines
from streamkd.streams.ingest.columns import SentColumns, sent_columns
from streamkd.streams.ingest.intake import BadRun, Intake, _runs

Pictures = Callable[..., pa.RecordBatch]
NUMBER = RecordSchema(inputs=(InputColumn(name="x"),))


def admit(batch: pa.RecordBatch, schema: RecordSchema, **limits: int) -> Sifted:
    return admit_batch(batch, schema, Limits(**limits), "p")


def put(intake: Intake, batch: pa.RecordBatch, sequence: int | None = None, sender: str = "p") -> int:
    sifted = admit_batch(batch, intake.schema, intake.limits, sender)
    return intake.take(sifted, sender if sequence is not None else None, sequence, sender).result(10).offset


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"batch_rows": 9}, "10 rows, at most 9"),
        ({"batch_bytes": 100}, "bytes, at most 100"),
        ({"columns": 1}, "2 col"),
    ],
)
def test_a_batch_past_a_limit_is_refused_whole(
    limits: dict[str, int], said: str, schema: RecordSchema, pictures: Pictures
) -> None:
    """The message names the limit and how to raise it."""
    with pytest.raises(LimitExceeded, match=said) as caught:
        admit(pictures(10), schema, **limits)
    assert f"stream.limits.{next(iter(limits))}" in caught.value.fix


def test_rows_are_counted_before_anything_is_computed() -> None:
    """2³¹ declared rows are refused by their number."""
    batch = pa.record_batch({"x": pa.nulls(2**31 - 1), "label": pa.nulls(2**31 - 1)})
    with pytest.raises(LimitExceeded, match="2147483647 rows"):
        admit(batch, NUMBER)


def test_offsets_that_point_anywhere_are_corrupt() -> None:
    """A list whose offsets run past its values is refused before it is read."""
    offsets = pa.py_buffer(np.array([0, 10_000_000, 1], np.int32))
    x = pa.Array.from_buffers(pa.list_(pa.float32()), 2, [None, offsets], children=[pa.array([1.0], pa.float32())])
    with pytest.raises(RecordError, match="corrupt"):
        admit(pa.record_batch({"x": x, "label": pa.array([1, 2])}), NUMBER)


def test_bad_lines_become_letters_with_the_line(schema: RecordSchema) -> None:
    """JSON that is refused is kept as it came; lines refused while parsing and while sifting keep their places."""
    body = b'{"x": [1, 2, 3, 4, 5, 6], "label": 1}\n\n{"x": [1], "label": 2}\nnonsense\n'
    sifted = admit_lines(body, schema, Limits(), "p")
    assert (sifted.rows.num_rows, sifted.total) == (1, 3)
    assert [(letter.reason, letter.form) for letter in sifted.letters] == [("wrong_shape", "json"), ("decode", "json")]
    assert sifted.letters[1].record == b"nonsense"


def test_what_is_taken_is_in_the_log_and_counted(open_way: Callable, pictures: Pictures) -> None:
    """Records, duplicates and refused rows by reason."""
    way = open_way()
    bad = pictures(4).set_column(1, "label", pa.array([0, None, 2, 3], pa.int64()))
    assert put(way.intake, bad, 0) == 3
    assert put(way.intake, bad, 0) == 3
    assert way.labels() == [0, 2, 3]
    assert way.log.letters.count() == 1
    assert way.counted("source_records_total", "main") == 3
    assert way.counted("records_duplicate_total", "main") == 3
    assert way.counted("records_rejected_total", "main", "missing_label") == 1


def test_a_full_queue_refuses_until_a_checkpoint_makes_room(open_way: Callable, pictures: Pictures) -> None:
    """Records that no checkpoint holds are the queue."""
    way = open_way(queue_records=25)
    for first in (0, 10):
        put(way.intake, pictures(10, first=first))
    with pytest.raises(Overloaded, match="20 records wait to be learned, at most 25"):
        put(way.intake, pictures(10))
    way.intake.committed(10)
    assert put(way.intake, pictures(10, first=20)) == 30


def test_a_full_queue_by_bytes_refuses(open_way: Callable, pictures: Pictures) -> None:
    """A batch that is larger than the whole queue is taken alone."""
    way = open_way(queue_bytes=100)
    put(way.intake, pictures(10))
    with pytest.raises(Overloaded, match="bytes wait"):
        put(way.intake, pictures(1))
    way.intake.committed(10)
    put(way.intake, pictures(1))


def test_the_patient_wait_for_room(open_way: Callable, pictures: Pictures) -> None:
    """Flight's streams stand still and go on when the learner has."""
    way = open_way(queue_records=10)
    put(way.intake, pictures(10))
    later = threading.Timer(0.2, way.intake.committed, [10])
    later.start()
    sifted = admit_batch(pictures(10), way.intake.schema, way.intake.limits, "p")
    assert way.intake.take(sifted, None, None, "p", lambda: True).result(5).offset == 20
    later.join()


def test_a_checkpoint_nobody_told_of_makes_room_too(open_way: Callable, pictures: Pictures) -> None:
    """A message can be lost with its process; the log knows."""
    way = open_way(queue_records=10)
    put(way.intake, pictures(10))
    way.log.note_committed(10)
    assert put(way.intake, pictures(10)) == 20


def test_the_backlog_is_known_after_a_restart(open_way: Callable, pictures: Pictures) -> None:
    """What the log holds beyond the last checkpoint counts at once."""
    first = open_way(queue_records=30)
    put(first.intake, pictures(20))
    first.intake.committed(5)
    first.intake.close()
    with pytest.raises(Overloaded, match="15 records wait"):
        put(open_way(queue_records=30).intake, pictures(20))


def test_the_log_is_trimmed_behind_the_oldest_checkpoint_kept(open_way: Callable, pictures: Pictures) -> None:
    """A damaged checkpoint may fall back to the one before, whose records must be there, and the one before them."""
    way = open_way()
    way.intake._retain = way.intake._retain.model_copy(update={"bytes": 0})
    for first in range(0, 40, 10):
        put(way.intake, pictures(10, first=first))
    way.intake.committed(20, oldest=0)
    assert way.log.begin() == 0
    way.intake.committed(30, oldest=20)
    assert way.log.begin() == 10
    assert way.log.mark(20) is not None
    way.intake.committed(30, oldest=20)  # the learner was started again, and says so again
    assert way.log.begin() == 10


def test_an_event_time_past_all_bounds_hurts_its_row_alone(open_way: Callable) -> None:
    """It is dead-lettered, the others are taken and counted, and the next batch is too."""
    way = open_way(RecordSchema(inputs=(InputColumn(name="x"),), event_time="t"))
    times = pa.array([2_000_000, 2**62, -(2**63)], pa.timestamp("us", "UTC"))
    rows = pa.record_batch({"x": pa.array([1.0, 2.0, 3.0], pa.float32()), "label": pa.array([1, 2, 3]), "t": times})
    assert [put(way.intake, rows, sequence) for sequence in (0, 1)] == [1, 2]
    assert [(letter.reason, letter.source) for letter in way.log.letters.list()] == [("decode", "p")] * 4
    assert ["source_watermark_timestamp_seconds", ["main"], 2.0] in way.recorder.drain()


def test_what_a_trim_has_left_is_gone_on_with(
    open_way: Callable, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call is bounded; ``tidy`` goes on until nothing is left to forget."""
    monkeypatch.setattr("streamkd.streams.log.log.TRIM_SECONDS", 0.0)
    monkeypatch.setattr("streamkd.streams.log.batches.TRIM_BATCHES", 3)
    way = open_way()
    way.intake._retain = way.intake._retain.model_copy(update={"bytes": 0})
    for first in range(20):
        put(way.intake, pictures(1, first=first))
    way.intake.committed(20)
    assert way.log.begin() == 3
    for _ in range(10):
        way.intake.tidy()
    assert way.log.begin() == 19


def test_a_draining_intake_takes_no_more_and_writes_what_it_took(open_way: Callable, pictures: Pictures) -> None:
    """Also those that wait for room are refused then."""
    way = open_way()
    sifted = admit_batch(pictures(5), way.intake.schema, way.intake.limits, "p")
    futures = [way.intake.take(sifted, "p", number, "p") for number in range(20)]
    way.intake.drain()
    with pytest.raises(NotReady):
        put(way.intake, pictures(1))
    way.intake.close()
    assert [future.result(0).offset for future in futures] == list(range(5, 105, 5))


def test_the_patient_are_told_of_a_drain(open_way: Callable, pictures: Pictures) -> None:
    """Who waits for room is refused when the intake drains: before the end there will be none."""
    way = open_way(queue_records=5)
    put(way.intake, pictures(5))
    sifted = admit_batch(pictures(5), way.intake.schema, way.intake.limits, "p")
    threading.Timer(0.1, way.intake.drain).start()
    tries = iter(range(50))
    with pytest.raises(NotReady, match="shutting down"):
        way.intake.take(sifted, None, None, "p", lambda: next(tries, None) is not None)
    assert next(tries, None) is not None


def test_bad_rows_in_a_row_refuse_the_batch(open_way: Callable, pictures: Pictures) -> None:
    """Over several batches; the last is not even dead-lettered; a good row begins anew; others are not touched."""
    way = open_way(bad_in_a_row=5)
    bad = pictures(2).set_column(1, "label", pa.nulls(2, pa.int64()))
    put(way.intake, bad)
    put(way.intake, bad)
    with pytest.raises(BadRun, match="6 refused rows in a row"):
        put(way.intake, bad)
    assert way.log.letters.count() == 4
    put(way.intake, bad, sender="other")
    put(way.intake, pictures(1))
    put(way.intake, bad)


@given(batches=st.lists(st.lists(st.booleans(), max_size=6), max_size=6))
def test_runs_over_batches_equal_runs_over_all_rows(batches: list[list[bool]]) -> None:
    """``True`` is a bad row; the longest run is found wherever the batches were cut."""
    carried = longest = 0
    for batch in batches:
        rejects = [Reject(row, "decode", "") for row, bad in enumerate(batch) if bad]
        found, carried = _runs(carried, Sifted(None, len(batch), rejects))
        longest = max(longest, found)
    flat = "".join("x" if bad else " " for batch in batches for bad in batch)
    assert longest == max((len(run) for run in flat.split(" ")), default=0)


def test_many_threads_write_everything_once(open_way: Callable, pictures: Pictures) -> None:
    """Group commit over eight producers, each resending every batch: all rows, none twice, in order."""
    way = open_way()

    def produce(name: int) -> None:
        for sequence in range(10):
            for _ in range(2):
                put(way.intake, pictures(3, first=name * 1_000 + sequence * 3), sequence, f"p{name}")

    threads = [threading.Thread(target=produce, args=[name]) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = way.labels()
    assert len(labels) == 240
    for name in range(8):
        assert [label for label in labels if label // 1_000 == name] == list(range(name * 1_000, name * 1_000 + 30))


def test_columns_that_were_not_sent_before_are_taken_told_and_kept(
    open_way: Callable, caplog: pytest.LogCaptureFixture, pictures: Pictures
) -> None:
    """A further column and a wider label: the records count, it is said once, and known after a restart."""
    way, rows = open_way(), pictures(3)
    further = rows.append_column("discount", pa.array([0.5] * 3))
    wider = rows.set_column(rows.schema.names.index("label"), "label", rows["label"].cast(pa.int32()))
    assert [put(way.intake, batch) for batch in (rows, further, wider, further)] == [3, 6, 9, 12]
    assert caplog.text.count("columns as they have not come before") == 2
    assert "p sends columns as they have not come before: discount (double)" in caplog.text
    kept = sent_columns(way.log)
    assert (kept["discount"], kept["label"]) == (["double"], ["int64", "int32"])
    assert "sent, and not read: discount (double)" in in_words(kept, way.log.schema)
    SentColumns(way.log).see(further.schema, "p")
    assert caplog.text.count("columns as they have not come before") == 2
