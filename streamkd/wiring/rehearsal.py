"""A rehearsal: every part built once, a few steps taken, and all let go.

What cannot be is said at start, not with the first record.
"""

import logging

import numpy as np
import torch

from streamkd.config import Config
from streamkd.errors import ConfigError, PluginError, StateError
from streamkd.learning.step import Step
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.settings import Limits
from streamkd.state.tree import pack
from streamkd.streams.replay.review import first_records
from streamkd.strikes import blame
from streamkd.students.networks import torch_dtype
from streamkd.wiring.beginning import artefact_of
from streamkd.wiring.parts import make
from streamkd.wiring.sources import at_once, open_source, source_kind
from streamkd.wiring.step import step_of

STEPS, ROWS = 3, 10  # of a rehearsal
logger = logging.getLogger(__name__)


def rehearse(config: Config, registry: Registry, schema: RecordSchema, device: torch.device) -> None:
    """Build every part once and let it go: what cannot be built is said at start, not with the first record.

    Raises:
        PluginError: a part that the configuration names cannot be built. ConfigError: no pushed record fits the limits.
    """
    if source_kind(config, registry).push:
        _refuse_limits(config.stream.limits, schema)
    with torch.random.fork_rng(devices=[]):
        labels: list[Label] = [0 if schema.label_type == "int" else ""]
        step, adapter = step_of(config, registry, schema, labels, device, artefact_of(config, schema))
        make(registry, "publish.model", "selectors", config.publish.model)
        _take_steps(step, config, schema, device)
    wanted = adapter.active and (adapter.every or adapter.on_task_steps) and adapter.engine != "prequential"
    if wanted and not config.memory.holdout_ratio:
        logger.warning(
            "memory.holdout_ratio is 0, so the gate has no records to adapt by; adapt.engine prequential needs none"
        )


def _take_steps(step: Step, config: Config, schema: RecordSchema, device: torch.device) -> None:
    """Steps on made-up records, with a class more, and the end of a task: what is wrong at once is said at start.

    Raises:
        PluginError: a plugin fails; it is named, with what was needed and came.
    """
    step.pool.guard.strict = True
    for strikes in step.strikes:
        strikes.strict = True
    chance = torch.Generator().manual_seed(config.seed)
    names: list[Label] = [*range(3)] if schema.label_type == "int" else ["", "1", "2"]
    step.grow(names)
    step.student.train()
    for number in range(STEPS):
        torch.default_generator.manual_seed(number)  # for students with dropout, as the learner does
        x = torch.randint(0, 2, (min(config.stream.batch.size, ROWS), *schema.shape), generator=chance)
        y = torch.randint(0, len(names), (len(x),), generator=chance)
        x = x.to(device, torch_dtype[schema.dtype.name])
        taken = step.learn(x, y.to(device), 0)
        if not bool(taken.logits.isfinite().all()):
            said = "needed finite logits, got some that are not"
            raise blame(f"student {config.student.name}", "forward", PluginError(said))
    step.pool.end_task(step.student)
    try:
        pack({"pool": step.pool.state_dict(), "rows": step.sources.state_dict(), "gate": step.gate.state_dict()})
    except StateError as fault:
        raise PluginError(fault.message, where=fault.where, fix=fault.fix) from fault


def rehearse_source(config: Config, registry: Registry, schema: RecordSchema) -> None:
    """Open the source and read its first records, where it is not pushed: what cannot be learned is said at once.

    Raises:
        SourceError: it cannot be opened, does not fit, is hardly meant, or none of its first records can be learned.
    """
    if source_kind(config, registry).push:
        return
    source, _ = open_source(at_once(config), registry, schema)
    try:
        first_records(source, schema)
    finally:
        source.close()


def _refuse_limits(limits: Limits, schema: RecordSchema) -> None:
    """Under these every batch that is pushed would be refused."""
    held_bytes = sum(c.size * np.dtype(c.dtype).itemsize for c in schema.inputs if c.kind == "tensor")
    columns = len(schema.inputs) + 1 + bool(schema.task) + bool(schema.producer)
    for key, needed in (("columns", columns), ("row_bytes", held_bytes)):
        if needed > (given := getattr(limits, key)):
            raise ConfigError(
                f"a record of this stream needs {needed}, got {given}",
                where=f"stream.limits.{key}",
                fix=f"raise it to {needed} or more",
            )
