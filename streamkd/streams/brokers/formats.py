"""How a broker's messages may be written, and who decodes each."""

from typing import Literal

from pydantic import Field

from streamkd.streams.brokers import client
from streamkd.streams.brokers.messages import FORMATS, Decode

Format = Literal["json", "arrow", "avro", "protobuf"]
REGISTERED = ("avro", "protobuf")
FORMAT: Format = Field(
    default="json",
    description="a message is a JSON object, an Arrow IPC stream of any number of rows, or a record of Avro or "
    "Protobuf whose schema is in the `registry`",
)
REGISTRY: str | None = Field(default=None, description="URL of a schema registry, for Avro and Protobuf")
REGISTRY_USER: str | None = Field(
    default=None, pattern="^env:", description="`env:NAME`, of the environment: its value is user:password"
)


def check(format: Format, registry: str | None) -> None:
    """Raises ``ValueError`` where the schemas of messages would be nowhere, or a registry is of no use."""
    if (format in REGISTERED) != (registry is not None):
        said = "registry is needed for Avro and Protobuf, and for nothing else"
        raise ValueError(f"{said}; got {registry} for {format}")


def decoder(format: Format, registry: str | None, user: str | None) -> Decode:
    """Who decodes messages of a format, by the schemas of a registry where it has some.

    Raises:
        MissingExtra: a package is not installed. ConfigError: the variable of the environment is not set.
    """
    if registry is None:
        return FORMATS[format]
    from streamkd.streams.brokers.registered import FromRegistry, Language  # and an HTTP client

    language: Language
    if format == "avro":
        from streamkd.streams.brokers.avro import Avro

        language = Avro()
    else:
        from streamkd.streams.brokers.protobuf import Protobuf

        language = Protobuf()
    return FromRegistry(language, registry, str(client.value_of("registry_user", user)) if user else None)
