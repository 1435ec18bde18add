"""From the configuration to parts: whatever a ``Choice`` names, built and joined.

Only this module, ``streamkd.learner`` and the commands read the configuration; the parts take plain arguments.
"""

import difflib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamkd import config as configuration
from streamkd.config import Choice, Config, Limits
from streamkd.errors import ConfigError, PluginError, StateConflict, StreamkdError
from streamkd.gates.gate import FixedGate
from streamkd.hookspecs import Group, SourceKind
from streamkd.learning import terms
from streamkd.learning.sharing import Origin, WeightSource, WeightTransfer
from streamkd.learning.step import Step
from streamkd.learning.terms import Term
from streamkd.meta import artefact
from streamkd.meta.adaptation import GateAdapter, begin_stream
from streamkd.meta.artefact import Artefact
from streamkd.meta.optimizers import Ruled
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema, Source
from streamkd.replay.memory import Memory
from streamkd.replay.rows import RowsContext, RowSource
from streamkd.streams.log.log import Log, LogSource
from streamkd.streams.replay.review import first_records
from streamkd.students import networks, optimizers
from streamkd.students.networks import Student
from streamkd.teachers.former import FormerMaker
from streamkd.teachers.pool import Pool
from streamkd.teachers.snapshot import SnapshotMaker
from streamkd.teachers.teacher import Teacher, TeacherContext

logger = logging.getLogger(__name__)


def make(registry: Registry, path: str, group: Group, choice: Choice, *arguments: Any) -> Any:
    """What a choice of the configuration stands for; ``path`` is where it stands, for errors.

    Raises:
        PluginError: there is no such plugin, or it fails to build its part.
    """
    options = configuration.options(registry, path, group, choice)
    with _named(path, choice):
        return registry.kind(group, choice.name, path).make(options, *arguments)


@contextmanager
def _named(path: str, choice: Choice) -> Iterator[None]:
    """Whatever a plugin raises becomes an error that names it: the configuration asked for it, so it is fatal."""
    try:
        yield
    except StreamkdError:
        raise
    except Exception as fault:  # a plugin is a stranger's code
        said = f"{choice.name!r} cannot be built: {type(fault).__name__}: {fault}"
        raise PluginError(said, where=path, fix="see its options and its files, or name another") from fault


def learned_for(config: Config, schema: RecordSchema) -> dict[str, Any]:
    """What an artefact is bound to: the gates of the step and of its terms, their optimiser, the student's columns."""
    own = [choice.gate for choice in config.losses if choice.gate]
    bound = {
        "gate": [choice.model_dump(mode="json") for choice in (config.gate, *own)],
        "adapt.optimizer": config.adapt.optimizer.model_dump(mode="json"),
        "student": {**config.student.model_dump(mode="json"), "inputs": _inputs(schema.only(schema.student))},
    }
    return json.loads(json.dumps(bound))  # as it is read back: lists, not tuples


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


def rehearse(config: Config, registry: Registry, schema: RecordSchema, device: torch.device) -> None:
    """Build every part once and let it go: what cannot be built is said at start, not with the first record.

    Raises:
        PluginError: a part that the configuration names cannot be built. ConfigError: no pushed record fits the limits.
    """
    if source_kind(config, registry).push:
        _refuse_limits(config.stream.limits, schema)
    with torch.random.fork_rng(devices=[]):
        labels: list[Label] = [0 if schema.label_type == "int" else ""]
        _, adapter = step_of(config, registry, schema, labels, device, artefact_of(config, schema))
        make(registry, "publish.model", "selectors", config.publish.model)
    wanted = adapter.active and (adapter.every or adapter.on_task_steps) and adapter.engine != "prequential"
    if wanted and not config.memory.holdout_ratio:
        logger.warning(
            "memory.holdout_ratio is 0, so the gate has no records to adapt by; adapt.engine prequential needs none"
        )


def _refuse_limits(limits: Limits, schema: RecordSchema) -> None:
    """Under these every batch that is pushed would be refused."""
    held_bytes = sum(c.size * np.dtype(c.dtype).itemsize for c in schema.inputs if c.kind == "tensor")
    for key, needed in (("columns", len(schema.inputs) + 1 + bool(schema.task)), ("row_bytes", held_bytes)):
        if needed > (given := getattr(limits, key)):
            raise ConfigError(
                f"a record of this stream needs {needed}, got {given}",
                where=f"stream.limits.{key}",
                fix=f"raise it to {needed} or more",
            )


def rehearse_source(config: Config, registry: Registry, schema: RecordSchema) -> None:
    """Open the source and read its first records, where it is not pushed: what cannot be learned is said at once.

    Raises:
        SourceError: it cannot be opened, does not fit, is hardly meant, or none of its first records can be learned.
    """
    choice = config.stream.source
    if source_kind(config, registry).push:
        return
    if choice.values.get("rate") is not None:  # at a pace there is nothing to read yet
        choice = Choice.model_validate({**choice.model_dump(), "rate": None})
    stream = config.stream.model_copy(update={"source": choice})
    source, _ = open_source(config.model_copy(update={"stream": stream}), registry, schema)
    try:
        first_records(source, schema)
    finally:
        source.close()


def make_all(registry: Registry, group: Group, choices: Sequence[Choice]) -> list[tuple[str, Any]]:
    """Name and part of every choice in a list of the configuration."""
    return [(choice.name, make(registry, f"{group}.{index}", group, choice)) for index, choice in enumerate(choices)]


def step_of(
    config: Config,
    registry: Registry,
    schema: RecordSchema,
    labels: Sequence[Label],
    device: torch.device,
    begun: Artefact | None = None,
) -> tuple[Step, GateAdapter]:
    """The parts that one training step moves, for a fresh student that knows ``labels``; ``begun``: from phase 2."""
    begun = begun or Artefact()
    student = student_of(config, registry, schema, len(labels), begun).to(device)
    transfer = _heritage(config, registry, student, TeacherContext("share", student, schema, labels, device, registry))
    rates = config.optimizer.rates
    kept = config.memory
    policies = (make(registry, f"memory.{key}", "policies", getattr(kept, key)) for key in ("policy", "holdout_policy"))
    memory = Memory(kept.size, kept.holdout_ratio, config.pool.limit, config.seed, *policies)
    teachers, snapshots, former = _teachers(config, registry, schema, labels, student, device)
    limits = config.pool
    admission = make(registry, "pool.admission", "admissions", limits.admission)
    pool = Pool(
        teachers,
        snapshots,
        memory,
        limit=limits.limit,
        limit_bytes=limits.bytes,
        admission=admission,
        former=former,
    )
    gate = _gate(config, registry, "gate", config.gate).to(device)
    losses = [_term(config, registry, index, device) for index in range(len(config.losses))]
    gates = torch.nn.ModuleList([gate, *(term.gate for term in losses if isinstance(term.gate, torch.nn.Module))])
    if begun.gate_weights:
        gates.load_state_dict(begun.gate_state)  # before the adapter, whose anchor is where they are now
        begin_stream(gates, pool.keys)
    moved_by = partial(make, registry, "adapt.optimizer", "optimizers", config.adapt.optimizer)
    adapter = GateAdapter(gates, optimizer=moved_by, **config.adapt.model_dump(exclude={"optimizer"}))
    if begun.gate_optimizer and isinstance(adapter.optimizer, Ruled):
        adapter.optimizer.rule.load_state_dict(begun.gate_optimizer)
    adapters = terms.prepare(losses, student, pool, schema)
    optimizer = optimizers.build(config.optimizer.name, [*student.parameters(), *adapters], **rates)
    step = Step(
        student,
        optimizer,
        memory,
        pool,
        gate,
        losses,
        replay=kept.replay,
        clip_norm=config.optimizer.clip_norm,
        transfer=transfer,
        sources=_row_sources(config, registry, schema),
        rate_decay=optimizers.RateDecay(optimizer, config.optimizer.start, config.optimizer.decay_steps),
    )
    adapter.attach(step)
    return step, adapter


def _row_sources(config: Config, registry: Registry, schema: RecordSchema) -> dict[str, RowSource]:
    """The built-in source first, then the further ones in their order; each has a seed of its own."""
    named = [("vicinal", "vicinal", config.vicinal), *((f"rows.{at}", c.key, c) for at, c in enumerate(config.rows))]
    return {
        key: make(registry, path, "rows", choice, RowsContext(key, schema, config.seed + 1 + number))
        for number, (path, key, choice) in enumerate(named)
    }


def _term(config: Config, registry: Registry, index: int, device: torch.device) -> Term:
    path, choice = f"losses.{index}", config.losses[index]
    gate = _gate(config, registry, f"{path}.gate", choice.gate).to(device) if choice.gate else None
    return Term(make(registry, path, "losses", choice), choice.weight, gate)


def _gate(config: Config, registry: Registry, path: str, choice: Choice) -> Any:
    """A gate; the teachers that it names are there, or are snapshots to come."""
    gate = make(registry, path, "gates", choice)
    keys = [teacher.key for teacher in config.teachers]
    for name in gate.named if isinstance(gate, FixedGate) else ():
        if name not in keys and name.rpartition("-")[0] not in keys:
            near = difflib.get_close_matches(name, keys, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(keys)}"
            raise ConfigError(f"there is no teacher {name!r}", where=f"{path}.teachers", fix=fix)
    return gate


def student_of(
    config: Config, registry: Registry, schema: RecordSchema, classes: int, begun: Artefact | None = None
) -> Student:
    """A student of the configuration before the stream; the seed alone decides its weights, or ``begun`` does."""
    kind = registry.kind("students", config.student.name, "student")
    options = configuration.options(registry, "student", "students", config.student)
    with _named("student", config.student):
        return networks.build(kind, options, schema, classes, config.seed, begun.start if begun else None)


def _heritage(config: Config, registry: Registry, student: Student, context: TeacherContext) -> WeightTransfer | None:
    """What the student inherits, which it has then: of a teacher by its key, or of a model by its path."""
    share = config.share
    if share is None:
        return None
    choice = next((t for t in config.teachers if t.key == share.teacher), None)
    if choice is None and not Path(share.teacher).exists():
        named = ", ".join(teacher.key for teacher in config.teachers) or "none"
        fix = f"teachers: {named}; or give the path of a model"
        raise ConfigError(f"{share.teacher!r} is neither a teacher nor a model's path", where="share.teacher", fix=fix)
    choice = choice or configuration.TeacherChoice.model_validate({"name": "checkpoint", "path": share.teacher})
    donor = make(registry, "share.teacher", "teachers", choice, context)
    if not isinstance(donor, WeightSource):
        raise ConfigError(
            f"the teacher {share.teacher!r} has no network that could be shared",
            where="share.teacher",
            fix="name a checkpoint teacher, or the path of a model",
        )
    origins = {
        ours: Origin(theirs) if isinstance(theirs, str) else Origin(theirs.layer, theirs.fit == "slice")
        for ours, theirs in share.map.items()
    }
    layers = None if share.layers == "all" else share.layers
    transfer = WeightTransfer(donor, student, layers=layers, origins=origins, frozen=share.frozen)
    transfer.begin(student, context.labels)
    return transfer


def _teachers(
    config: Config,
    registry: Registry,
    schema: RecordSchema,
    labels: Sequence[Label],
    student: Student,
    device: torch.device,
) -> tuple[list[Teacher], SnapshotMaker | None, FormerMaker | None]:
    made: list[Any] = []
    for index, choice in enumerate(config.teachers):
        context = TeacherContext(choice.key, student, schema, labels, device, registry)
        made.append(make(registry, f"teachers.{index}", "teachers", choice, context))
    snapshots = [maker for maker in made if isinstance(maker, SnapshotMaker)]
    formers = [maker for maker in made if isinstance(maker, FormerMaker)]
    for kind, makers in (("snapshot", snapshots), ("former", formers)):
        if len(makers) > 1:
            raise ConfigError(f"needed at most one teacher of the kind {kind}, got two", where="teachers")
    teachers = [maker for maker in made if not isinstance(maker, SnapshotMaker | FormerMaker)]
    return teachers, next(iter(snapshots), None), next(iter(formers), None)


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
    options = configuration.options(registry, "stream.source", "sources", config.stream.source)
    if options.model_dump().get("seed", 0) is None:
        options = options.model_copy(update={"seed": config.seed})
    with _named("stream.source", config.stream.source):
        return kind.make(options, schema), None


def device_of(name: str) -> torch.device:
    """``auto`` takes CUDA, else the CPU: MPS has no float64, in which students keep their normalisation's moments.

    Raises:
        ConfigError: CUDA is asked for, and torch finds none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        why = "finds no GPU" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(
            f"needed a GPU, this torch {why}", where="device", fix="set device: auto, which takes the CPU"
        )
    return torch.device(name)


def refuse_conflicts(
    saved: Config, saved_schema: RecordSchema, now: Config, schema: RecordSchema, registry: Registry
) -> None:
    """What a state directory was written under and what may not change since.

    Raises:
        StateConflict: both values and the way out are named.
    """
    pairs: list[tuple[str, object, object]] = [
        ("stream.records.inputs", _inputs(saved_schema), _inputs(schema)),
        ("stream.records.student", saved_schema.student, schema.student),
        ("stream.records.label_type", saved_schema.label_type, schema.label_type),
        ("student", saved.student, now.student),
        ("share", saved.share, now.share),
        ("memory", saved.memory.model_copy(update={"replay": now.memory.replay}), now.memory),
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


def _inputs(schema: RecordSchema) -> list[dict[str, Any]]:
    """Also the normalisation: it is part of the student, so another one would not be taken."""
    return [column.model_dump(exclude_defaults=True) for column in schema.inputs]


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
