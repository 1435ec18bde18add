"""Phase 2 from a configuration: its recorded records ─► known tasks ─► start, gate ─► an artefact.

    start           ``initialization`` over courses of known tasks, with the stream's optimiser, batches and replay
    gate            ``meta.train`` over courses with the configured pool and strangers in it, from that start
    artefact        ``meta.artefact``; the configuration's ``meta: DIR`` begins a stream from it

Test records are never looked at. Called by `streamkd meta-train` and by `streamkd bench meta`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from streamkd import wiring
from streamkd.config import Config
from streamkd.cores import compute_on
from streamkd.document import Document
from streamkd.errors import ConfigError
from streamkd.learning.step import Step
from streamkd.meta import artefact
from streamkd.meta.adaptation import GateAdapter
from streamkd.meta.artefact import Artefact, Weights
from streamkd.meta.optimizers import Ruled
from streamkd.plugins import Registry
from streamkd.pretraining import initialization, outer_loop, synthetic
from streamkd.pretraining.episodes import Course, EpisodeShape, KnownTask
from streamkd.pretraining.synthetic import NATURES
from streamkd.pretraining.teachers import Recorded, fit, recorded
from streamkd.records import Model, RecordSchema
from streamkd.settings import Positive, Ratio
from streamkd.students import optimizers
from streamkd.students.networks import Student
from streamkd.wiring import device_of, schema_of

Progress = Callable[[int, int | None], None]
MOST_STRANGERS = 2  # of an episode, chosen by hand
EXPERT_EPOCHS = 20  # chosen by hand
NOISY = 0.3  # share of episodes whose labels are noisy, and of labels that are wrong in them


class Phase2(Model):
    """How phase 2 is run; the defaults are those of the command."""

    episodes: int = Field(default=60, ge=0, description="episodes of the gate; 0: no gate is learned")
    student_start: Literal["none", "maml", "metasgd"] = "metasgd"
    start_episodes: Positive = Field(default=500, description="outer steps of the start, an episode each")
    turned: bool = Field(
        default=True, description="classes of images, turned by quarter-turns, are further classes for the start"
    )
    shift: int = Field(default=1, ge=0, description="pixels by which images move in the start's episodes, at most")
    first_order: bool = Field(default=True, description="of the start; false: second derivatives")
    outer_rate: float = Field(default=4e-3, gt=0, description="Adam's rate of the start")
    tasks: Positive = Field(default=2, description="known tasks in a row in each episode")
    ways: Positive = Field(default=10, description="labels of a task, at most")
    records: Positive = Field(default=100, description="support records of a task, about")
    horizon: Positive = Field(default=5, description="inner steps of the gate's outer loss")
    noise: Ratio = Field(default=NOISY, description="share of noisy episodes, and of wrong labels in them")


def phase_of(options: Mapping[str, Any]) -> Phase2:
    """Checked settings.

    Raises:
        ConfigError: a value that cannot be.
    """
    return Document({}).check(Phase2, options, "")


def meta_train(
    config: Config,
    registry: Registry,
    out: Path,
    phase: Phase2 | None = None,
    progress: Progress = lambda done, total: None,
) -> Artefact:
    """Run phase 2 on the configuration's recorded stream and write the artefact into ``out``.

    Raises:
        ConfigError: the stream is pushed, never ends, or has too few labels.
        StateError: ``out`` cannot be written.
    """
    phase = phase or Phase2()
    compute_on(config.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        made = _Training(config, registry, phase, progress).run()
    artefact.write(out, made)
    return made


class _Training:
    """One run of phase 2."""

    def __init__(self, config: Config, registry: Registry, phase: Phase2, progress: Progress) -> None:
        # the gate is moved by episodes alone: no bursts, no anchor, no artefact to begin from
        adapt = {"every": phase.horizon, "horizon": phase.horizon, "on_task_steps": 0, "anchor": 0.0}
        self.config = config.model_copy(update={"meta": None, "adapt": config.adapt.model_copy(update=adapt)})
        self.registry, self.phase, self.begun = registry, phase, time.monotonic()
        self.schema: RecordSchema = schema_of(config, registry)
        self.device = device_of(config.device)
        self.records = recorded(config, registry, self.schema)
        self.known = _known(self.records, config, self.device)
        self.shape = EpisodeShape(phase.tasks, phase.ways, phase.records)
        self.progress, self.total = progress, phase.episodes + phase.start_episodes * (phase.student_start != "none")

    def run(self) -> Artefact:
        start = self._start()
        begun = Artefact(start=start.weights) if start else Artefact()
        gate, notes, rule, played = self._gate(begun)
        bound = wiring.learned_for(self.config, self.schema)
        return Artefact(
            learned_for={
                what: bound[what]
                for what, learned in (("gate", gate), ("adapt.optimizer", rule), ("student", start))
                if learned
            },
            gate_weights=gate,
            gate_notes=notes,
            start=begun.start,
            gate_optimizer=rule,
            trained_on=self._trained_on(start, played),
        )

    def _start(self) -> initialization.Start | None:
        phase, optimizer = self.phase, self.config.optimizer
        if phase.student_start == "none":
            return None
        student = self._student(1)
        if student.normalise.fit:
            student.normalise.observe(self.known.x)
        inner = initialization.Inner(
            "sgd" if optimizer.name == "sgd" else "adam", optimizer.learning_rate, first_order=phase.first_order
        )
        batch, replay = self.config.stream.batch.size, self.config.memory.replay
        drawn = (
            [self.known.start_episode(self.shape, batch, replay, turned=phase.turned, shift=phase.shift)]
            for _ in range(phase.start_episodes)
        )
        return initialization.learn_start(
            student, drawn, inner, how=phase.student_start, outer_rate=phase.outer_rate, progress=self._advance
        )

    def _gate(self, begun: Artefact) -> tuple[Weights, dict[str, Any], Weights, list[outer_loop.Played]]:
        """Weights of the gate, its notes, its optimiser's rule, and how the episodes went."""
        shared, adapter = self._step(range(2), begun, self.config.seed)
        if not adapter.parameters or not self.phase.episodes:
            return {}, {}, {}, []
        artefact.parted(adapter.gate.state_dict())  # what cannot be kept is said before the episodes
        rule = adapter.optimizer.rule if isinstance(adapter.optimizer, Ruled) else nn.Module()
        rule.train()
        before = self.total - self.phase.episodes
        played = outer_loop.train_gate(
            adapter,
            self._episodes(shared, adapter, begun),
            batch=self.config.stream.batch.size,
            progress=lambda done: self._advance(before + done),
        )
        return *artefact.parted(adapter.gate.state_dict()), rule.state_dict(), played

    def _episodes(self, shared: Step, adapter: GateAdapter, begun: Artefact) -> Iterator[tuple[Course, Step]]:
        """Courses with steps of their own, in whose pools strangers of changing kinds sit."""
        networks = self._expert(), self._student(len(self.records.classes)).eval()
        draw = torch.Generator().manual_seed(self.config.seed)
        for number in range(self.phase.episodes):
            noisy = float(torch.rand((), generator=draw)) < self.phase.noise
            course = self.known.draw(self.shape, self.phase.noise if noisy else 0.0)
            step, _ = self._step(course[0].classes, begun, seed=self.config.seed + number)
            self._invite(step, course, networks, draw)
            _share(step, shared, adapter)
            yield course, step

    def _invite(self, step: Step, course: Course, networks: tuple[Student, Student], draw: torch.Generator) -> None:
        """Up to so many strangers join the pool."""
        for number in range(int(torch.randint(MOST_STRANGERS + 1, (), generator=draw))):
            nature = NATURES[int(torch.randint(len(NATURES), (), generator=draw))]
            guest = synthetic.stranger(nature, f"stranger-{number}", *networks, course[-1].classes, draw)
            guest.grow(course[0].classes)
            step.pool.teachers.append(guest)
            step.pool.ages[guest.key] = 0

    def _expert(self) -> Student:
        """A network that knows every label, trained on the support records alone."""
        student = self._student(len(self.records.classes))
        rates = self.config.optimizer.rates
        optimizer = optimizers.build(self.config.optimizer.name, student.parameters(), **rates)
        x, y = self.known.support_rows()
        fit(student, optimizer, x, y, EXPERT_EPOCHS, 64, self.config.seed, self.config.optimizer.clip_norm)
        return student.eval().requires_grad_(False)

    def _step(self, labels: Sequence[int], begun: Artefact, seed: int) -> tuple[Step, GateAdapter]:
        config = self.config.model_copy(update={"seed": seed})
        return wiring.step_of(config, self.registry, self.schema, list(labels), self.device, begun)

    def _student(self, classes: int) -> Student:
        return wiring.student_of(self.config, self.registry, self.schema, classes).to(self.device)

    def _advance(self, done: int) -> None:
        self.progress(done, self.total)

    def _trained_on(self, start: initialization.Start | None, played: Sequence[outer_loop.Played]) -> dict[str, Any]:
        """What the artefact says of its making, a few figures of how it went among it."""
        return {
            "stream": self.config.name,
            "seed": self.config.seed,
            "tasks": list(dict.fromkeys(self.records.tasks or ())),
            "records": len(self.records.labels),
            "phase": self.phase.model_dump(mode="json"),
            "seconds": time.monotonic() - self.begun,
            "start_losses": _ends(start.losses if start else []),
            "gate_losses": _ends([one.outer for one in played]),
            "gate_accuracy": _ends([one.accuracy for one in played]),
        }


def _share(step: Step, shared: Step, adapter: GateAdapter) -> None:
    """The step is weighed by the gates of ``shared``, which ``adapter`` moves."""
    step.gate = shared.gate
    step.terms = tuple(replace(term, gate=own.gate) for term, own in zip(step.terms, shared.terms, strict=True))
    adapter.trajectory.forget()
    adapter.attach(step)


def _known(records: Recorded, config: Config, device: torch.device) -> KnownTask:
    """Known tasks by label numbers; without tasks, all labels are one."""
    index = {label: number for number, label in enumerate(records.classes)}
    y = torch.tensor([index[label] for label in records.labels])
    names = records.tasks or [""] * len(records.labels)
    tasks: dict[str, dict[int, None]] = {}
    for name, label in zip(names, y.tolist(), strict=True):
        tasks.setdefault(name, {})[label] = None
    try:
        return KnownTask(
            torch.tensor(records.x).to(device), y, [list(labels) for labels in tasks.values()], config.seed
        )
    except ValueError as fault:
        raise ConfigError(f"phase 2 cannot learn from this stream: {fault}", where="stream.source") from None


def _ends(values: Sequence[float]) -> dict[str, float] | None:
    """Means over the first and the last fifth."""
    values = [value for value in values if math.isfinite(value)]  # no outer loss yet
    if not values:
        return None
    few = max(len(values) // 5, 1)
    return {"first": sum(values[:few]) / few, "last": sum(values[-few:]) / few}
