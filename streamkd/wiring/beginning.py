"""What a stream begins from: an artefact of meta-training, and whether it is one for this configuration."""

import json
from collections.abc import Mapping
from typing import Any

from streamkd.config import Config
from streamkd.errors import ConfigError, StateConflict
from streamkd.meta import artefact
from streamkd.meta.artefact import Artefact
from streamkd.records import RecordSchema


def artefact_of(config: Config, schema: RecordSchema) -> Artefact | None:
    """What the stream begins from, where the configuration names it.

    Raises:
        StateError: it cannot be read. ConfigError: it was learned for another gate or student.
    """
    if config.meta is None:
        return None
    found = artefact.read(config.meta)
    mine = learned_for(config, schema)
    for what, learned in found.learned_for.items():
        if learned != mine[what]:
            raise ConfigError(
                f"the {what} of {config.meta} is {learned}, the configuration's {mine[what]}",
                where="meta",
                fix=f"give `{what}` as it was learned, or run `streamkd meta-train` with this configuration",
            )
    return found


def begun_from(kept: Mapping[str, Any] | None, saved: Config, now: Config, schema: RecordSchema) -> Artefact | None:
    """What a state directory began from, as its checkpoint has it; the file may have gone since.

    Raises:
        StateConflict: the configuration names something else to begin from.
    """
    begun = Artefact.from_state(kept) if kept else None
    if saved.meta == now.meta and (now.meta is None or not now.meta.exists()):
        return begun
    asked = artefact_of(now, schema)
    before, after = (found and found.digest for found in (begun, asked))
    if before != after:
        raise StateConflict(
            f"the state directory began from {saved.meta} ({(before or 'nothing')[:12]}), the configuration has "
            f"{now.meta} ({(after or 'nothing')[:12]})",
            where="meta",
            fix="go back to the first, or begin elsewhere with --state DIR",
        )
    return begun


def learned_for(config: Config, schema: RecordSchema) -> dict[str, Any]:
    """What an artefact is bound to: the gates of the step and of its terms, their optimiser, the student's columns."""
    own = [choice.gate for choice in config.losses if choice.gate]
    bound = {
        "gate": [choice.model_dump(mode="json") for choice in (config.gate, *own)],
        "adapt.optimizer": config.adapt.optimizer.model_dump(mode="json"),
        "student": {**config.student.model_dump(mode="json"), "inputs": inputs_of(schema.only(schema.student))},
    }
    return json.loads(json.dumps(bound))  # as it is read back: lists, not tuples


def inputs_of(schema: RecordSchema) -> list[dict[str, Any]]:
    """Also the normalisation: it is part of the student, so another one would not be taken."""
    return [column.model_dump(exclude_defaults=True) for column in schema.inputs]
