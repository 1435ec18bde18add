"""Protobuf: the type that a message names in its schema, its fields as columns, and registries that give text alone."""

import base64
import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from schema_registry import Registry, framed

from streamkd.errors import SourceError
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.brokers.protobuf import Protobuf
from streamkd.streams.brokers.registered import FromRegistry
from streamkd.streams.ingest.admission import Sifted

from .conftest import decoding

pytest.importorskip("google.protobuf", reason='no Protobuf: pip install "streamkd[kafka]"')
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, timestamp_pb2, wrappers_pb2

GUID = UUID("12345678-9abc-def0-1234-56789abcdef0")
FIRST = b"\0"  # the place of a file's first type
PLACE = """
syntax = "proto3";
package shop;
message Place { double across = 1; }
"""
ORDER = """
syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "shop/place.proto";
message Order {
  repeated float x = 1;
  double price = 2;
  google.protobuf.Timestamp seen = 3;
  enum Kind { WEB = 0; SHOP = 1; }
  Kind kind = 4;
  optional sint64 label = 5;
  google.protobuf.Int64Value pieces = 6;
  Place place = 7;
  map<string, double> notes = 8;
  message Line { double price = 1; sint64 label = 2; }
}
"""
SCHEMA = RecordSchema(
    inputs=(
        InputColumn(name="x", shape=(2,)),
        InputColumn(name="price"),
        InputColumn(name="seen", kind="time"),
        InputColumn(name="kind", kind="category", shape=(4,)),
        InputColumn(name="pieces", missing="fill"),
    )
)
SEEN = datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)
VALUES: dict[str, Any] = {
    "x": [1.0, 2.5],
    "price": 12.25,
    "seen": SEEN.isoformat(),
    "kind": "SHOP",
    "label": -3,
    "place": {"across": 1.5},
    "notes": {"a": 1.0},
}
TYPES = descriptor_pb2.FieldDescriptorProto


def file(name: str, **files: Any) -> Any:
    return descriptor_pb2.FileDescriptorProto(name=name, package="shop", syntax="proto3", **files)


def field(name: str, number: int, kind: int, **more: Any) -> Any:
    label = more.pop("label", TYPES.LABEL_OPTIONAL)
    return TYPES(name=name, number=number, type=kind, label=label, **more)


def order() -> tuple[Any, Any]:
    """The descriptors of ``PLACE`` and ``ORDER``, written by hand: no compiler is needed for them."""
    place = file("shop/place.proto")
    place.message_type.add(name="Place", field=[field("across", 1, TYPES.TYPE_DOUBLE)])
    entry = descriptor_pb2.DescriptorProto(name="NotesEntry", options={"map_entry": True})
    entry.field.extend([field("key", 1, TYPES.TYPE_STRING), field("value", 2, TYPES.TYPE_DOUBLE)])
    line = descriptor_pb2.DescriptorProto(name="Line")
    line.field.extend([field("price", 1, TYPES.TYPE_DOUBLE), field("label", 2, TYPES.TYPE_SINT64)])
    kinds = descriptor_pb2.EnumDescriptorProto(name="Kind", value=[{"name": "WEB"}, {"name": "SHOP", "number": 1}])
    message, repeated = TYPES.TYPE_MESSAGE, {"label": TYPES.LABEL_REPEATED}
    fields = [
        field("x", 1, TYPES.TYPE_FLOAT, **repeated),
        field("price", 2, TYPES.TYPE_DOUBLE),
        field("seen", 3, message, type_name=".google.protobuf.Timestamp"),
        field("kind", 4, TYPES.TYPE_ENUM, type_name=".shop.Order.Kind"),
        field("label", 5, TYPES.TYPE_SINT64, proto3_optional=True, oneof_index=0),
        field("pieces", 6, message, type_name=".google.protobuf.Int64Value"),
        field("place", 7, message, type_name=".shop.Place"),
        field("notes", 8, message, type_name=".shop.Order.NotesEntry", **repeated),
    ]
    whole = file("schema", dependency=["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto", place.name])
    whole.message_type.add(
        name="Order",
        field=fields,
        nested_type=[line, entry],
        enum_type=[kinds],
        oneof_decl=[{"name": "_label"}],
    )
    return place, whole


def given(file: Any) -> str:
    return base64.b64encode(file.SerializeToString()).decode()


def record(type: str = "shop.Order", **changes: Any) -> bytes:
    pool = descriptor_pool.DescriptorPool()
    for known in (timestamp_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for each in order():
        pool.Add(each)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName(type))()
    values = {name: value for name, value in {**VALUES, **changes}.items() if value is not None}
    return json_format.ParseDict(values, message, ignore_unknown_fields=True).SerializeToString()


@pytest.fixture
def registry() -> Iterator[Registry]:
    """Compiled schemas under 7 and the GUID, text alone under 8."""
    place, whole = order()
    refers = {"references": [{"name": "shop/place.proto", "subject": "place", "version": 2}]}
    text = {"references": [{"name": "shop/place.proto", "subject": "text", "version": 1}]}
    answers = {
        "/schemas/ids/7": {"schema": given(whole), **refers},
        f"/schemas/guids/{GUID}": {"schema": given(whole), **refers},
        "/subjects/place/versions/2": {"schema": given(place)},
        "/schemas/ids/8": {"schema": ORDER, **text},
        "/subjects/text/versions/1": {"schema": PLACE},
        "/schemas/ids/9": {"schema": '"string"', "schemaType": "AVRO"},
        "/schemas/ids/10": {"schema": given(file("schema", dependency=["os/path.proto"]))},
        "/schemas/ids/11": {"schema": 'syntax = "proto3"; message Order {'},
    }
    typed = {path: {"schemaType": "PROTOBUF", **answer} for path, answer in answers.items()}
    with contextlib.closing(Registry({f"{path}?format=serialized": answer for path, answer in typed.items()})) as found:
        yield found


@pytest.fixture
def decode(registry: Registry) -> Callable[..., Sifted]:
    return decoding(FromRegistry(Protobuf(), registry.url, None), SCHEMA)


def test_fields_are_columns_whatever_form_the_id_has(registry: Registry, decode: Callable[..., Sifted]) -> None:
    """Scalars, lists, times, enumerations by name; the place of the type stands behind the id, in a header as well."""
    value, id = record(), b"\1" + GUID.bytes
    sifted = decode(framed(7, FIRST + value), id + FIRST + value, (value, id + FIRST), (value, b"\0\0\0\0\7"))
    assert sifted.rows.num_rows == 4
    for row in sifted.rows.to_pylist():
        assert (row["x"], row["price"], row["seen"]) == ([1.0, 2.5], [12.25], SEEN)
        assert (row["kind"], row["label"]) == ("SHOP", -3)
    asked = ["/schemas/ids/7", "/subjects/place/versions/2", f"/schemas/guids/{GUID}", "/subjects/place/versions/2"]
    assert registry.asked == [f"{path}?format=serialized" for path in asked]


def test_what_tells_that_it_is_not_there_is_a_gap(decode: Callable[..., Sifted]) -> None:
    """``optional`` and wrappers; a plain number that is 0 is 0."""
    sifted = decode(
        *(framed(7, FIRST + record(**values)) for values in ({"price": 0.0}, {"pieces": 0}, {"label": None}))
    )
    assert [row["price"] for row in sifted.rows.to_pylist()] == [[0.0], [12.25]]
    assert [str(row["pieces"]) for row in sifted.rows.to_pylist()] == ["[nan]", "[0.0]"]
    assert [letter.detail for letter in sifted.letters] == ["label: missing"]


def test_a_message_may_be_of_a_type_within_another(decode: Callable[..., Sifted]) -> None:
    """Its place is two numbers then: zigzag varints, how many and which."""
    sifted = decode(framed(7, b"\4\0\0" + record("shop.Order.Line")))
    assert [letter.detail for letter in sifted.letters] == ["x: missing"]  # a line has a price and a label alone


def test_what_is_no_such_message_is_a_letter_as_it_came(decode: Callable[..., Sifted]) -> None:
    """Without an id or a place, of another language or of no such type, cut off, of a schema that is none."""
    good = record()
    bad = [
        good,
        framed(7, b""),
        framed(7, b"\x02\x08" + good),
        framed(7, b"\xff\xff\xff\xff\xff\xff" + good),
        framed(7, FIRST + good[:-3]),
        framed(9, FIRST + good),
        framed(10, FIRST + good),
    ]
    sifted = decode(framed(7, FIRST + good), *bad, framed(7, FIRST + good))
    assert (sifted.rows.num_rows, sifted.total) == (2, 9)
    assert [(letter.record, letter.offset, letter.form) for letter in sifted.letters] == [
        (value, offset, "message") for offset, value in enumerate(bad, 1)
    ]
    said = ["needed a schema's id", "needed the place", "needed a type of the schema", "needed the place"]
    said += ["cannot be read as Protobuf by schema 7", "needed a schema of PROTOBUF, got AVRO", "imports os/path.proto"]
    assert [words in letter.detail for words, letter in zip(said, sifted.letters, strict=True)] == [True] * len(said)


def test_a_registry_s_text_is_compiled(decode: Callable[..., Sifted], capfd: pytest.CaptureFixture[str]) -> None:
    """With the texts that it refers to; what is no text of Protobuf is the fault of its message."""
    pytest.importorskip("grpc_tools", reason='no compiler: pip install "streamkd[protobuf]"')
    value = FIRST + record()
    sifted = decode(framed(7, value), framed(8, value), framed(11, value))
    first, second = sifted.rows.to_pylist()
    assert first == {**second, "pieces": first["pieces"]}  # NaN is not NaN
    assert "protoc refuses it" in sifted.letters[0].detail
    assert "schema.proto:1" in capfd.readouterr().err


def test_text_without_a_compiler_stops_the_source(
    decode: Callable[..., Sifted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words that name the extra which brings one; no message is lost for that."""
    monkeypatch.setitem(sys.modules, "grpc_tools.protoc", None)
    with pytest.raises(SourceError, match=r"streamkd\[protobuf\]"):
        decode(framed(8, FIRST + record()))
