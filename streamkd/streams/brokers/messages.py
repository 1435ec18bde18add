"""Messages of a broker as rows: JSON objects, a row each, or Arrow IPC streams, as many rows as each has (Avro:
``avro``).

    messages of one partition ─► admission, as of what is pushed ─► batches: good rows, bad rows with their letters

A message that is none is a dead letter as it came, with partition and offset, and so is a bad row of it; it hurts
nobody else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa

from streamkd.errors import RecordError
from streamkd.records import RecordSchema, Reject
from streamkd.settings import Limits
from streamkd.streams.brokers.schema_ids import without_id
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.ingest.admission import Sifted, admit_objects, admit_stream
from streamkd.streams.log.batches import no_rows
from streamkd.streams.log.dead_letters import RECORD_BYTES, DeadLetter


class Message(NamedTuple):
    """One message; ``time``: when it was written, in milliseconds since 1970."""

    offset: int
    value: bytes
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    time: int | None = None


@dataclass(frozen=True)
class Beside:
    """Columns from outside the value, by name: of the key, of the time, of each header."""

    key: str | None = None
    time: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.key or self.time or self.headers)

    def of(self, message: Message) -> dict[str, str | datetime]:
        """The columns of one message, text but for its time; what is not there is left out."""
        found = {self.headers[name]: value for name, value in message.headers if name in self.headers}
        if self.key:
            found[self.key] = message.key
        told: dict[str, str | datetime] = {}
        told |= {column: value.decode(errors="replace") for column, value in found.items() if value is not None}
        if self.time and message.time is not None:
            told[self.time] = datetime.fromtimestamp(message.time / 1e3, UTC)
        return told

    def text_of(self, message: Message) -> dict[str, str]:
        """The same, as JSON would say it."""
        return {
            name: value if isinstance(value, str) else value.isoformat() for name, value in self.of(message).items()
        }


@dataclass(frozen=True)
class Form:
    """What messages are decoded by: the records' schema, the limits, the name of their partition."""

    schema: RecordSchema
    limits: Limits
    source: str
    beside: Beside = field(default_factory=Beside)


Decoded = Iterator[tuple[Sifted, int]]
"""Batches of messages in order, each with the offset after its last message."""
Decode = Callable[[Sequence[Message], Form], Decoded]


def from_json(messages: Sequence[Message], form: Form) -> Decoded:
    """Each message is a JSON object: a row; the id of a schema before it needs none."""
    columns = [form.beside.text_of(message) for message in messages] if form.beside else ()
    lines = [without_id(message.value) for message in messages]
    sifted = admit_objects(lines, form.schema, form.limits, form.source, columns)
    placed = zip(sifted.letters, sifted.rejects, strict=True)
    letters = [replace(letter, offset=messages[reject.row].offset) for letter, reject in placed]
    yield replace(sifted, letters=letters), messages[-1].offset + 1


def from_arrow(messages: Sequence[Message], form: Form) -> Decoded:
    """Each message is a whole Arrow IPC stream; those that are small together make one batch."""
    parts: list[Sifted] = []
    rows = held_bytes = 0
    for message in messages:
        parts.append(_stream(message, form))
        rows, held_bytes = rows + parts[-1].total, held_bytes + parts[-1].rows.nbytes
        is_full = 2 * rows > form.limits.batch_rows or 2 * held_bytes > form.limits.batch_bytes
        if is_full or message is messages[-1]:
            yield _joined(parts), message.offset + 1
            parts, rows, held_bytes = [], 0, 0


def _stream(message: Message, form: Form) -> Sifted:
    """One message; where it cannot be taken at all it is one bad row."""
    beside = form.beside.of(message) if form.beside else None
    try:
        sifted = admit_stream(message.value, form.schema, form.limits, form.source, beside)
    except RecordError as fault:
        said = str(fault).partition("\n")[0]
        record = message.value if len(message.value) <= RECORD_BYTES else None
        letter = DeadLetter(form.source, "decode", said, record=record, form="message")
        sifted = Sifted(no_rows(arrow_schema(form.schema)), 1, [Reject(0, "decode", said)], [letter])
    return replace(sifted, letters=[replace(letter, offset=message.offset) for letter in sifted.letters])


def _joined(parts: Sequence[Sifted]) -> Sifted:
    rejects, total = [], 0
    for each in parts:
        rejects += [replace(reject, row=total + reject.row) for reject in each.rejects]
        total += each.total
    rows = pa.concat_batches([each.rows for each in parts])
    sent = next((each.sent for each in reversed(parts) if each.sent is not None), None)
    return Sifted(rows, total, rejects, [letter for each in parts for letter in each.letters], sent)


FORMATS: Mapping[str, Decode] = {"json": from_json, "arrow": from_arrow}
