"""The learner: one student on one stream; ``advance`` trains on the next batch.

    source ─► Batcher ─► codec ─► labels, tasks ─► strategy (memory, teachers, gate, loss, update) ─► live quality

Whatever decides the weights is in ``state()`` and comes from the log's order and from generators, never from the
clock: a learner restored from a checkpoint ends where one that was never stopped ends, bit for bit on CPU.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from streamkd import wiring
from streamkd.config import Config
from streamkd.errors import ConfigError, SourceError, first_line
from streamkd.evaluate.accuracy import Prequential
from streamkd.evaluate.arrival import Arrivals
from streamkd.evaluate.live import LiveQuality
from streamkd.learning import terms
from streamkd.learning.batch import Taken
from streamkd.learning.step import Step
from streamkd.meta.adaptation import GateAdapter
from streamkd.meta.artefact import Artefact
from streamkd.observe import Observers
from streamkd.plugins import Registry
from streamkd.records import Chunk, Records, RecordSchema, Reject, Source
from streamkd.replay.memory import Ring
from streamkd.state.checkpoint import DeadBatch
from streamkd.streams.batcher import Batcher
from streamkd.streams.encoding.decoder import Decoder
from streamkd.streams.log.log import Log
from streamkd.students import optimizers
from streamkd.students.networks import Student, at_rest
from streamkd.tasks.boundary import Boundary, Tasks
from streamkd.tasks.experience import TensorBatch, tensors
from streamkd.tasks.labels import LabelSpace
from streamkd.teachers.served import Candidates, Model, Selector
from streamkd.telemetry import Recorder

if TYPE_CHECKING:
    from streamkd.avalanche.strategy import StreamStrategy

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
        journal: Log | None = None,
        recorder: Recorder | None = None,
        avalanche_plugins: Sequence[Any] = (),
        avalanche_metrics: Sequence[Any] = (),
        on_task_end: Callable[[str], None] = lambda task: None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.registry, self.source, self.schema = config, registry, source, schema
        self.recorder = recorder or Recorder()
        self.device = wiring.device_of(config.device)
        self.offsets: dict[str, int] = dict.fromkeys(source.partitions, 0)
        self.records = 0
        self.steps = 0
        self.labels = LabelSpace()
        self.tasks = Tasks(dict(wiring.make_all(registry, "detectors", config.detectors)))
        self.prequential = Prequential(WINDOW)
        self.arrivals = Arrivals(WINDOW)
        self.answered = Prequential(WINDOW)  # by the mixture as each record found it
        self.quality = LiveQuality()
        self.observers = Observers(wiring.make_all(registry, "observers", config.observers), self.recorder)
        self._selector: Selector = wiring.make(registry, "publish.model", "selectors", config.publish.model)
        self.dead: list[DeadBatch] = []
        self.last: Taken | None = None
        self._batcher = Batcher(source, config.stream.batch.size, config.stream.batch.flush_seconds, journal)
        self._decoder = Decoder(source, schema)
        self._avalanche = _avalanche([*avalanche_plugins, *avalanche_metrics])
        self._plugins, self._metrics = list(avalanche_plugins), list(avalanche_metrics)
        self._on_task_end = on_task_end
        self._on_batch = on_batch  # told when the offsets are past a batch that is about to be learned
        self.pulled = journal is None  # else records were counted when they were accepted
        self.last_step_at: float | None = None
        self._bad_in_a_row = 0
        self._step: Step | None = None
        self._strategy: StreamStrategy | None = None  # none where Avalanche cannot be imported
        self._adapter: GateAdapter | None = None
        self._chosen: tuple[int, Model] | None = None  # what is served, as chosen after so many steps
        self._begun: Artefact | None = None

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
            self._chosen = (self.steps, self._selector.choose(self._candidates))
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
        chunk = self._batcher.next(self.offsets)
        if chunk is None:
            return False
        records, rejects = self._decoder.decode(chunk)
        if len(self.labels) + len(records) > self.config.stream.limits.labels:
            records, more = self._without_surplus_labels(records, chunk.offset)
            rejects = [*rejects, *more]
        if rejects:
            self._refuse(chunk, rejects, len(records))
        self.offsets[chunk.partition] = chunk.next_offset
        if len(records):
            self._bad_in_a_row = 0
            self._train(records)
        return True

    def _without_surplus_labels(self, records: Records, offset: int) -> tuple[Records, list[Reject]]:
        """Records of labels that are known or for which there is room: an id that stands as label fills no memory."""
        limit = self.config.stream.limits.labels
        new = [label for label in dict.fromkeys(records.labels) if label is not None and label not in self.labels]
        surplus = set(new[max(0, limit - len(self.labels)) :])
        rejects = [
            Reject(int(at) - offset, "too_many_labels", f"{label!r:.80} is new, and {limit} labels are known")
            for at, label in zip(records.offsets, records.labels, strict=True)
            if label in surplus
        ]
        return records.take([i for i, label in enumerate(records.labels) if label not in surplus]), rejects

    def _log(self, name: str, value: float) -> None:
        self.recorder.set("avalanche_metric", value, metric=name)

    def end_of_stream(self) -> None:
        """A finite stream is over: close its last task."""
        if self.started:
            self._end_task(self.tasks.current)

    def _refuse(self, chunk: Chunk, rejects: Sequence[Any], good: int) -> None:
        offsets = range(chunk.offset, chunk.next_offset)
        self.dead.append(DeadBatch(rejects, chunk.rows, chunk.partition, offsets))
        for reject in rejects:
            self.recorder.count("records_rejected_total", source=self._source, reason=reject.reason)
            self.recorder.count("dead_letter_records_total", source=self._source, reason=reject.reason)
        self._bad_in_a_row = 0 if good else self._bad_in_a_row + len(rejects)
        # pushed records are acknowledged already, and their bad runs refused at the door: stopping for
        # those in the log would stop every later start at the same place
        if self.pulled and self._bad_in_a_row >= self.config.stream.limits.bad_in_a_row:
            raise SourceError(
                f"{self._bad_in_a_row} records in a row were refused, the last for {rejects[-1].reason}: "
                f"{rejects[-1].detail}",
                where=f"{chunk.partition}, offset {offsets[rejects[-1].row]}",
                fix="mend the source or stream.records; nothing of it was learned",
            )

    @property
    def _source(self) -> str:
        return self.config.stream.source.name

    def _train(self, records: Records) -> None:
        begun = time.perf_counter()
        if unlabelled := records.labels.count(None):
            self.recorder.count("records_unlabelled_total", unlabelled, source=self._source)
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
        self.arrivals.score(batch.x, batch.y)
        # a student with dropout draws from torch's own generator: by the step's number, so that resuming is exact
        torch.default_generator.manual_seed(self.config.seed * 1_000_003 + self.steps)
        taken = self.last = self._take(batch)
        self.records += taken.fresh
        self.steps += 1
        self.last_step_at = time.time()
        labelled, right = taken.known()
        if labelled:
            self.prequential.add(right, labelled)
            self._count_answered(taken)
        if self.tasks.scoring:
            self.tasks.score(taken.wrong())
        self._count(taken, time.perf_counter() - begun)
        self.observers.tell("on_step", self.records, float(taken.loss), right / labelled if labelled else math.nan)

    def _count_answered(self, taken: Taken) -> None:
        said = self.step.mixture.last
        if said is not None:
            labels = taken.plan.y[: taken.fresh].cpu().numpy()
            right = (said.mixed.argmax(1) == labels) & (labels >= 0)
            self.answered.add(int(right.sum()), int((labels >= 0).sum()))

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
            self.config, self.registry, self.schema, self.labels.labels, self.device, self._begun
        )
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
        self.quality.note(self.records, self.prequential.accuracy, hard, weights, self.arrivals.accuracy)

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
        tree: dict[str, Any] = {
            "records": self.records,
            "steps": self.steps,
            "schema": self.schema.model_dump(mode="json"),
            "labels": self.labels.state_dict(),
            "tasks": self.tasks.state_dict(),
            "prequential": self.prequential.state_dict(),
            "arrivals": self.arrivals.state_dict(),
            "answered": self.answered.state_dict(),
            "quality": self.quality.state_dict(),
            "bad_in_a_row": self._bad_in_a_row,
            "learned": None,
        }
        if self.started:
            step = self.step
            tree["learned"] = {
                "student": step.student.state_dict(),
                "optimizer": optimizers.state_of(step.optimizer),
                "memory": step.memory.state_dict(),
                "rows": step.sources.state_dict(),
                "held_out": step.held_out.state_dict(),
                "mixture": step.mixture.state_dict(),
                "contradiction": step.contradiction.state_dict(),
                "recent": step.recent.state_dict(),
                "present": step.present.state_dict(),
                "settling": step.rate_decay.state_dict(),
                "pool": step.pool.state_dict(),
                "gate": step.gate.state_dict(),
                "begun": self._begun and self._begun.state_dict(),
                "heritage": step.transfer.state_dict() if step.transfer else {},
                "losses": terms.state_of(step.terms),
                "adapter": cast(GateAdapter, self._adapter).state_dict(),
            }
        return tree

    def restore(self, tree: Mapping[str, Any], offsets: Mapping[str, int], saved: Config) -> None:
        """Go on from a checkpoint that was written under the configuration ``saved``.

        Raises:
            StateConflict: what may not change has changed; both values and the way out are named.
        """
        before = RecordSchema.model_validate(tree["schema"])
        wiring.refuse_conflicts(saved, before, self.config, self.schema, self.registry)
        self.offsets.update(offsets)
        self.records, self.steps = tree["records"], tree["steps"]
        self.labels.load_state_dict(tree["labels"])
        self.tasks.load_state_dict(tree["tasks"])
        self.prequential.load_state_dict(tree["prequential"])
        if "arrivals" in tree:
            self.arrivals.load_state_dict(tree["arrivals"])
        if "answered" in tree:
            self.answered.load_state_dict(tree["answered"])
        self.quality.load_state_dict(tree["quality"])
        self._bad_in_a_row = tree["bad_in_a_row"]
        if tree["learned"] is not None:
            self._restore_learned(tree["learned"], saved)

    def _restore_adapter(self, adapter: Mapping[str, Any], saved: Config) -> None:
        """Where losses have changed, the steps that it kept are of no use; nor is the rest, if some had gates."""
        if saved.losses == self.config.losses:
            cast(GateAdapter, self._adapter).load_state_dict(dict(adapter))
        elif not any(choice.gate for choice in (*saved.losses, *self.config.losses)):
            cast(GateAdapter, self._adapter).load_state_dict({**adapter, "trail": {"steps": []}})

    def _restore_learned(self, learned: Mapping[str, Any], saved: Config) -> None:
        self._begun = wiring.begun_from(learned.get("begun"), saved, self.config, self.schema)
        self._start()
        step = self.step
        step.student.load_state_dict(learned["student"])
        if step.transfer is not None:
            step.transfer.load_state_dict(learned["heritage"])
        adapters = saved.losses == self.config.losses and terms.restore(step.terms, learned.get("losses", []))
        if saved.optimizer.name == self.config.optimizer.name:
            # behind the student's parameters come those of the losses: of other losses than now, they say nothing
            first = None if adapters else len([*step.student.parameters()])
            optimizers.restore(step.optimizer, learned["optimizer"], first)
        step.memory.load_state_dict(learned["memory"], self.device)
        if "rows" in learned:
            step.sources.load_state_dict(learned["rows"])
        if "held_out" in learned:
            step.held_out.load_state_dict(learned["held_out"])
        if "mixture" in learned:
            step.mixture.load_state_dict(learned["mixture"])
            step.contradiction.load_state_dict(learned["contradiction"])
            step.recent.load_state_dict(learned["recent"], self.device)
        if "present" in learned:
            step.present.load_state_dict(learned["present"])
        if "settling" in learned:
            step.rate_decay.load_state_dict(learned["settling"])
        step.pool.load_state_dict(learned["pool"], self.fresh_student, self.labels.labels)
        if saved.gate == self.config.gate:
            step.gate.load_state_dict(learned["gate"])
            self._restore_adapter(learned["adapter"], saved)
        for what in ("optimizer", "gate", "teachers", "pool", "losses", "adapt", "vicinal", "rows"):
            before, now = getattr(saved, what), getattr(self.config, what)
            if before != now:
                logger.warning("%s has changed since the checkpoint: was %s, is %s", what, before, now)


def _avalanche(asked: Sequence[Any]) -> Any:
    """The loop as Avalanche knows it, a module; ``None`` where Avalanche cannot be imported.

    Raises:
        ConfigError: it cannot, and plugins or metrics of it are ``asked`` for.
    """
    try:
        from streamkd.avalanche import strategy
    except (ImportError, RuntimeError) as fault:  # torchvision beside a torch of another build
        fix = "install torch and torchvision of one index: CPU builds both, or neither"
        if asked:
            raise ConfigError(
                f"Avalanche cannot be imported: {first_line(fault)}", where="avalanche", fix=fix
            ) from None
        logger.warning("steps are taken without Avalanche, to the same bits (%s); %s", first_line(fault), fix)
        return None
    return strategy
