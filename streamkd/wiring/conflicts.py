"""What may not have changed since a state directory was written."""

from typing import Any

from streamkd.choices import Choice
from streamkd.config import Config
from streamkd.errors import StateConflict
from streamkd.hookspecs import SourceKind
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.settings import MemorySettings
from streamkd.streams.encoding import contract


def refuse_conflicts(
    saved: Config, saved_schema: RecordSchema, now: Config, schema: RecordSchema, registry: Registry
) -> None:
    """What a state directory was written under and what may not change since.

    Raises:
        StateConflict: both values and the way out are named.
    """
    if found := contract.of_inputs(saved_schema, schema):
        raise StateConflict(
            f"the state directory was written with other columns: {'; '.join(found)}",
            where="stream.records.inputs",
            fix=contract.KEEP,
        )
    pairs: list[tuple[str, object, object]] = [
        ("stream.records.student", saved_schema.student, schema.student),
        ("stream.records.label_type", saved_schema.label_type, schema.label_type),
        ("student", saved.student, now.student),
        ("share", saved.share, now.share),
        ("memory", _kept(saved.memory), _kept(now.memory)),
        ("stream.name", saved.stream.name, now.stream.name),
        ("stream.source", _content(saved.stream.source, registry), _content(now.stream.source, registry)),
        ("seed", saved.seed, now.seed),
    ]
    for what, before, after in pairs:
        if before != after:
            raise StateConflict(
                f"the state directory was written with {before}, the configuration has {after}",
                where=what,
                fix="go back to the first, or begin elsewhere with --state DIR",
            )


def _kept(memory: MemorySettings) -> dict[str, Any]:
    """What of the memory decides which records are kept: not how many, nor how many are replayed."""
    return memory.model_dump(mode="json", exclude={"size", "bytes", "replay"})


def _content(source: Choice, registry: Registry) -> dict[str, Any]:
    """What of a source decides its records: not how fast they come nor what is accepted of them, and nothing where
    they are pushed into the log.
    """
    kind = registry.kind("sources", source.name, "stream.source")
    if isinstance(kind, SourceKind) and kind.push:
        return {"pushed": True}
    return {
        "name": source.name,
        **{key: value for key, value in source.values.items() if key not in ("rate", "accept")},
    }
