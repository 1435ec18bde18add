"""The gated distillation as one Avalanche plugin, for any strategy that calls ``before_backward``.

    Naive(model, optimizer, criterion, plugins=[MatchGateDistillation()])

    before_backward   begin, weigh, loss ─► strategy.loss grows by it      a ``Step`` in the strategy's own loop:
    before_update     the gate's adapter looks at the gradients            its events are Avalanche's
    after_update      the gate adapts, teachers and memory follow

The strategy keeps its own loss for the hard labels; the plugin adds what the teachers say, weighed by a gate of
``streamkd.gates`` (``streamkd.avalanche.hosted`` has the formula), and replays rows of its own memory, of which each
counts as much as a fresh one. The teachers are heard as far as their advantage: the part of the model's mistakes that
they would spare it, on rows that it has not been trained on in this step, and on held-out ones. An average lags behind
a model that still learns fast: of a new class it says for a whole task that it is an old one. There the strategy is
left alone.

Teachers: a moving average of the model (``average``), copies of that average from the ends of tasks, and the logits
of its own remembered rows. Each is heard only on the classes that it was trained on. With a memory of its own the gate
is adapted to the held-out part of it (``streamkd.meta``); without, it stays as it is. A held-out row is never replayed
and no teacher speaks of it, but the strategy has trained on it when it came.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from streamkd.avalanche import saved
from streamkd.avalanche.comparison import EarlierSelves
from streamkd.avalanche.copies import ByTask, fits, refitted
from streamkd.avalanche.deferred import AVALANCHES, deferred
from streamkd.avalanche.hosted import HostedLoss
from streamkd.avalanche.strategy import begins_task
from streamkd.errors import ConfigError
from streamkd.gates.gate import Gate, Hedging
from streamkd.gates.per_sample import PerSampleGate, PerSampleOptions
from streamkd.learning.batch import Taken
from streamkd.learning.host import Hosted
from streamkd.learning.step import Step
from streamkd.learning.terms import Term
from streamkd.meta.adaptation import GateAdapter
from streamkd.replay.memory import Memory
from streamkd.students.foreign import Foreign
from streamkd.teachers.snapshot import SnapshotTeacher
from streamkd.teachers.teacher import copy_of

with deferred(*AVALANCHES):
    from avalanche.core import SupervisedPlugin
    from avalanche.models.utils import is_multi_task_module

logger = logging.getLogger(__name__)
EVERY = 10  # steps between two measurements on the held-out rows
QUERY = 64  # held-out rows for each move of the gate


@dataclass(frozen=True, slots=True)
class Helped:
    """A task: its steps, in how many the teachers were heard, and the mean of their advantage over all of them."""

    steps: int = 0
    heard: int = 0
    advantage: float = 0.0

    def and_(self, advantage: float) -> "Helped":
        """With one step more."""
        steps = self.steps + 1
        return Helped(steps, self.heard + (advantage > 0), self.advantage + (advantage - self.advantage) / steps)


class MatchGateDistillation(SupervisedPlugin):
    """Adds gated distillation from a pool of earlier selves to any strategy's loss.

    Args:
        weight: of the teachers' term on the strategy's own mini-batch.
        temperature: T, softens the teachers' and the model's probabilities.
        gate: any gate of ``streamkd.gates``; ``None``: the per-sample gate with its defaults. Those with something
            to learn (scalar, per-class, per-sample) stay as they are without memory, the hedge is refused there.
        decay: of the moving average; 0.999 spans about a thousand steps.
        snapshots: most copies of the average kept, one for each finished task; the one least listened to makes room.
        memory: records of a memory of its own, class-balanced, held-out part included. 0 for none: right where the
            strategy replays, since its mini-batches hold old rows already.
        replay: rows of that memory that join each step.
        holdout_ratio: share of that memory which is never replayed and serves to adapt the gate.
        adapt_every: steps between adaptations of the gate; 0 for never.
        adapt_rate: of the gate's own Adam.
        seed: of the memory's draws.

    Experiences may have task labels, heads may grow (``IncrementalClassifier``, ``MultiHeadClassifier``), online
    streams are cut at the tasks that they show. ``teach.advantage`` says how far the teachers are heard,
    ``teach.helped`` in which tasks, and how much; the log has a line of each.

    Raises:
        ConfigError: a number out of its range; a hedge without held-out records; while training: a strategy without
            ``before_backward`` (LaMAML), an optimiser without a closed form (not SGD, Adam or AdamW) where the gate is
            to be adapted.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 2.0,
        *,
        gate: nn.Module | None = None,
        decay: float = 0.999,
        snapshots: int = 4,
        memory: int = 0,
        replay: int = 10,
        holdout_ratio: float = 0.2,
        adapt_every: int = 10,
        adapt_rate: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(weight=weight, snapshots=snapshots, memory=memory, replay=replay, adapt_every=adapt_every)
        _check(1.0, decay=decay, holdout_ratio=holdout_ratio)
        if temperature <= 0:
            raise ConfigError(f"needed more than 0, got {temperature}", where="MatchGateDistillation.temperature")
        self.gate = PerSampleGate(PerSampleOptions()) if gate is None else gate
        self.memory = Memory(memory, holdout_ratio, snapshots, seed)
        self._adapts = bool(adapt_every and self.memory.holdout.capacity)
        if not self._adapts and any(isinstance(part, Hedging) for part in self.gate.modules()):
            raise ConfigError(
                f"{type(self.gate).__name__} needed held-out records to settle by, got memory {memory}, holdout_ratio "
                f"{holdout_ratio}, adapt_every {adapt_every}",
                where="MatchGateDistillation.gate",
                fix="give the plugin a memory, MatchGateDistillation(gate=..., memory=500), or take another gate",
            )
        self.decay, self.limit, self.replay = decay, snapshots, replay
        self.adapt_every, self.adapt_rate = adapt_every, adapt_rate
        self.weights: dict[str, float] = {}
        """Mean weight of each source on the last step's rows, the hard label's under ``hard``."""
        self.helped: list[Helped] = []
        """Of each task that has begun, in their order."""
        self._loss = HostedLoss(weight, temperature)
        self._step: Step | None = None
        self._adapter: GateAdapter | None = None
        self._steps = 0
        self._events: Iterator[tuple[str, Taken]] = iter(())
        self._learned: dict[str, Any] | None = None  # what was loaded, until there is a model
        self._made_with = {
            "gate": type(self.gate).__name__,
            "memory": memory,
            "holdout_ratio": holdout_ratio,
            "snapshots": snapshots,
            "adapts": self._adapts,
        }

    @property
    def advantage(self) -> float:
        """What part of the model's mistakes the teachers would spare it, as it was measured last."""
        return self._loss.advantage

    @property
    def adaptations(self) -> int:
        """How often the gate was adapted."""
        return 0 if self._adapter is None else self._adapter.adaptations

    @property
    def snapshots(self) -> list[SnapshotTeacher]:
        """The copies of the average that are kept, the oldest first."""
        return [] if self._step is None else _selves(self._step).copies

    @property
    def average(self) -> nn.Module:
        """The moving average of the model, in evaluation mode."""
        average = self._step and self._step.pool.average
        if average is None:
            raise ConfigError("nothing was trained yet, so there is no average", where="MatchGateDistillation.average")
        body = average.student.body
        return cast(nn.Module, body.module) if isinstance(body, ByTask) else body

    def state_dict(self) -> dict[str, Any]:
        """All that decides what it does next: memory, teachers, gate, random numbers.

        Saved between two experiences beside the states of model and optimiser and ``torch.get_rng_state()``, fresh ones
        go on by it bit for bit. ``torch.load(..., weights_only=True)`` reads it.
        """
        learned = self._learned
        if self._step is not None:
            adapter = None if self._adapter is None else self._adapter.state_dict()
            parts = {"memory": self.memory.state_dict(), "pool": self._step.pool.state_dict()}
            learned = {**parts, "adapter": adapter}
        told = {"helped": [astuple(task) for task in self.helped], "weights": self.weights, "advantage": self.advantage}
        own = {"form": saved.FORM, "made_with": self._made_with, "steps": self._steps, **told}
        return cast(dict[str, Any], saved.plain({**own, "gate": self.gate.state_dict(), "learned": learned}))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with a model that has its own state already; to be called before it is trained.

        Teachers and memory are there again when training goes on.

        Raises:
            StateError: it is no such state. StateConflict: of another plugin or gate, or this one was trained; and,
                when training goes on: of another model.
        """
        saved.check(state, self._made_with)
        if self._steps:
            raise saved.conflict("needed a plugin that was not trained yet, got one that was")
        try:
            self.gate.load_state_dict(state["gate"])
        except RuntimeError as fault:
            raise saved.conflict(f"the gate was another one: {' '.join(str(fault).split())}") from None
        self.helped = [Helped(*task) for task in state["helped"]]
        self.weights, self._loss.advantage = dict(state["weights"]), state["advantage"]
        self._steps, self._learned = state["steps"], state["learned"]

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Where a task begins, a copy of the average is kept."""
        if not self.helped or begins_task(strategy.experience):
            self._tell_of_last()
            self.helped.append(Helped())
        if self._learned is not None:
            self._step = self._resumed(strategy, self._learned)
            self._learned = None
        if self._step is not None and begins_task(strategy.experience):
            self._step.pool.end_task(self._step.student)

    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        """Say how far the teachers have helped in the last task so far."""
        self._tell_of_last()

    def _tell_of_last(self) -> None:
        if self.helped and (last := self.helped[-1]).steps:
            number, part = len(self.helped) - 1, 100 * last.advantage
            said = "task %d: the teachers were heard in %d of %d steps, and spared %.0f %% of the mistakes on average"
            logger.info(said, number, last.heard, last.steps, part)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the teachers' term to ``strategy.loss``."""
        self._steps += 1
        x, y, logits = _rows(strategy)
        step = self._step = self._fitted(strategy)
        if logits.shape[1] > step.student.classes:
            step.grow(range(logits.shape[1]))
        first = strategy.clock.train_exp_epochs == 0  # rows are offered to the memory once
        offered = len(strategy.mb_y) if first and self.memory.replayed.capacity else 0
        self._events = step.take(x, y, int(strategy.mb_task_id[0]), Hosted(logits, offered))
        for event, taken in self._events:
            if event == "after_forward":
                self._loss.advantage = _selves(step).advantage(step, taken, held_out=self._steps % EVERY == 0)
            if event == "before_backward":
                strategy.loss = taken.loss = strategy.loss + taken.loss
                self._note(step, taken)
                return

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """The gate's adapter looks at the gradients."""
        for event, _ in self._events:
            if event == "before_update":
                return

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """The gate is adapted, the average follows, rows are remembered with what the model knew of them."""
        for event, taken in self._events:
            if event == "after_update" and self._step is not None:
                student = cast(Foreign, self._step.student)
                student.train_on(taken.plan.y[: taken.fresh])
                taken.logits = taken.logits.detach().masked_fill(~student.known(), -torch.inf)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """A strategy that has taken a step without ``before_backward`` would go on without being taught."""
        if not self._steps:
            raise ConfigError(
                f"needed a strategy that calls before_backward, got {type(strategy).__name__}, which took a step "
                "without it",
                where="MatchGateDistillation",
                fix="leave the plugin out there, or take a strategy with one backward pass a step (Naive, Replay, ...)",
            )

    def _fitted(self, strategy: Any) -> Step:
        """The step over the model as it is now."""
        step, model = self._step, strategy.model
        if step is not None and fits(step, model):
            return step
        body = ByTask(model, strategy.mb_x.shape[1:]) if is_multi_task_module(model) else model
        if step is None:
            step = self._begun(strategy, _untrained(body, strategy))
        else:
            step = refitted(step, body, strategy.optimizer)
        if self._adapter is not None:
            self._adapter.attach(step)
        return step

    def _resumed(self, strategy: Any, learned: dict[str, Any]) -> Step:
        """The step as it was saved, over a copy of the average: the model may have grown since, and is fitted later."""
        model = copy_of(strategy.model)
        student = _untrained(ByTask(model, torch.Size()) if is_multi_task_module(model) else model, strategy)
        student.restore(learned["pool"]["teachers"]["average"]["student"])
        step = self._begun(strategy, student)
        self.memory.load_state_dict(learned["memory"], strategy.device)
        step.pool.load_state_dict(learned["pool"], lambda _: student, range(student.classes))
        if self._adapter is not None:
            self._adapter.load_state_dict(learned["adapter"])
        return step

    def _begun(self, strategy: Any, student: Foreign) -> Step:
        pool = EarlierSelves(student, self.memory, decay=self.decay, snapshots=self.limit)
        gate = self.gate.to(strategy.device)
        parts = (student, strategy.optimizer, self.memory, pool, cast(Gate, gate), [Term(self._loss, 1.0)])
        if self._adapts:
            every, rate = self.adapt_every, self.adapt_rate
            self._adapter = GateAdapter(
                gate, every=every, on_task_steps=0, engine="auto", learning_rate=rate, query=QUERY
            )
        return Step(*parts, replay=self.replay, measure=pool.comparison.measured)

    def _note(self, step: Step, taken: Taken) -> None:
        """How much each source is listened to, for loggers, and for the pool."""
        last = self.helped.pop() if self.helped else Helped()
        self.helped.append(last.and_(self.advantage))
        mean = (self.advantage * taken.weights[:, 1:].mean(0)).tolist()
        self.weights = dict(zip(step.pool.keys, mean, strict=True))
        _selves(step).listen(self.weights)
        self.weights["hard"] = 1.0 - sum(mean)


def _untrained(body: nn.Module, strategy: Any) -> Foreign:
    return Foreign(body, torch.zeros(0, dtype=torch.bool, device=strategy.device))


def _selves(step: Step) -> EarlierSelves:
    return cast(EarlierSelves, step.pool)


def _rows(strategy: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The step's rows, labels and logits; ER-ACE keeps the replayed ones apart from its mini-batch."""
    parts = [(strategy.mb_x, strategy.mb_y, strategy.mb_task_id, strategy.mb_output)]
    apart = [vars(strategy).get(name) for name in ("mb_buffer_x", "mb_buffer_y", "mb_buffer_tid", "mb_buffer_out")]
    if getattr(strategy, "replay_loader", None) is not None and all(part is not None for part in apart):
        parts.append(tuple(apart))
    x, y, tasks, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return (ByTask.rows(x, tasks) if is_multi_task_module(strategy.model) else x), y, logits


def _check(below: float = math.inf, **numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 <= value < below:
            needed = "0 or more" if below == math.inf else f"0 or more, and less than {below:g}"
            raise ConfigError(f"needed {needed}, got {value}", where=f"MatchGateDistillation.{name}")
