"""The composition root: a configuration becomes wired parts, and ``advance`` trains on the next batch.

    source ─► Cutter ─► codec ─► labels, tasks ─► strategy (memory, teachers, gate, loss, update) ─► live quality

Whatever decides the weights is in ``state()`` and comes from the log's order and from generators, never from the
clock: a learner restored from a checkpoint ends where one that was never stopped ends, bit for bit on CPU.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.distill import optimizers, students
from streamkd.distill.memory import Memory
from streamkd.distill.pool import Pool
from streamkd.distill.step import Step, Term
from streamkd.distill.students import Student
from streamkd.distill.teachers import SnapshotMaker, Teacher, TeacherContext, copy_of
from streamkd.errors import ConfigError, SourceError, StateConflict
from streamkd.evaluate.accuracy import Prequential
from streamkd.evaluate.live import LiveQuality
from streamkd.meta.adapt import GateAdapter
from streamkd.observe import Observers
from streamkd.plugins import Registry
from streamkd.records import Chunk, Records, RecordSchema, Source
from streamkd.state.checkpoint import DeadBatch
from streamkd.strategy import StepReport, StreamStrategy, quiet_evaluator
from streamkd.streams import codec
from streamkd.streams.cut import CutJournal, Cutter
from streamkd.streams.log import Log, LogSource
from streamkd.tasks.boundary import Boundary, Tasks
from streamkd.tasks.experience import tensors
from streamkd.tasks.labels import LabelSpace
from streamkd.telemetry import Recorder

logger = logging.getLogger(__name__)
WINDOW = 1_000  # records of the prequential accuracy


class Learner:
    """One student on one stream, with everything that it learns by."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        source: Source,
        schema: RecordSchema,
        *,
        journal: CutJournal | None = None,
        recorder: Recorder | None = None,
        avalanche_plugins: Sequence[Any] = (),
        avalanche_metrics: Sequence[Any] = (),
        on_task_end: Callable[[str], None] = lambda task: None,
    ) -> None:
        self.config, self.registry, self.source, self.schema = config, registry, source, schema
        self.recorder = recorder or Recorder()
        self.device = device_of(config.device)
        self.offsets: dict[str, int] = dict.fromkeys(source.partitions, 0)
        self.records = 0
        self.steps = 0
        self.labels = LabelSpace()
        self.tasks = Tasks(
            {c.name: make(registry, f"detectors.{i}", "detectors", c) for i, c in enumerate(config.detectors)}
        )
        self.prequential = Prequential(WINDOW)
        self.quality = LiveQuality()
        observers = [(c.name, make(registry, f"observers.{i}", "observers", c)) for i, c in enumerate(config.observers)]
        self.observers = Observers(observers, self.recorder)
        self.dead: list[DeadBatch] = []
        self.last: StepReport | None = None
        self._cutter = Cutter(source, config.stream.batch.size, config.stream.batch.flush_seconds, journal)
        self._plugins = list(avalanche_plugins)
        self._evaluator = quiet_evaluator(*avalanche_metrics, sink=self._log)
        self._on_task_end = on_task_end
        self._bad_in_a_row = 0
        self._strategy: StreamStrategy | None = None
        self._adapter: GateAdapter | None = None

    @property
    def started(self) -> bool:
        """Whether a record has been learned, so that there is a student."""
        return self._strategy is not None

    @property
    def strategy(self) -> StreamStrategy:
        """The Avalanche strategy; there once a record has been learned."""
        assert self._strategy is not None, "no record has been learned yet"
        return self._strategy

    @property
    def student(self) -> Student:
        """The network that is trained."""
        return self.strategy.step.student

    @property
    def served(self) -> Student:
        """The network that is published: the moving average, or the student itself."""
        average = self.strategy.step.pool.average if self.config.publish.model == "ema" else None
        return average.student if average else self.student

    def advance(self) -> bool:
        """Train on the next batch; ``False`` where the source has none now.

        Raises:
            SourceError: so many bad rows in a row that the source must be wrong.
        """
        chunk = self._cutter.next(self.offsets)
        if chunk is None:
            return False
        records, rejects = codec.encode(chunk.rows, self.schema, chunk.offset)
        if rejects:
            self._refuse(chunk, rejects, len(records))
        self.offsets[chunk.partition] = chunk.next_offset
        if len(records):
            self._bad_in_a_row = 0
            self._train(records)
        return True

    def _log(self, name: str, value: float) -> None:
        self.recorder.set("avalanche_metric", value, metric=name)

    def end_of_stream(self) -> None:
        """A finite stream is over: close its last task."""
        if self.started:
            self._end_task(self.tasks.current)

    def _refuse(self, chunk: Chunk, rejects: Sequence[Any], good: int) -> None:
        offsets = [chunk.offset + reject.row for reject in rejects]
        self.dead.append(DeadBatch(rejects, chunk.rows, chunk.partition, offsets))
        for reject in rejects:
            self.recorder.count("records_rejected_total", source=self._source, reason=reject.reason)
            self.recorder.count("dead_letter_records_total", source=self._source, reason=reject.reason)
        self._bad_in_a_row = 0 if good else self._bad_in_a_row + len(rejects)
        if self._bad_in_a_row >= self.config.stream.limits.bad_in_a_row:
            raise SourceError(
                f"{self._bad_in_a_row} records in a row were refused, the last for {rejects[-1].reason}: "
                f"{rejects[-1].detail}",
                where=f"{chunk.partition}, offset {offsets[-1]}",
                fix="mend the source or stream.records; nothing of it was learned",
            )

    @property
    def _source(self) -> str:
        return self.config.stream.source.name

    def _train(self, records: Records) -> None:
        begun = time.perf_counter()
        new = self.labels.learn(records.labels)
        previous = self.tasks.current
        boundary = self.tasks.observe(records, new, self.records)
        if self._strategy is None:
            self._start(len(self.labels))
        elif boundary is not None:
            self._end_task(previous)
        if len(self.labels) > self.student.classes:
            self.student.grow(len(self.labels), self.strategy.optimizer)
            self.strategy.step.pool.grow(self.labels.labels)
        if boundary is not None:
            self._begin_task(boundary)
        report = self.last = self.strategy.learn(tensors(records, self.labels, self.tasks.current, self.device))
        self.records += report.fresh
        self.steps += 1
        self.prequential.add(report.right, report.fresh)
        self._count(report, time.perf_counter() - begun)
        self.observers.tell("on_step", self.records, report.loss, report.right / max(report.fresh, 1))

    def _count(self, report: StepReport, seconds: float) -> None:
        self.recorder.count("train_steps_total")
        self.recorder.count("train_samples_total", report.fresh)
        self.recorder.observe("train_step_duration_seconds", seconds)
        if report.skipped:
            self.recorder.count("train_steps_skipped_total", reason="not_finite")

    def _begin_task(self, boundary: Boundary) -> None:
        if self._adapter is not None:
            self._adapter.new_task()
        self.recorder.count("task_boundaries_total", detector=boundary.detector)
        if self.tasks.names.count(boundary.task) and self.tasks.count == len(self.tasks.names):
            self.recorder.count("tasks_total")
        logger.info("task %s begins at record %d (%s)", boundary.task, boundary.record, boundary.detector)
        self.observers.tell("on_boundary", boundary)

    def _end_task(self, task: int) -> None:
        pool = self.strategy.step.pool
        admitted = pool.end_task(self.student)
        self.strategy.end_task(task)
        if admitted:
            logger.info("teacher %s is admitted; the pool has %s", admitted, ", ".join(pool.keys))
        self._on_task_end(self.tasks.names[task])

    def _start(self, classes: int) -> None:
        """Wire the parts that need a student."""
        config, registry = self.config, self.registry
        student = self.fresh_student(classes).to(self.device)
        slots = config.pool.limit
        memory = Memory(config.memory.size, config.memory.holdout_ratio, config.memory.policy, slots, seed=config.seed)
        teachers, snapshots = self._teachers(student)
        pool = Pool(
            teachers,
            snapshots,
            memory,
            limit=config.pool.limit,
            limit_bytes=config.pool.bytes,
            admit_margin=config.pool.admit_margin,
        )
        gate = make(registry, "gate", "gates", config.gate).to(self.device)
        adapt = config.adapt
        self._adapter = GateAdapter(
            gate,
            every=adapt.every,
            on_task_steps=adapt.on_task_steps,
            engine=adapt.engine,
            learning_rate=adapt.learning_rate,
            query=adapt.query,
            anchor=adapt.anchor,
        )
        rates = config.optimizer.model_dump(exclude={"name", "clip_norm"})
        optimizer = optimizers.build(config.optimizer.name, student.parameters(), **rates)
        terms = [Term(make(registry, f"losses.{i}", "losses", c), c.weight) for i, c in enumerate(config.losses)]
        step = Step(
            student,
            optimizer,
            memory,
            pool,
            gate,
            terms,
            replay=config.memory.replay,
            clip_norm=config.optimizer.clip_norm,
            adapter=self._adapter,
        )
        self._strategy = StreamStrategy(step=step, device=self.device, plugins=self._plugins, evaluator=self._evaluator)

    def fresh_student(self, classes: int) -> Student:
        """An untrained student of the configuration; the seed alone decides its weights."""
        config = self.config
        kind = self.registry.kind("students", config.student.name, "student")
        options = configuration.options(self.registry, "student", "students", config.student)
        return students.build(kind, options, self.schema, classes, config.seed)

    def _teachers(self, student: Student) -> tuple[list[Teacher], SnapshotMaker | None]:
        made: list[Any] = []
        for index, choice in enumerate(self.config.teachers):
            context = TeacherContext(choice.key, student, self.schema, self.labels.labels, self.device)
            made.append(make(self.registry, f"teachers.{index}", "teachers", choice, context))
        snapshots = [maker for maker in made if isinstance(maker, SnapshotMaker)]
        if len(snapshots) > 1:
            raise ConfigError("needed at most one teacher of the kind snapshot, got two", where="teachers")
        return [t for t in made if not isinstance(t, SnapshotMaker)], snapshots[0] if snapshots else None

    def measure(self) -> None:
        """Score the served model on held-out records and note a point of the history."""
        if not self.started:
            return
        ring = self.strategy.step.memory.holdout
        if ring.x is not None and ring.filled:
            n = ring.filled
            self.quality.measure(self.served, ring.x[:n], ring.y[:n], ring.task[:n], self.tasks.names)
        weights = self.gate_weights()
        hard = weights.pop("hard", None)
        self.quality.note(self.records, self.prequential.accuracy, hard, weights)

    def gate_weights(self) -> dict[str, float]:
        """Mean weights of the last step, the hard label's under ``hard``."""
        if self.last is None or not self.last.weights.numel():
            return {}
        mean = self.last.weights.mean(0).tolist()
        return dict(zip(("hard", *self.strategy.step.pool.keys), mean, strict=False))

    @property
    def adapter(self) -> GateAdapter | None:
        """Whoever adapts the gate; there once a record has been learned."""
        return self._adapter

    def state(self) -> dict[str, Any]:
        """Everything that decides what is learned next, as a tree for a checkpoint."""
        tree: dict[str, Any] = {
            "records": self.records,
            "steps": self.steps,
            "schema": self.schema.model_dump(mode="json"),
            "labels": self.labels.state_dict(),
            "tasks": self.tasks.state_dict(),
            "prequential": self.prequential.state_dict(),
            "quality": self.quality.state_dict(),
            "bad_in_a_row": self._bad_in_a_row,
            "learned": None,
        }
        if self.started:
            step = self.strategy.step
            tree["learned"] = {
                "student": step.student.state_dict(),
                "optimizer": optimizers.state_of(step.optimizer),
                "memory": step.memory.state_dict(),
                "pool": step.pool.state_dict(),
                "gate": step.gate.state_dict(),
                "adapter": cast(GateAdapter, self._adapter).state_dict(),
            }
        return tree

    def restore(self, tree: Mapping[str, Any], offsets: Mapping[str, int], saved: Config) -> None:
        """Go on from a checkpoint that was written under the configuration ``saved``.

        Raises:
            StateConflict: what may not change has changed; both values and the way out are named.
        """
        self._refuse_conflicts(RecordSchema.model_validate(tree["schema"]), saved)
        self.offsets.update(offsets)
        self.records, self.steps = tree["records"], tree["steps"]
        self.labels.load_state_dict(tree["labels"])
        self.tasks.load_state_dict(tree["tasks"])
        self.prequential.load_state_dict(tree["prequential"])
        self.quality.load_state_dict(tree["quality"])
        self._bad_in_a_row = tree["bad_in_a_row"]
        if tree["learned"] is not None:
            self._restore_learned(tree["learned"], saved)

    def _restore_learned(self, learned: Mapping[str, Any], saved: Config) -> None:
        self._start(len(self.labels))
        step = self.strategy.step
        step.student.load_state_dict(learned["student"])
        if saved.optimizer.name == self.config.optimizer.name:
            optimizers.restore(step.optimizer, learned["optimizer"])
        step.memory.load_state_dict(learned["memory"], self.device)
        step.pool.load_state_dict(
            learned["pool"], lambda n: copy_of(self.fresh_student(n).to(self.device)), self.labels.labels
        )
        if saved.gate == self.config.gate:
            step.gate.load_state_dict(learned["gate"])
            cast(GateAdapter, self._adapter).load_state_dict(learned["adapter"])
        for what in ("optimizer", "gate", "teachers", "pool", "losses", "adapt"):
            before, now = getattr(saved, what), getattr(self.config, what)
            if before != now:
                logger.warning("%s has changed since the checkpoint: was %s, is %s", what, before, now)

    def _refuse_conflicts(self, schema: RecordSchema, saved: Config) -> None:
        now = self.config
        pairs: list[tuple[str, object, object]] = [
            ("stream.records inputs", [(c.name, c.kind, c.shape) for c in schema.inputs],
             [(c.name, c.kind, c.shape) for c in self.schema.inputs]),
            ("stream.records.label_type", schema.label_type, self.schema.label_type),
            ("student", saved.student, now.student),
            ("memory", saved.memory.model_copy(update={"replay": now.memory.replay}), now.memory),
            ("stream.name", saved.stream.name, now.stream.name),
            ("stream.source", _content(saved.stream.source), _content(now.stream.source)),
            ("seed", saved.seed, now.seed),
        ]  # fmt: skip
        for what, before, after in pairs:
            if before != after:
                raise StateConflict(
                    f"the state directory was written with {before}, the configuration has {after}",
                    where=what,
                    fix="go back to the first, or begin elsewhere with --state DIR",
                )


def _content(source: configuration.Choice) -> dict[str, Any]:
    """What of a source's options decides its records: not how fast they come."""
    return {"name": source.name, **{k: v for k, v in source.values.items() if k != "rate"}}


def make(registry: Registry, path: str, group: Any, choice: configuration.Choice, *arguments: Any) -> Any:
    """What a choice of the configuration stands for."""
    options = configuration.options(registry, path, group, choice)
    return registry.kind(group, choice.name, path).make(options, *arguments)


def schema_of(config: Config, registry: Registry) -> RecordSchema:
    """The records' schema: the configuration's, or what the source says of itself.

    Raises:
        ConfigError: neither knows.
    """
    if config.stream.records is not None:
        return config.stream.records
    choice = config.stream.source
    kind = registry.kind("sources", choice.name, "stream.source")
    schema = kind.describe(configuration.options(registry, "stream.source", "sources", choice))  # type: ignore[attr-defined]
    if schema is None:
        raise ConfigError(
            f"the source {choice.name} does not say what its records look like",
            where="stream.records",
            fix="write stream.records, or let `streamkd init FILE` write it for a file like the stream's",
        )
    return schema


def is_push(config: Config, registry: Registry) -> bool:
    """Whether records are pushed into the log, rather than pulled from the source."""
    return bool(registry.kind("sources", config.stream.source.name, "stream.source").push)  # type: ignore[attr-defined]


def open_source(
    config: Config, registry: Registry, schema: RecordSchema, log: Any = None
) -> tuple[Source, CutJournal | None]:
    """The source that the learner reads: the configured one, or the log (at path ``log``) of a push source."""
    if not is_push(config, registry):
        choice = config.stream.source
        options = configuration.options(registry, "stream.source", "sources", choice)
        if getattr(options, "seed", 0) is None:
            options = options.model_copy(update={"seed": config.seed})
        return registry.kind("sources", choice.name).make(options, schema), None
    journal = Log(log, schema, stream=config.stream.name)
    return LogSource(journal), journal


def device_of(name: str) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)
