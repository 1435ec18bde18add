"""What an Arrow IPC stream says of itself, read from its messages before anything is decoded.

    bytes ─► messages: metadata (flatbuffer), body ─► rows and unpacked bytes that each declares ─► limits

16 KB of zstd can unpack to 512 MB. A compressed buffer begins with its unpacked length, so the sum is known,
and refused, without unpacking. The tables are ``Message``, ``RecordBatch`` and ``DictionaryBatch`` of the
Arrow columnar format (Message.fbs); fields by their place there.
"""

import struct
from dataclasses import dataclass

import pyarrow as pa

from streamkd.errors import LimitExceeded, RecordError, first_line

_MESSAGE_HEADER = 2
_BATCH_LENGTH, _BATCH_BUFFERS, _BATCH_COMPRESSION = 0, 2, 3
_DICTIONARY_BATCH = 1
_BUFFER_BYTES = 16  # struct Buffer { offset: int64; length: int64 }


@dataclass(frozen=True, slots=True)
class Declared:
    """Rows of all record batches, and bytes of all buffers once they are unpacked."""

    rows: int
    held_bytes: int


def check_stream(data: bytes, rows: int, held_bytes: int) -> Declared:
    """What a whole IPC stream declares, if that is within the limits.

    Raises:
        LimitExceeded: more rows or bytes. RecordError: it is not one whole Arrow IPC stream.
    """
    source = pa.BufferReader(data)
    declared_rows = declared_bytes = 0
    try:
        while True:
            try:
                message = pa.ipc.read_message(source)
            except EOFError:
                break
            if message.type != "schema":
                found = declared(message)
                declared_rows += found.rows
                declared_bytes += found.held_bytes
            if declared_rows > rows:
                raise LimitExceeded(f"{declared_rows} rows, at most {rows}", where="body")
            if declared_bytes > held_bytes:
                raise LimitExceeded(f"{declared_bytes} bytes unpacked, at most {held_bytes}", where="body")
    except (pa.ArrowException, struct.error, OSError, ValueError) as fault:
        said = f"needed an Arrow IPC stream, got {data[:8]!r}... ({first_line(fault)})"
        raise RecordError(said, where="body") from None
    if source.tell() != len(data):
        said = f"{len(data) - source.tell()} bytes after the end of the stream"
        raise RecordError(said, where="body", fix="send one Arrow IPC stream, of one schema, per request")
    return Declared(declared_rows, declared_bytes)


def declared(message: pa.Message) -> Declared:
    """What one message declares that is no schema; where it is none that could be it is a ``ValueError``."""
    table = memoryview(message.metadata)
    batch = _follow(table, _field(table, _offset(table, 0), _MESSAGE_HEADER))
    if message.type == "dictionary":
        batch = _follow(table, _field(table, batch, _DICTIONARY_BATCH))
    place = _field(table, batch, _BATCH_LENGTH)
    rows = struct.unpack_from("<q", table, place)[0] if place else 0
    if rows < 0:
        raise ValueError(f"a batch of {rows} rows")
    body = message.body
    packed = bool(_field(table, batch, _BATCH_COMPRESSION))
    held_bytes = _unpacked(table, batch, memoryview(body)) if packed and body is not None else body.size if body else 0
    return Declared(rows if message.type != "dictionary" else 0, held_bytes)


def _unpacked(table: memoryview, batch: int, body: memoryview) -> int:
    place = _field(table, batch, _BATCH_BUFFERS)
    if not place:
        return 0
    vector = _follow(table, place)
    total = 0
    for index in range(struct.unpack_from("<I", table, vector)[0]):
        offset, length = struct.unpack_from("<qq", table, vector + 4 + _BUFFER_BYTES * index)
        if length < 8:
            continue
        if offset < 0:
            raise ValueError("a buffer before its body")
        said = struct.unpack_from("<q", body, offset)[0]  # -1: this buffer was left as it is
        total += length if said < 0 else said
    return total


def _offset(table: memoryview, place: int) -> int:
    return place + int(struct.unpack_from("<I", table, place)[0])


def _follow(table: memoryview, place: int) -> int:
    """Where a field that holds a table or vector points to."""
    if not place:
        raise ValueError("a message without its header")
    return _offset(table, place)


def _field(table: memoryview, at: int, field: int) -> int:
    """Where a table's field is; 0 where it is left out."""
    index = at - struct.unpack_from("<i", table, at)[0]
    if index < 0:
        raise ValueError("a table without its index")
    entry = 4 + 2 * field
    if entry >= struct.unpack_from("<H", table, index)[0]:
        return 0
    place = int(struct.unpack_from("<H", table, index + entry)[0])
    return at + place if place else 0
