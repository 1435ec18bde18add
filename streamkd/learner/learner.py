"""The learner: one student on one stream; ``advance`` trains on the next batch.

    source ─► Feed ─► labels, tasks ─► strategy (memory, teachers, gate, loss, update) ─► live quality

Whatever decides the weights is in ``state()`` and comes from the log's order and from generators, never from the
clock: a learner restored from a checkpoint ends where one that was never stopped ends, bit for bit on CPU.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from streamkd import wiring
from streamkd.avalanche import available
from streamkd.config import Config
from streamkd.errors import PluginError, StateConflict
from streamkd.evaluate.live import LiveQuality
from streamkd.gates.producers import Producers
from streamkd.isolation.absences import AbsenceJournal
from streamkd.learner import resuming
from streamkd.learner.feed import Feed
from streamkd.learner.prequential import Prequential
from streamkd.learning.batch import Taken
from streamkd.learning.class_weights import ClassWeights
from streamkd.learning.step import Step
from streamkd.meta.adaptation import GateAdapter
from streamkd.meta.artefact import Artefact
from streamkd.observe import Observers
from streamkd.plugins import Registry
from streamkd.records import Records, RecordSchema, Source
from streamkd.replay.ring import Ring
from streamkd.state.checkpoint import DeadBatch
from streamkd.streams.log.log import Log
from streamkd.streams.skips import Skip
from streamkd.strikes import Strikes
from streamkd.students.networks import Student, at_rest
from streamkd.tasks.boundary import Boundary, Tasks
from streamkd.tasks.experience import TensorBatch, tensors
from streamkd.tasks.labels import LabelSpace
from streamkd.teachers.served import Candidates, Model, Selector, weighted
from streamkd.telemetry import Recorder

if TYPE_CHECKING:
    from streamkd.avalanche.strategy import StreamStrategy

logger = logging.getLogger(__name__)


def _chosen_by(selector: Selector, candidates: Candidates) -> Model:
    model = selector.choose(candidates)
    if not isinstance(model, Model):
        raise PluginError(f"needed a Student or a Served, got {type(model).__name__}")
    return model


class Learner:
    """One student on one stream, with everything that it learns by."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        source: Source,
        schema: RecordSchema,
        *,
        journal: Log | None = None,
        absences: AbsenceJournal | None = None,
        skips: Sequence[Skip] = (),
        recorder: Recorder | None = None,
        avalanche_plugins: Sequence[Any] = (),
        avalanche_metrics: Sequence[Any] = (),
        on_task_end: Callable[[str], None] = lambda task: None,
        on_batch: Callable[[], None] = lambda: None,
        lenient: bool = False,
    ) -> None:
        self.config, self.registry, self.source, self.schema = config, registry, source, schema
        self.recorder = recorder or Recorder()
        self.device = wiring.device_of(config.device)
        self.records = 0
        self.steps = 0
        self.labels = LabelSpace()
        self.feed = Feed(config.stream, source, schema, self.labels, self.recorder, journal, skips)
        self._journal, self._absences = journal, absences
        self.tasks = Tasks(dict(wiring.make_all(registry, "detectors", config.detectors)))
        self.class_weights = None if (given := config.publish.class_weights) is None else ClassWeights(given)
        self.prequential = Prequential(source, schema, self.device, self.labels, journal, self.class_weights)
        self.producers = Producers(config.seed) if schema.producer else None
        self.quality = LiveQuality()
        self.observers = Observers(wiring.make_all(registry, "observers", config.observers))
        self._selecting = Strikes("selector", until="the next start")
        self._selector: Selector = wiring.make(registry, "publish.model", "selectors", config.publish.model)
        self.last: Taken | None = None
        self._avalanche = available.strategy([*avalanche_plugins, *avalanche_metrics])
        self._plugins, self._metrics = list(avalanche_plugins), list(avalanche_metrics)
        self._on_task_end = on_task_end
        self._lenient = lenient  # a gate or a loss that fails is left out
        self._on_batch = on_batch  # told when the offsets are past a batch that is about to be learned
        self.last_step_at: float | None = None
        self._step: Step | None = None
        self._strategy: StreamStrategy | None = None  # none where Avalanche cannot be imported
        self._adapter: GateAdapter | None = None
        self._chosen: tuple[int, Model] | None = None  # what is served, as chosen after so many steps
        self._begun: Artefact | None = None

    @property
    def offsets(self) -> dict[str, int]:
        """Of each partition the first record that was not taken yet."""
        return self.feed.offsets

    @property
    def positions(self) -> Mapping[str, int]:
        """Where the partitions of a broker stood at these offsets; nothing of other sources."""
        return {} if self._journal is None else self._journal.positions(self.offsets[self._journal.partition])

    @property
    def dead(self) -> list[DeadBatch]:
        """What was refused, until a checkpoint holds it."""
        return self.feed.dead

    @property
    def started(self) -> bool:
        """Whether a record has been learned, so that there is a student."""
        return self._step is not None

    @property
    def step(self) -> Step:
        """The parts that learn; there once a record has been learned."""
        assert self._step is not None, "no record has been learned yet"
        return self._step

    @property
    def student(self) -> Student:
        """The network that is trained."""
        return self.step.student

    @property
    def served(self) -> Model:
        """What is published: the student, another part, or several together."""
        if self._chosen is None or self._chosen[0] != self.steps:
            name = self.config.publish.model.name
            model = self._selecting.call(name, "choose", _chosen_by, self._selector, self._candidates) or self.student
            if self.class_weights is not None:
                model = weighted(model, self.class_weights.of(self.labels.labels[: model.classes]).tolist())
            self._chosen = (self.steps, model)
        return self._chosen[1]

    @property
    def _candidates(self) -> Candidates:
        share = self.step.mixture.share
        return self.step.pool.candidates(self.student, share.weights, share.exponents)

    @property
    def _holdout(self) -> Ring:
        return self.step.memory.holdout

    def advance(self) -> bool:
        """Train on the next batch; ``False`` where the source has none now.

        Raises:
            SourceError: so many bad rows in a row that the source must be wrong.
        """
        records = self.feed.next()
        if records is None:
            return False
        if len(records):
            self.prequential.come(records, self._step)
            self._train(records)
        return True

    @property
    def strikes(self) -> list[Strikes]:
        """Of all plugins but teachers, whose guard is the pool's."""
        own = [self.observers.strikes, self.tasks.strikes, self._selecting]
        return [*own, *self._step.strikes] if self._step is not None else own

    def _log(self, name: str, value: float) -> None:
        self.recorder.set("avalanche_metric", value, metric=name)

    def end_of_stream(self) -> None:
        """A finite stream is over: close its last task."""
        if self.started:
            self._end_task(self.tasks.current)

    def _train(self, records: Records) -> None:
        begun = time.perf_counter()
        if unlabelled := records.labels.count(None):
            self.recorder.count("records_unlabelled_total", unlabelled, source=self.config.stream.source.name)
            if not self.labels and unlabelled == len(records):
                return  # no class is known yet, so there is nothing that anybody could teach of them
        new = self.labels.learn(records.labels)
        previous, known = self.tasks.current, len(self.tasks.names)
        boundary = self.tasks.observe(records, new, self.records)
        if self._step is None:
            self._start()
        elif boundary is not None:
            self._end_task(previous, over=self.tasks.current != previous)
        self._on_batch()
        if len(self.labels) > self.student.classes:
            self.step.grow(self.labels.labels)
        if boundary is not None:
            self._begin_task(boundary, new=len(self.tasks.names) > known)
        batch = tensors(records, self.labels, self.tasks.current, self.device)
        told, batch = batch.y, self._believed(batch, records)
        self.prequential.score(batch, records, self.step)
        # a student with dropout draws from torch's own generator: by the step's number, so that resuming is exact
        torch.default_generator.manual_seed(self.config.seed * 1_000_003 + self.steps)
        taken = self.last = self._take(batch)
        self.records += taken.fresh
        self.steps += 1
        self.last_step_at = time.time()
        wrong = self.prequential.count(taken, self.step.mixture.last)
        said = self.step.mixture.last
        if self.producers is not None and records.producers and said is not None and not taken.skipped:
            self.producers.learn(records.producers, told.cpu().numpy(), said.mixed)
        for _ in range(self.feed.pace.gear.rehearsals):
            self.step.rehearse(self.tasks.current)
        if self.tasks.scoring:
            self.tasks.score(wrong)
        self._count(taken, time.perf_counter() - begun)
        if self.observers.hear("on_step"):
            right = 1 - float(wrong.mean()) if len(wrong) else math.nan
            self.observers.tell("on_step", self.records, float(taken.loss), right)

    def _believed(self, batch: TensorBatch, records: Records) -> TensorBatch:
        """Without the labels that are withheld, of producers that are doubted."""
        if self.producers is None or records.producers is None:
            return batch
        heard = self.producers.heard(records.producers, batch.y.cpu().numpy(), self.steps)
        return replace(batch, y=torch.from_numpy(heard).to(batch.y.device))

    def _take(self, batch: TensorBatch) -> Taken:
        if self._strategy is not None:
            return self._strategy.learn(batch)
        self.student.train()
        return self.step.learn(batch.x, batch.y, batch.task)

    def _count(self, taken: Taken, seconds: float) -> None:
        self.recorder.observe("train_step_duration_seconds", seconds)
        if taken.skipped:
            self.recorder.count("train_steps_skipped_total", reason="not_finite")

    def _begin_task(self, boundary: Boundary, new: bool) -> None:
        self.recorder.count("task_boundaries_total", detector=boundary.detector)
        if new:
            self.recorder.count("tasks_total")
        cast(GateAdapter, self._adapter).begin_task()
        logger.info("task %s begins at record %d (%s)", boundary.task, boundary.record, boundary.detector)
        self.observers.tell("on_boundary", boundary)

    def _end_task(self, task: int, over: bool = True) -> None:
        """At a boundary, or at the end; a task within which the world has changed is not ``over``."""
        pool = self.step.pool
        admitted = pool.end_task(self.student)
        self._chosen = None  # teachers have learned: what is served must not depend on whether somebody had asked
        if admitted:
            logger.info("teacher %s is admitted; the pool has %s", admitted, ", ".join(pool.keys))
        if over:
            if self._strategy is not None:
                self._strategy.end_task(task)
            self._on_task_end(self.tasks.names[task])

    def _start(self) -> None:
        """Wire the parts that need a student, for the labels so far."""
        self._begun = self._begun or wiring.artefact_of(self.config, self.schema)
        self._step, self._adapter = wiring.step_of(
            self.config, self.registry, self.schema, self.labels.labels, self.device, self._begun, self._absences
        )
        self._step.forgive(self._lenient)
        if self._avalanche is not None:
            evaluator = self._avalanche.quiet_evaluator(*self._metrics, sink=self._log)
            self._strategy = self._avalanche.StreamStrategy(
                step=self._step, device=self.device, plugins=self._plugins, evaluator=evaluator
            )

    def fresh_student(self, classes: int) -> Student:
        """A student of the configuration as it was before the stream, on the device."""
        return wiring.student_of(self.config, self.registry, self.schema, classes, self._begun).to(self.device)

    def measure(self) -> None:
        """Score the served model on held-out records and note a point of the history."""
        if not self.started:
            return
        ring = self._holdout
        if ring.x is not None and ring.filled:
            n = ring.filled
            with at_rest(self.served) as served:
                held = ring.x[:n], ring.y[:n], ring.task[:n]
                self.quality.measure(served, *held, self.tasks.names, self.tasks.current)
        weights = self.gate_weights()
        hard = weights.pop("hard", None)
        self.quality.note(
            self.records, self.prequential.student.accuracy, hard, weights, self.prequential.version.measures.accuracy
        )

    def gate_weights(self) -> dict[str, float]:
        """Mean weights of the last step, the hard label's under ``hard``."""
        if self.last is None or not self.last.weights.numel():
            return {}
        weights = self.last.weights  # of rows that count alike, or not at all
        mean = (weights.sum(0) / weights.sum().clamp_min(1e-6)).tolist()
        return dict(zip(("hard", *self.step.pool.keys), mean, strict=False))

    @property
    def adapter(self) -> GateAdapter | None:
        """Whoever adapts the gate; there once a record has been learned."""
        return self._adapter

    def state(self) -> dict[str, Any]:
        """Everything that decides what is learned next, as a tree for a checkpoint."""
        return {
            "form": resuming.FORM,
            "records": self.records,
            "steps": self.steps,
            "schema": self.schema.model_dump(mode="json"),
            "labels": self.labels.state_dict(),
            "tasks": self.tasks.state_dict(),
            "measures": self.prequential.state_dict(),
            "quality": self.quality.state_dict(),
            "producers": None if self.producers is None else self.producers.state_dict(),
            "bad_in_a_row": self.feed.bad_in_a_row,
            "learned": None if self._adapter is None else resuming.state_of(self.step, self._adapter, self._begun),
        }

    def restore(self, tree: Mapping[str, Any], offsets: Mapping[str, int], saved: Config) -> None:
        """Go on from a checkpoint that was written under the configuration ``saved``.

        Raises:
            StateConflict: what may not change has changed, both values and the way out are named; or the tree is none
                that this version reads.
        """
        try:
            self._restore(resuming.today(tree), offsets, saved)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as fault:
            logger.exception("the checkpoint cannot be taken up")
            raise StateConflict(
                f"needed the state of a learner as this streamkd keeps it, got one that does not fit: {fault!r}",
                where=f"checkpoint after {tree.get('records')} records",
                fix="go on with the streamkd and the plugins that wrote it, or begin elsewhere with --state DIR",
            ) from fault

    def _restore(self, tree: Mapping[str, Any], offsets: Mapping[str, int], saved: Config) -> None:
        before = RecordSchema.model_validate(tree["schema"])
        wiring.refuse_conflicts(saved, before, self.config, self.schema, self.registry)
        self.offsets.update(offsets)
        self.records, self.steps = tree["records"], tree["steps"]
        self.labels.load_state_dict(tree["labels"])
        self.tasks.load_state_dict(tree["tasks"])
        if "measures" in tree:  # before, right ones alone were counted
            self.prequential.load_state_dict(tree["measures"])
        self.quality.load_state_dict(tree["quality"])
        if self.producers is not None and tree.get("producers") is not None:
            self.producers.load_state_dict(tree["producers"])
        self.feed.bad_in_a_row = tree["bad_in_a_row"]
        if tree["learned"] is not None:
            self._restore_learned(tree["learned"], saved)

    def _restore_learned(self, learned: Mapping[str, Any], saved: Config) -> None:
        self._begun = wiring.begun_from(learned.get("begun"), saved, self.config, self.schema)
        self._start()
        assert self._adapter is not None
        resuming.restore(self.step, self._adapter, learned, saved, self.config, self.labels.labels, self.fresh_student)
