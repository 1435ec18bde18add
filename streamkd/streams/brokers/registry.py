"""The schemas of messages, as a schema registry (Confluent's interface) tells them by their ids.

    id ─► GET /schemas/ids/7 | /schemas/guids/... ─► schema, with those that it refers to ─► kept

What a schema is never changes, so each is asked for once. A registry that does not answer is waited for; a schema that
it does not know is the message's fault.
"""

from collections import OrderedDict
from typing import Any
from uuid import UUID

import httpx

from streamkd.errors import Overloaded, SourceError
from streamkd.streams.brokers.schema_ids import SchemaId, UnknownSchema

SCHEMAS = 1_000  # that are kept
REFERENCES = 100  # of a schema, and of those that it refers to
ASK_SECONDS = 10.0


class SchemaRegistry:
    """Avro schemas, parsed, by their ids."""

    def __init__(self, url: str, user: str | None, parse: Any) -> None:
        """``user``: ``name:password``. ``parse(schema, named)``: notes in ``named`` what others refer to."""
        name, _, password = (user or "").partition(":")
        self._client = httpx.Client(base_url=url, auth=(name, password) if user else None, timeout=ASK_SECONDS)
        self._url, self._parse = url, parse
        self._kept: OrderedDict[SchemaId, Any] = OrderedDict()

    def schema(self, id: SchemaId) -> Any:
        """The schema of an id.

        Raises:
            UnknownSchema: there is none, or it is no Avro. Overloaded: the registry does not answer now.
            SourceError: it lets us know nothing.
        """
        if id not in self._kept:
            kind = "guids" if isinstance(id, UUID) else "ids"
            self._kept[id] = self._parsed(f"/schemas/{kind}/{id}", {})
            while len(self._kept) > SCHEMAS:
                self._kept.popitem(last=False)
        return self._kept[id]

    def _parsed(self, path: str, named: dict[str, Any]) -> Any:
        said = self._ask(path)
        if (kind := said.get("schemaType") or "AVRO") != "AVRO":
            raise UnknownSchema(f"needed a schema of Avro, got {kind}", where=f"{self._url}{path}")
        for each in said.get("references") or ():
            if len(named) > REFERENCES:
                raise UnknownSchema(f"it refers to more than {REFERENCES}", where=f"{self._url}{path}")
            self._parsed(f"/subjects/{each['subject']}/versions/{each['version']}", named)
        try:
            return self._parse(said["schema"], named)
        except Exception as fault:  # noqa: BLE001 - whatever the parser finds in what a stranger wrote
            raise UnknownSchema(f"cannot be read: {fault}", where=f"{self._url}{path}") from None

    def _ask(self, path: str) -> dict[str, Any]:
        try:
            answer = self._client.get(path)
        except httpx.TransportError as fault:
            raise Overloaded(f"the schema registry does not answer: {fault}", where=self._url) from None
        if answer.status_code == 404:
            raise UnknownSchema("there is no such schema", where=f"{self._url}{path}")
        if answer.status_code in (401, 403):
            fix = "stream.source.registry_user: env:NAME, whose value is user:password"
            raise SourceError(f"the schema registry refuses us: {answer.status_code}", where=self._url, fix=fix)
        if not answer.is_success:
            raise Overloaded(f"the schema registry answers {answer.status_code}", where=self._url)
        said = answer.json()
        return said if isinstance(said, dict) else {}
