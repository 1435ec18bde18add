"""The schemas of messages, as a schema registry (Confluent's interface) tells them by their ids.

    id ─► GET /schemas/ids/7 | /schemas/guids/... ─► schema, with those that it refers to ─► kept

What a schema is never changes, so each is asked for once. A registry that does not answer is waited for; a schema that
it does not know is the message's fault.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from streamkd.errors import Overloaded, SourceError
from streamkd.streams.brokers.schema_ids import SchemaId, UnknownSchema

if TYPE_CHECKING:
    from streamkd.streams.brokers.registered import Language

SCHEMAS = 1_000  # that are kept
REFERENCES = 100  # of a schema, and of those that it refers to
ASK_SECONDS = 10.0


class SchemaRegistry:
    """Schemas of one language, parsed, by their ids."""

    def __init__(self, url: str, user: str | None, language: "Language") -> None:
        """``user``: ``name:password``."""
        name, _, password = (user or "").partition(":")
        self._client = httpx.Client(base_url=url, auth=(name, password) if user else None, timeout=ASK_SECONDS)
        self._url, self._language = url, language
        self._kept: OrderedDict[SchemaId, Any] = OrderedDict()

    def schema(self, id: SchemaId) -> Any:
        """The schema of an id.

        Raises:
            UnknownSchema: there is none, or in another language. Overloaded: the registry does not answer now.
            SourceError: it lets us know nothing, or gives what cannot be read here.
        """
        if id not in self._kept:
            kind = "guids" if isinstance(id, UUID) else "ids"
            self._kept[id] = self._parsed(f"/schemas/{kind}/{id}", {})
            while len(self._kept) > SCHEMAS:
                self._kept.popitem(last=False)
        return self._kept[id]

    def _parsed(self, path: str, named: dict[str, Any], name: str = "schema") -> Any:
        said, needed = self._ask(path), self._language.kind
        if (kind := said.get("schemaType") or "AVRO") != needed:
            raise UnknownSchema(f"needed a schema of {needed}, got {kind}", where=f"{self._url}{path}")
        for each in said.get("references") or ():
            if len(named) > REFERENCES:
                raise UnknownSchema(f"it refers to more than {REFERENCES}", where=f"{self._url}{path}")
            self._parsed(f"/subjects/{each['subject']}/versions/{each['version']}", named, each["name"])
        try:
            return self._language.parse(said["schema"], named, name)
        except SourceError:
            raise
        except Exception as fault:  # noqa: BLE001 - whatever the parser finds in what a stranger wrote
            raise UnknownSchema(f"cannot be read: {fault}", where=f"{self._url}{path}") from None

    def _ask(self, path: str) -> dict[str, Any]:
        try:
            answer = self._client.get(path + self._language.query)
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
