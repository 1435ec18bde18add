"""The envelope: what an IPC stream declares, known before it is decoded."""

import contextlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkd.errors import LimitExceeded, RecordError
from streamkd.streams.ingest.envelope import check_stream

NO_LIMIT = 1 << 40


def stream(*batches: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_rows_and_unpacked_bytes_are_declared(compression: str | None) -> None:
    """The sum over all batches, packed or not, is at least what the values take."""
    batch = pa.record_batch({"x": np.zeros(10_000), "y": pa.array(["text"] * 10_000)})
    declared = check_stream(stream(batch, batch, compression=compression), NO_LIMIT, NO_LIMIT)
    assert declared.rows == 20_000
    assert 2 * batch.nbytes <= declared.held_bytes <= 2.1 * batch.nbytes


def test_a_bomb_is_refused_without_unpacking() -> None:
    """A few KB that would become 80 MB."""
    bomb = stream(pa.record_batch({"x": np.zeros(10_000_000)}), compression="zstd")
    assert len(bomb) < 20_000
    with pytest.raises(LimitExceeded, match="bytes unpacked, at most 1000000"):
        check_stream(bomb, NO_LIMIT, 1_000_000)


def test_rows_that_take_no_bytes_are_counted() -> None:
    """A column of nulls can declare any number of rows in 500 bytes."""
    endless = stream(pa.record_batch({"x": pa.nulls(2**31 - 1)}))
    assert len(endless) < 1_000
    with pytest.raises(LimitExceeded, match="2147483647 rows"):
        check_stream(endless, 65_536, NO_LIMIT)


def test_dictionaries_count_their_bytes() -> None:
    """They are messages of their own; their rows are none of the batch's."""
    batch = pa.record_batch({"x": pa.array(["a" * 1_000] * 5).dictionary_encode()})
    declared = check_stream(stream(batch), NO_LIMIT, NO_LIMIT)
    assert declared.rows == 5
    assert declared.held_bytes >= 1_000


def test_bytes_after_the_end_are_refused() -> None:
    """A second stream behind the first would be lost silently."""
    one = stream(pa.record_batch({"x": [1]}))
    with pytest.raises(RecordError, match="after the end of the stream"):
        check_stream(one + stream(pa.record_batch({"y": ["other"]})), NO_LIMIT, NO_LIMIT)


@pytest.mark.parametrize("data", [b"not arrow at all", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"PAR1" * 10])
def test_what_is_not_arrow_is_refused(data: bytes) -> None:
    """With the first bytes shown."""
    with pytest.raises(RecordError, match="needed an Arrow IPC stream"):
        check_stream(data, NO_LIMIT, NO_LIMIT)


@given(place=st.integers(0, 500), value=st.integers(0, 255), cut=st.integers(0, 600))
def test_a_damaged_stream_is_refused_or_declares_something(place: int, value: int, cut: int) -> None:
    """Whatever byte is wrong and wherever it breaks off: an answer or a RecordError, never another error."""
    data = bytearray(stream(pa.record_batch({"x": np.arange(5)}), compression="zstd"))
    data[place % len(data)] = value
    with contextlib.suppress(RecordError):
        check_stream(bytes(data[: len(data) - cut]), 1_000, 1_000_000)
