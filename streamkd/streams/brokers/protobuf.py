"""Protobuf, as messages are written in it: by the schema that each names, and the type in it (``registered``).

    registry ─► file descriptor (or .proto text ─► protoc) ─► pool ─► the type, by its place in the file ─► fields

Behind the id stands the type's place as Confluent's clients write it: how many numbers, then the numbers, of a type in
the file and of one in that and so on; 0 alone is the first. They are zigzag varints.

Scalars and lists of them become columns. Enumerations are their names, timestamps times, wrappers their values; what
tells that it is not there (``optional``, wrappers, messages) is a gap then. Maps are left out.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from streamkd import extras
from streamkd.errors import MissingExtra, RecordError, SourceError
from streamkd.streams.brokers.schema_ids import Framed, UnknownSchema

WELL_KNOWN = r"google/[a-z0-9_/]+\.proto"  # files that a schema may import without referring to them
DEEP = 32  # messages in messages


class Schema(NamedTuple):
    """A file's descriptor, and the pool that has it with all that it imports."""

    file: Any
    pool: Any


class Protobuf:
    """The language of schemas, as ``protobuf`` reads it."""

    kind, query = "PROTOBUF", "?format=serialized"

    def __init__(self) -> None:
        """Raises ``MissingExtra``."""
        self._descriptors, self._pools, self._messages, self._json = (
            extras.load(f"google.protobuf.{name}", "Protobuf messages")
            for name in ("descriptor_pb2", "descriptor_pool", "message_factory", "json_format")
        )

    def parse(self, schema: str, named: dict[str, Any], name: str) -> Schema:
        try:
            file = self._descriptors.FileDescriptorProto.FromString(base64.b64decode(schema, validate=True))
        except binascii.Error:  # a registry that has no compiled form to give
            file = self._compiled(schema, named)
        file.name = name
        named[name] = file
        pool = self._pools.DescriptorPool()
        for each in named.values():
            for imported in set(each.dependency) - set(named):
                _add_well_known(pool, imported)
            pool.Add(each)
        return Schema(file, pool)

    def read(self, schema: Schema, framed: Framed) -> Mapping[str, Any]:
        value = framed.value
        if framed.behind is None:
            place, length = _place(value)
            value = value[length:]
        else:
            place, _ = _place(framed.behind or b"\0")
        message = self._messages.GetMessageClass(_type(schema, place))()
        message.ParseFromString(value)
        return {
            field.name: self._value(field, getattr(message, field.name))
            for field in message.DESCRIPTOR.fields
            if not _is_map(field) and (not field.has_presence or message.HasField(field.name))
        }

    def _value(self, field: Any, value: Any) -> Any:
        return [self._one(field, each) for each in value] if field.is_repeated else self._one(field, value)

    def _one(self, field: Any, value: Any) -> Any:
        if field.enum_type is not None:
            known = field.enum_type.values_by_number.get(value)
            return value if known is None else known.name
        if field.message_type is None:
            return value
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return value.ToDatetime(UTC)
        if field.message_type.file.name == "google/protobuf/wrappers.proto":
            return value.value
        return self._json.MessageToDict(value)

    def _compiled(self, text: str, named: Mapping[str, Any]) -> Any:
        """A .proto text, compiled in this process; what the compiler has to say it prints.

        Raises:
            SourceError: there is no compiler. UnknownSchema: it refuses the text.
        """
        try:
            protoc = extras.load("grpc_tools.protoc", "schemas of Protobuf that a registry gives as text alone")
        except MissingExtra as fault:
            raise SourceError(fault.message, where="stream.source.registry", fix=fault.fix) from None
        theirs = Path(protoc.__file__).parent / "_proto"
        with TemporaryDirectory() as folder:
            source, imports, target = (Path(folder) / name for name in ("schema.proto", "imports", "compiled"))
            source.write_text(text, "utf-8")
            imports.write_bytes(self._descriptors.FileDescriptorSet(file=named.values()).SerializeToString())
            paths = [f"--proto_path={folder}", f"--proto_path={theirs}", f"--descriptor_set_in={imports}"]
            if protoc.main(["protoc", *paths, f"--descriptor_set_out={target}", str(source)]):
                raise UnknownSchema("protoc refuses it, and says why in the log of the ingress")
            return self._descriptors.FileDescriptorSet.FromString(target.read_bytes()).file[0]


def _add_well_known(pool: Any, name: str) -> None:
    """A file of those that everybody has, and what it imports.

    Raises:
        UnknownSchema: it is none.
    """
    try:
        if not re.fullmatch(WELL_KNOWN, name):
            raise ImportError(name)
        file = import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2").DESCRIPTOR
    except ImportError:
        raise UnknownSchema(f"it imports {name}, and has no reference of that name") from None
    for each in file.dependencies:
        _add_well_known(pool, each.name)
    pool.AddSerializedFile(file.serialized_pb)


def _place(framed: bytes) -> tuple[list[int], int]:
    """Where in its file the type of a message is, and how many bytes say so."""
    count, at = _varint(framed, 0)
    if count == 0:
        return [0], at
    if not 0 < count <= DEEP:
        raise RecordError(f"needed the place of a message's type behind the schema's id, got one of {count} numbers")
    place = []
    for _ in range(count):
        number, at = _varint(framed, at)
        place.append(number)
    return place, at


def _varint(framed: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, and where the next begins."""
    number = shift = 0
    for byte in framed[at : at + 5]:
        number |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise RecordError("needed the place of a message's type behind the schema's id, as Confluent's clients write it")


def _type(schema: Schema, place: list[int]) -> Any:
    """The descriptor of a type."""
    name, types = schema.file.package, schema.file.message_type
    for number in place:
        if not 0 <= number < len(types):
            raise RecordError(f"needed a type of the schema, got the place {place}; it has {len(types)} there")
        name = f"{name}.{types[number].name}".lstrip(".")
        types = types[number].nested_type
    return schema.pool.FindMessageTypeByName(name)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
