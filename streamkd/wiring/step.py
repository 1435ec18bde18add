"""Everything that one training step moves, for a fresh student: networks, memory, teachers, gates, losses, adapter."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from streamkd import config as configuration
from streamkd.choices import Choice, Isolation, TeacherChoice
from streamkd.config import Config
from streamkd.errors import ConfigError
from streamkd.gates.gate import FixedGate
from streamkd.isolation.absences import AbsenceJournal
from streamkd.isolation.teacher import IsolatedTeacher
from streamkd.learning import terms
from streamkd.learning.sharing import Origin, WeightSource, WeightTransfer
from streamkd.learning.step import Step
from streamkd.learning.terms import Term
from streamkd.meta.adaptation import GateAdapter, begin_stream
from streamkd.meta.artefact import Artefact
from streamkd.meta.optimizers import Ruled
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.replay.memory import Memory
from streamkd.replay.rows import RowsContext, RowSource
from streamkd.students import networks, optimizers
from streamkd.students.networks import Student
from streamkd.teachers.former import FormerMaker
from streamkd.teachers.pool import Pool
from streamkd.teachers.snapshot import SnapshotMaker
from streamkd.teachers.teacher import Teacher, TeacherContext
from streamkd.wiring.parts import make, named


def step_of(
    config: Config,
    registry: Registry,
    schema: RecordSchema,
    labels: Sequence[Label],
    device: torch.device,
    begun: Artefact | None = None,
    absences: AbsenceJournal | None = None,
) -> tuple[Step, GateAdapter]:
    """The parts that one training step moves, for a fresh student that knows ``labels``; ``begun``: from phase 2.

    ``absences``: where those of isolated teachers are written down; without it a resumed run may have others.
    """
    begun = begun or Artefact()
    student = student_of(config, registry, schema, len(labels), begun).to(device)

    def context(key: str) -> TeacherContext:
        return TeacherContext(key, student, schema, labels, device, registry)

    transfer = _transfer(config, registry, student, context("share"))
    memory = _memory(config, registry)
    pool = _pool(config, registry, memory, *_teachers(config, registry, context, absences))
    gate = _gate(config, registry, "gate", config.gate, begun).to(device)
    losses = [_term(config, registry, index, device, begun) for index in range(len(config.losses))]
    adapter = _adapter(config, registry, gate, losses, pool, begun)
    optimizer = _optimizer(config, [*student.parameters(), *terms.prepare(losses, student, pool, schema)])
    step = Step(
        student,
        optimizer,
        memory,
        pool,
        gate,
        losses,
        replay=config.memory.replay,
        clip_norm=config.optimizer.clip_norm,
        transfer=transfer,
        gate_name=config.gate.name,
        sources=_row_sources(config, registry, schema),
        rate_decay=optimizers.RateDecay(optimizer, config.optimizer.start, config.optimizer.decay_steps),
    )
    adapter.attach(step)
    return step, adapter


def student_of(
    config: Config, registry: Registry, schema: RecordSchema, classes: int, begun: Artefact | None = None
) -> Student:
    """A student of the configuration before the stream; the seed alone decides its weights, or ``begun`` does."""
    kind = registry.kind("students", config.student.name, "student")
    options = configuration.options(registry, "student", "students", config.student)
    with named("student", config.student):
        return networks.build(kind, options, schema, classes, config.seed, begun.start if begun else None)


def _transfer(config: Config, registry: Registry, student: Student, context: TeacherContext) -> WeightTransfer | None:
    """What the student inherits, which it has then: of a teacher by its key, or of a model by its path."""
    share = config.share
    if share is None:
        return None
    choice = next((t for t in config.teachers if t.key == share.teacher), None)
    if choice is None and not Path(share.teacher).exists():
        known = ", ".join(teacher.key for teacher in config.teachers) or "none"
        fix = f"teachers: {known}; or give the path of a model"
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


def _memory(config: Config, registry: Registry) -> Memory:
    kept = config.memory
    policies = (make(registry, f"memory.{key}", "policies", getattr(kept, key)) for key in ("policy", "holdout_policy"))
    return Memory(kept.size, kept.holdout_ratio, config.pool.limit, config.seed, *policies, bytes=kept.bytes or 0)


def _teachers(
    config: Config,
    registry: Registry,
    context: Callable[[str], TeacherContext],
    absences: AbsenceJournal | None,
) -> tuple[list[Teacher], SnapshotMaker | None, FormerMaker | None]:
    made: list[Any] = [
        _isolated(config, registry, choice, context(choice.key), absences)
        if choice.isolate
        else make(registry, f"teachers.{index}", "teachers", choice, context(choice.key))
        for index, choice in enumerate(config.teachers)
    ]
    snapshots = [maker for maker in made if isinstance(maker, SnapshotMaker)]
    formers = [maker for maker in made if isinstance(maker, FormerMaker)]
    for kind, makers in (("snapshot", snapshots), ("former", formers)):
        if len(makers) > 1:
            raise ConfigError(f"needed at most one teacher of the kind {kind}, got two", where="teachers")
    teachers = [maker for maker in made if not isinstance(maker, SnapshotMaker | FormerMaker)]
    return teachers, next(iter(snapshots), None), next(iter(formers), None)


def _isolated(
    config: Config, registry: Registry, choice: TeacherChoice, context: TeacherContext, absences: AbsenceJournal | None
) -> IsolatedTeacher:
    """The same teacher in a process of its own, which builds it of what the configuration says."""
    mine = config.student
    about = {
        "entries": [registry.origin("teachers", choice.name), registry.origin("students", mine.name)],
        "teacher": {"name": choice.name, "options": choice.values},
        "student": {"name": mine.name, "options": mine.values, "weights": context.student.state_dict()},
        "seed": config.seed,
        "key": choice.key,
        "labels": list(context.labels),
        "schema": context.schema.model_dump(mode="json"),
        "device": str(context.device),
        "threads": config.threads,
    }
    return IsolatedTeacher(about, choice.isolate or Isolation(), absences)


def _pool(
    config: Config,
    registry: Registry,
    memory: Memory,
    teachers: list[Teacher],
    snapshots: SnapshotMaker | None,
    former: FormerMaker | None,
) -> Pool:
    limits = config.pool
    admission = make(registry, "pool.admission", "admissions", limits.admission)
    return Pool(
        teachers,
        snapshots,
        memory,
        limit=limits.limit,
        limit_bytes=limits.bytes,
        admission=admission,
        former=former,
    )


def _adapter(
    config: Config, registry: Registry, gate: Any, losses: Sequence[Term], pool: Pool, begun: Artefact
) -> GateAdapter:
    """Whoever moves the gates of the step and of its terms, from where they begin."""
    gates = torch.nn.ModuleList([gate, *(term.gate for term in losses if isinstance(term.gate, torch.nn.Module))])
    if begun.gate_weights:
        gates.load_state_dict(begun.gate_state)  # before the adapter, whose anchor is where they are now
        begin_stream(gates, pool.keys)
    moved_by = partial(make, registry, "adapt.optimizer", "optimizers", config.adapt.optimizer)
    adapter = GateAdapter(gates, optimizer=moved_by, **config.adapt.model_dump(exclude={"optimizer"}))
    if begun.gate_optimizer and isinstance(adapter.optimizer, Ruled):
        adapter.optimizer.rule.load_state_dict(begun.gate_optimizer)
    return adapter


def _optimizer(config: Config, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return optimizers.build(config.optimizer.name, parameters, **config.optimizer.rates)


def _term(config: Config, registry: Registry, index: int, device: torch.device, begun: Artefact) -> Term:
    path, choice = f"losses.{index}", config.losses[index]
    gate = _gate(config, registry, f"{path}.gate", choice.gate, begun).to(device) if choice.gate else None
    return Term(make(registry, path, "losses", choice), choice.weight, gate, choice.name)


def _gate(config: Config, registry: Registry, path: str, choice: Choice, begun: Artefact) -> Any:
    """A gate, from the prior that ``begun`` has; the teachers that it names are there, or are snapshots to come."""
    if choice.name == "per-sample" and begun.gate_prior:
        choice = Choice.model_validate({**choice.model_dump(), **begun.gate_prior})
    gate = make(registry, path, "gates", choice)
    keys = [teacher.key for teacher in config.teachers]
    for name in gate.named if isinstance(gate, FixedGate) else ():
        if name not in keys and name.rpartition("-")[0] not in keys:
            near = difflib.get_close_matches(name, keys, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(keys)}"
            raise ConfigError(f"there is no teacher {name!r}", where=f"{path}.teachers", fix=fix)
    return gate


def _row_sources(config: Config, registry: Registry, schema: RecordSchema) -> dict[str, RowSource]:
    """The built-in source first, then the further ones in their order; each has a seed of its own."""
    named = [("vicinal", "vicinal", config.vicinal), *((f"rows.{at}", c.key, c) for at, c in enumerate(config.rows))]
    return {
        key: make(registry, path, "rows", choice, RowsContext(key, schema, config.seed + 1 + number))
        for number, (path, key, choice) in enumerate(named)
    }
