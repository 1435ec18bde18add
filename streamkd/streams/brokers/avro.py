"""Avro messages as rows: each a record, by the schema of a registry that it names.

    value ─► id, rest ─► schema ─► values ─► JSON, as the source reads it ─► admission

A dead letter of one is the message as it came.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from streamkd import extras
from streamkd.errors import RecordError
from streamkd.streams.brokers.messages import Decoded, Form, Message, from_json
from streamkd.streams.brokers.registry import SchemaRegistry
from streamkd.streams.brokers.schema_ids import split
from streamkd.streams.ingest.jsonl import in_json
from streamkd.streams.log.dead_letters import RECORD_BYTES


class FromAvro:
    """Decodes by the schemas of one registry."""

    def __init__(self, url: str, user: str | None) -> None:
        """Raises ``MissingExtra``."""
        self._fastavro = extras.load("fastavro", "Avro messages")
        self._registry = SchemaRegistry(url, user, self._parse)

    def __call__(self, messages: Sequence[Message], form: Form) -> Decoded:
        """Batches of the messages.

        Raises:
            Overloaded, SourceError: as ``SchemaRegistry.schema``; nothing is known of a message then.
        """
        faults: dict[int, str] = {}
        lines = []
        for row, message in enumerate(messages):
            try:
                lines.append(self._line(message))
            except RecordError as fault:
                faults[row] = str(fault).partition("\n")[0]
                lines.append(b"")
        read = [message._replace(value=line) for message, line in zip(messages, lines, strict=True)]
        for sifted, then in from_json(read, form):
            rejects = [replace(each, detail=faults.get(each.row, each.detail)) for each in sifted.rejects]
            letters = [
                replace(letter, detail=reject.detail, record=_original(messages[reject.row]), form="message")
                for letter, reject in zip(sifted.letters, rejects, strict=True)
            ]
            yield replace(sifted, rejects=rejects, letters=letters), then

    def _line(self, message: Message) -> bytes:
        id, rest = split(message.value, message.headers)
        schema, stream = self._registry.schema(id), io.BytesIO(rest)
        try:
            values = self._fastavro.schemaless_reader(stream, schema, None)
        except Exception as fault:  # noqa: BLE001 - whatever the decoder finds in what a stranger wrote
            raise RecordError(
                f"cannot be read as Avro by schema {id}: {type(fault).__name__} {fault}".strip()
            ) from None
        if stream.tell() != len(rest):
            raise RecordError(f"{len(rest) - stream.tell()} bytes after the end of the record")
        return json.dumps(values, default=in_json).encode()

    def _parse(self, schema: str, named: dict[str, Any]) -> Any:
        return self._fastavro.parse_schema(json.loads(schema), named_schemas=named)


def _original(message: Message) -> bytes | None:
    return message.value if len(message.value) <= RECORD_BYTES else None
