"""Where a stream's records come from, and what they look like."""

from pathlib import Path

from streamkd import config as configuration
from streamkd.choices import Choice
from streamkd.config import Config
from streamkd.errors import ConfigError
from streamkd.hookspecs import SourceKind
from streamkd.plugins import Registry
from streamkd.records import RecordSchema, Source
from streamkd.streams.log.log import Log, LogSource
from streamkd.wiring.parts import named


def source_kind(config: Config, registry: Registry) -> SourceKind:
    """The kind of the stream's source; with ``push``, records come through the log.

    Raises:
        ConfigError: the plugin brings something else under that name.
    """
    kind = registry.kind("sources", config.stream.source.name, "stream.source")
    if not isinstance(kind, SourceKind):
        raise ConfigError(f"needed a SourceKind, got {type(kind).__name__}", where="stream.source")
    return kind


def schema_of(config: Config, registry: Registry) -> RecordSchema:
    """The records' schema: the configuration's, or what the source says of itself.

    Raises:
        ConfigError: neither knows.
    """
    if (written := config.stream.schema_of()) is not None:
        return written
    choice = config.stream.source
    options = configuration.options(registry, "stream.source", "sources", choice)
    schema = source_kind(config, registry).describe(options)
    if not isinstance(schema, RecordSchema):
        raise ConfigError(
            f"the source {choice.name} does not say what its records look like",
            where="stream.records",
            fix="write stream.records, or let `streamkd init FILE` write it for a file like the stream's",
        )
    return config.stream.schema_of(schema) or schema


def open_source(
    config: Config, registry: Registry, schema: RecordSchema, log: Path | None = None
) -> tuple[Source, Log | None]:
    """What the learner reads: the configured source, or the log (a file at ``log``) of a push source.

    A source's option ``seed`` that is left open takes the configuration's.
    """
    kind = source_kind(config, registry)
    if kind.push:
        if log is None:
            raise ConfigError(f"the source {kind.name} needs a state directory for its log", where="stream.source")
        journal = Log(log, schema, stream=config.stream.name)
        return LogSource(journal), journal
    if config.stream.labels is not None:
        said = f"the source {kind.name} is not pushed to, so that there is no log in which predictions could be kept"
        raise ConfigError(
            said, where="stream.labels", fix="leave it out, or set stream.source to flight, http, kafka or files"
        )
    if config.stream.batch.pace == "auto":
        said = f"the source {kind.name} is not pushed to, so that no log could journal a pace"
        fix = "set it to fixed (such a source waits for the learner), or stream.source to one that is pushed to"
        raise ConfigError(said, where="stream.batch.pace", fix=fix)
    options = configuration.options(registry, "stream.source", "sources", config.stream.source)
    if options.model_dump().get("seed", 0) is None:
        options = options.model_copy(update={"seed": config.seed})
    with named("stream.source", config.stream.source):
        return kind.make(options, schema), None


def at_once(config: Config) -> Config:
    """The same without the source's pace: at one there is nothing to read yet."""
    choice = config.stream.source
    if choice.values.get("rate") is None:
        return config
    choice = Choice.model_validate({**choice.model_dump(), "rate": None})
    return config.model_copy(update={"stream": config.stream.model_copy(update={"source": choice})})
