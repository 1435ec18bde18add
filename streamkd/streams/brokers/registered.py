"""Messages as rows whose schema is in a registry, which each of them names by an id: Avro, Protobuf.

    value ─► id, rest ─► schema ─► values ─► JSON, as the source reads it ─► admission

A dead letter of one is the message as it came.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from streamkd.errors import RecordError
from streamkd.streams.brokers.messages import Decoded, Form, Message, from_json
from streamkd.streams.brokers.registry import SchemaRegistry
from streamkd.streams.brokers.schema_ids import Framed, split
from streamkd.streams.ingest.jsonl import in_json
from streamkd.streams.log.dead_letters import RECORD_BYTES


class Language(Protocol):
    """What schemas are written in: ``kind`` as registries call it, asked for with ``query``."""

    kind: str
    query: str

    def parse(self, schema: str, named: dict[str, Any], name: str) -> Any:
        """A schema as a registry gives it, ``name`` where another refers to it; ``named`` has those it refers to.

        Whatever it raises is the schema's fault, but for ``SourceError``.
        """
        ...

    def read(self, schema: Any, framed: Framed) -> Mapping[str, Any]:
        """The fields of a message. Whatever it raises is the message's fault."""
        ...


class FromRegistry:
    """Decodes by the schemas of one registry."""

    def __init__(self, language: Language, url: str, user: str | None) -> None:
        self._language, self._registry = language, SchemaRegistry(url, user, language)

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
        framed = split(message.value, message.headers)
        schema = self._registry.schema(framed.id)
        try:
            values = self._language.read(schema, framed)
        except RecordError:
            raise
        except Exception as fault:  # noqa: BLE001 - whatever the decoder finds in what a stranger wrote
            said = f"cannot be read as {self._language.kind.title()} by schema {framed.id}"
            raise RecordError(f"{said}: {type(fault).__name__} {fault}".strip()) from None
        return json.dumps(values, default=in_json).encode()


def _original(message: Message) -> bytes | None:
    return message.value if len(message.value) <= RECORD_BYTES else None
