"""The id of a message's schema in a registry, in its three forms.

byte 0 and four bytes, then the value | byte 1 and a GUID, then the value | either in the header ``__value_schema_id``
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from streamkd.errors import RecordError

HEADER = "__value_schema_id"
SchemaId = int | UUID


class UnknownSchema(RecordError):
    """No schema, or none that could be read, under the id of a message."""


class Framed(NamedTuple):
    """A message's ``value`` behind the id of its schema; ``behind``: what follows the id where that is in a header."""

    id: SchemaId
    value: bytes
    behind: bytes | None = None


def split(value: bytes, headers: Sequence[tuple[str, bytes | None]] = ()) -> Framed:
    """The id of a message's schema, and what is written by it.

    Raises:
        UnknownSchema: it names none.
    """
    told = next((held for name, held in reversed(headers) if name == HEADER), None)
    found, length = _id(value if told is None else told)
    return Framed(found, value[length:]) if told is None else Framed(found, value, told[length:])


def without_id(value: bytes) -> bytes:
    """A message that says by itself what it is, without the id that it may begin with."""
    return value[5:] if value[:1] == b"\0" else value[17:] if value[:1] == b"\1" else value


def _id(framed: bytes) -> tuple[SchemaId, int]:
    """The id at the beginning, and how long it is."""
    if framed[:1] == b"\0" and len(framed) >= 5:
        return int.from_bytes(framed[1:5]), 5
    if framed[:1] == b"\1" and len(framed) >= 17:
        return UUID(bytes=framed[1:17]), 17
    raise UnknownSchema(f"needed a schema's id: byte 0 and four bytes, or byte 1 and a GUID, got {framed[:17]!r}")
