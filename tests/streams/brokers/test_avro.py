"""Avro and the registry: the three forms of a schema's id, what is none, and a registry that is away."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from schema_registry import Registry, framed

from streamkd.errors import Overloaded, SourceError
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Limits
from streamkd.streams.brokers.avro import Avro
from streamkd.streams.brokers.messages import Form, Message, from_json
from streamkd.streams.brokers.registered import FromRegistry
from streamkd.streams.ingest.admission import Sifted

from .conftest import decoding, until

if TYPE_CHECKING:
    from kafka_brokers import Cluster

fastavro = pytest.importorskip("fastavro", reason='no Avro: pip install "streamkd[kafka]"')

GUID = UUID("12345678-9abc-def0-1234-56789abcdef0")
POINT = {"type": "record", "name": "shop.Point", "fields": [{"name": "across", "type": "double"}]}
ORDER: dict[str, Any] = {
    "type": "record",
    "name": "shop.Order",
    "fields": [
        {"name": "x", "type": {"type": "array", "items": ["null", "float"]}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "seen", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["web", "shop"]}},
        {"name": "label", "type": ["null", "int"]},
    ],
}
SCHEMA = RecordSchema(
    inputs=(
        InputColumn(name="x", shape=(2,)),
        InputColumn(name="price"),
        InputColumn(name="seen", kind="time"),
        InputColumn(name="kind", kind="category", shape=(4,)),
    )
)
FORM = Form(SCHEMA, Limits(), "orders/0")
SEEN = datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)


ANSWERS: dict[str, Any] = {
    "/schemas/ids/7": {"schema": json.dumps(ORDER)},
    f"/schemas/guids/{GUID}": {"schema": json.dumps(ORDER)},
    "/schemas/ids/8": {"schema": "message Order {}", "schemaType": "PROTOBUF"},
    "/schemas/ids/9": {"schema": '{"type": "nonsense"}'},
    "/schemas/ids/10": 503,
    "/schemas/ids/11": 401,
}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with contextlib.closing(Registry(ANSWERS)) as found:
        yield found


@pytest.fixture
def decode(registry: Registry) -> Callable[..., Sifted]:
    return decoding(FromRegistry(Avro(), registry.url, None), SCHEMA)


def record(schema: dict[str, Any] = ORDER, **changes: Any) -> bytes:
    values = {"x": [1.0, 2.5], "price": Decimal("12.34"), "seen": SEEN, "kind": "web", "label": 3, **changes}
    sink = io.BytesIO()
    fastavro.schemaless_writer(sink, fastavro.parse_schema(schema), values)
    return sink.getvalue()


def test_a_schema_s_id_has_three_forms(registry: Registry, decode: Callable[..., Sifted]) -> None:
    """Before the value, as a number or a GUID, or in a header; each schema is asked for once."""
    value = record()
    sifted = decode(
        framed(7, value),
        b"\1" + GUID.bytes + value,
        (value, b"\1" + GUID.bytes),
        (value, b"\0\0\0\0\7"),
        framed(7, value),
    )
    assert sifted.rows.num_rows == 5
    [row] = sifted.rows.slice(2, 1).to_pylist()
    assert row["x"] == [1.0, 2.5]
    assert row["price"] == [pytest.approx(12.34)]
    assert (row["seen"], row["kind"], row["label"]) == (SEEN, "web", 3)
    assert sorted(registry.asked) == [f"/schemas/guids/{GUID}", "/schemas/ids/7"]


def test_what_is_no_such_record_is_a_letter_as_it_came(decode: Callable[..., Sifted]) -> None:
    """Without an id, of an unknown or another schema, cut off, with more behind it; or a row that does not fit."""
    good = record()
    bad = [
        good,
        framed(6, good),
        framed(8, good),
        framed(9, good),
        framed(7, good[:-3]),
        framed(7, good + b"more"),
        framed(7, record(label=None)),
        framed(7, record(x=[1.0, None])),
        b"",
    ]
    sifted = decode(framed(7, good), *bad, framed(7, good))
    assert (sifted.rows.num_rows, sifted.total) == (2, 11)
    assert [letter.record for letter in sifted.letters] == bad
    assert [letter.offset for letter in sifted.letters] == list(range(1, 10))
    said = ["needed a schema's id", "no such schema", "got PROTOBUF", "cannot be read", "cannot be read as Avro"]
    said += ["4 bytes after the end", "label: missing", "x: a null", "needed a schema's id"]
    assert all(words in letter.detail for words, letter in zip(said, sifted.letters, strict=True))
    assert {letter.form for letter in sifted.letters} == {"message"}


def test_schemas_that_refer_to_others_are_read_with_them(registry: Registry, decode: Callable[..., Sifted]) -> None:
    """By the subject and version that the registry names."""
    wide = {**ORDER, "fields": [*ORDER["fields"], {"name": "at", "type": "shop.Point"}]}
    refers = [{"name": "shop.Point", "subject": "point", "version": 2}]
    registry.answers["/schemas/ids/12"] = {"schema": json.dumps(wide), "references": refers}
    registry.answers["/subjects/point/versions/2"] = {"schema": json.dumps(POINT)}
    whole = {**ORDER, "fields": [*ORDER["fields"], {"name": "at", "type": POINT}]}
    assert decode(framed(12, record(whole, at={"across": 1.5}))).rows.num_rows == 1


def test_a_registry_that_is_away_is_waited_for(registry: Registry, decode: Callable[..., Sifted]) -> None:
    """That is no fault of the message's; one that refuses us is for a person to see to."""
    with pytest.raises(Overloaded, match="answers 503"):
        decode(framed(10, record()))
    with pytest.raises(SourceError, match="refuses us: 401"):
        decode(framed(11, record()))
    registry.close()
    with pytest.raises(Overloaded, match="does not answer"):
        decode(framed(13, record()))


def test_the_registry_is_told_who_we_are(registry: Registry) -> None:
    """As user and password, from the environment."""
    list(FromRegistry(Avro(), registry.url, "me:secret")([Message(0, framed(7, record()))], FORM))
    assert registry.authorizations == ["Basic bWU6c2VjcmV0"]


@pytest.mark.parametrize("before", [b"", b"\0\0\0\0\7", b"\1" + GUID.bytes])
def test_json_needs_no_registry_for_the_id_before_it(before: bytes) -> None:
    """It says by itself what it is."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),))
    [(sifted, _)] = from_json([Message(0, before + b'{"x": 1, "label": 2}')], Form(schema, Limits(), "orders/0"))
    assert sifted.rows.column("label").to_pylist() == [2]


def test_a_topic_of_avro_is_read(
    registry: Registry, cluster: "Cluster", open_way: Callable[..., Any], read: Callable[..., Any]
) -> None:
    """With the id before the value and in a header; a registry that answers later loses nothing."""
    way = open_way(SCHEMA)
    good = registry.answers.pop("/schemas/ids/7")
    registry.answers["/schemas/ids/7"] = 503
    value = record()
    cluster.produce("main", [framed(7, value), {"value": value, "headers": [("__value_schema_id", b"\0\0\0\0\7")]}])
    read(way, format="avro", registry=registry.url)
    until(lambda: registry.asked)
    registry.answers["/schemas/ids/7"] = good
    until(lambda: way.log.end() == 2)
    assert way.log.letters.count() == 0
