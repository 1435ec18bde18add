"""Avro, as messages are written in it: each a record, by the schema that it names (``registered``)."""

import io
import json
from typing import Any

from streamkd import extras
from streamkd.errors import RecordError
from streamkd.streams.brokers.schema_ids import Framed


class Avro:
    """The language of schemas, as ``fastavro`` reads it."""

    kind, query = "AVRO", ""

    def __init__(self) -> None:
        """Raises ``MissingExtra``."""
        self._fastavro = extras.load("fastavro", "Avro messages")

    def parse(self, schema: str, named: dict[str, Any], name: str) -> Any:
        return self._fastavro.parse_schema(json.loads(schema), named_schemas=named)

    def read(self, schema: Any, framed: Framed) -> Any:
        stream = io.BytesIO(framed.value)
        values = self._fastavro.schemaless_reader(stream, schema, None)
        if (more := len(framed.value) - stream.tell()) > 0:
            raise RecordError(f"{more} bytes after the end of the record")
        return values
