"""The gated distillation as one Avalanche plugin, for any strategy that calls ``before_backward``.

    Naive(model, optimizer, criterion, plugins=[MatchGateDistillation()])

The strategy keeps its own loss L_host for the hard labels; the plugin adds what the teachers say, weighed by a gate::

    L = L_host + weight/n · Σ_i Σ_k a·w_ik·T²·KL(p_ik^T ‖ s_i^T)             the n rows of the strategy's mini-batch
               + 1/n · Σ_j [(1 - a·Σ_k w_jk)·CE(y_j, s_j) + Σ_k a·w_jk·T²·KL(p_jk^T ‖ s_j^T)]    rows of its own memory

so that a remembered row counts as much as a fresh one; w comes from a gate of ``streamkd.gates``, rows sum to 1.
a in [0, 1) is the teachers' advantage: what part of the model's mistakes they would spare it, on rows that the model
has not been trained on in this step, and on held-out ones. An average lags behind a model that still learns fast: of
a new class it says for a whole task that it is an old one. There a is 0, and the strategy is left alone.
Teachers: a moving average of the model (``average``), copies of that average from the ends of tasks, and the
logits of its own remembered rows. Each is heard only on the classes that it was trained on. With a memory of its own
the gate is adapted to the held-out part of it, by the hypergradient of ``streamkd.meta``; without, it stays as it is.
A held-out row is never replayed, but the strategy has trained on it when it came.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from streamkd.avalanche.comparison import Comparison, wider
from streamkd.avalanche.copies import MovingAverage, frozen
from streamkd.avalanche.deferred import AVALANCHES, deferred
from streamkd.errors import ConfigError
from streamkd.gates.gate import GateInputs, Hedging
from streamkd.gates.per_sample import PerSampleGate, PerSampleOptions
from streamkd.losses.match_gate import match_gate, soft_answers, source_losses
from streamkd.meta import hypergradient
from streamkd.replay.memory import Memory, Remembered, whole
from streamkd.students.networks import at_rest
from streamkd.students.optimizers import follow

with deferred(*AVALANCHES):
    from avalanche.benchmarks import OnlineCLExperience
    from avalanche.core import SupervisedPlugin
    from avalanche.models.utils import avalanche_forward, is_multi_task_module

ANCHOR = 1e-3  # pull of the gate's parameters towards where they began
EVERY = 10  # steps between two measurements on the held-out rows
SLOTS = 0  # nobody's answers are cached: foreign networks are asked live


@dataclass(frozen=True, slots=True)
class _Lesson:
    """Rows to be taught on: x [batch, ...], labels, task labels and logits, with what the teachers say of them."""

    x: Tensor
    y: Tensor
    t: Tensor
    logits: Tensor
    evidence: GateInputs
    soft: Tensor


@dataclass(slots=True)
class _Snapshot:
    """A copy of the average, the classes that it was trained on, and how much it was listened to since the last."""

    key: str
    module: nn.Module
    known: Tensor
    age: int = 0
    listened: float = 0.0


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
    streams are cut at the tasks that they show. ``teach.advantage`` says how far the teachers are heard.

    Raises:
        ConfigError: a number out of its range; a hedge without held-out records; while training: a strategy without
            ``before_backward`` (LaMAML), an optimiser without a closed form (not SGD, Adam or AdamW with one group)
            where the gate is to be adapted.
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
        if temperature <= 0 or not 0 <= decay < 1 or not 0 <= holdout_ratio < 1:
            raise ConfigError(
                f"needed temperature > 0, 0 <= decay < 1, 0 <= holdout_ratio < 1, got {temperature}, {decay}, "
                f"{holdout_ratio}",
                where="MatchGateDistillation",
            )
        self.weight, self.temperature, self.decay, self.limit = weight, temperature, decay, snapshots
        self.replay, self.adapt_every = replay, adapt_every
        self.gate = PerSampleGate(PerSampleOptions()) if gate is None else gate
        self._priced = any(isinstance(part, Hedging) for part in self.gate.modules())
        if self._priced and not (adapt_every and round(memory * holdout_ratio)):
            raise ConfigError(
                f"{type(self.gate).__name__} needed held-out records to settle by, got memory {memory}, holdout_ratio "
                f"{holdout_ratio}, adapt_every {adapt_every}",
                where="MatchGateDistillation.gate",
                fix="give the plugin a memory, MatchGateDistillation(gate=..., memory=500), or take another gate",
            )
        self.memory = Memory(memory, holdout_ratio, SLOTS, seed) if memory else None
        self.snapshots: list[_Snapshot] = []
        self.weights: dict[str, float] = {}
        """Mean weight of each source on the last step's rows, the hard label's under ``hard``."""
        self.advantage = 0.0
        """What part of the model's mistakes the teachers would spare it, as it was measured last."""
        self.adaptations = 0
        self._average: MovingAverage | None = None
        self._known = torch.zeros(0, dtype=torch.bool)  # classes that the model was trained on
        self._right: dict[str, float] = {}
        self._steps = self._taken = 0
        self._comparison = Comparison()
        self._moved = [p for p in self.gate.parameters() if p.requires_grad]
        self._origin = [p.detach().clone() for p in self._moved]
        self._optimizer = torch.optim.Adam(self._moved, lr=adapt_rate) if self._moved and memory else None

    @property
    def average(self) -> nn.Module:
        """The moving average of the model, in evaluation mode."""
        if self._average is None:
            raise ConfigError("nothing was trained yet, so there is no average", where="MatchGateDistillation.average")
        return self._average.module

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Where a task begins, a copy of the average is kept; then it takes the form that the model has now."""
        self.gate.to(strategy.device)
        self._known = self._known.to(strategy.device)
        if self._average is None:
            self._average = MovingAverage(strategy.model, self.decay)
        elif self.limit and _begins_task(strategy.experience):
            self._keep()
        self._average.fit(strategy.model)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the teachers' term to ``strategy.loss``; adapt the gate where it is due."""
        self._steps += 1
        x, y, t, logits = _rows(strategy)
        lessons = [self._lesson(x, y, t, logits, None)]
        remembered = self.memory.sample(self.replay) if self.memory else None
        if remembered is not None:
            t = self.memory.replayed.task[remembered.slots]  # type: ignore[union-attr]
            logits = avalanche_forward(strategy.model, remembered.x, t)
            lessons.append(self._lesson(remembered.x, remembered.y, t, logits, remembered))
        with torch.no_grad():
            self._measure(strategy, lessons[0].evidence)
            weights = [self._weigh(lesson, own=bool(number)) for number, lesson in enumerate(lessons)]
        self._note(lessons, weights)
        scales = [self.weight, 0.0 if remembered is None else len(remembered.y) / len(strategy.mb_y)]
        for scale, lesson, rows in zip(scales, lessons, weights, strict=False):
            taught = match_gate(lesson.logits, lesson.y, lesson.soft, rows, self.temperature)
            strategy.loss = strategy.loss + scale * taught.mean()
        adapts = self._optimizer is not None or self._priced
        if adapts and self.adapt_every and self._steps % self.adapt_every == 0:
            self._adapt(strategy, lessons, scales)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """The average follows; fresh rows are offered to the memory, in the first epoch alone."""
        assert self._average is not None
        self._average.follow(strategy.model)
        self._known = wider(self._known, strategy.mb_output.shape[1]).to(strategy.mb_y.device)
        self._known[strategy.mb_y] = True
        if self.memory is not None and strategy.clock.train_exp_epochs == 0:
            self.memory.grow(strategy.mb_output.shape[1])
            task = int(strategy.mb_task_id[0])
            self.memory.insert(strategy.mb_x, strategy.mb_y, task, strategy.mb_output.detach())

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """A strategy that has taken a step without ``before_backward`` would go on without being taught."""
        if not self._steps:
            raise ConfigError(
                f"needed a strategy that calls before_backward, got {type(strategy).__name__}, which took a step "
                "without it",
                where="MatchGateDistillation",
                fix="leave the plugin out there, or take a strategy with one backward pass a step (Naive, Replay, ...)",
            )

    def _measure(self, strategy: Any, arriving: GateInputs) -> None:
        """Who is right more often, on rows before this step and now and then on the held-out ones."""
        self._judge(arriving)
        held = whole(self.memory.holdout) if self.memory is not None and self._steps % EVERY == 0 else None
        if held is not None and len(held.y):
            tasks = self.memory.holdout.task[held.slots]  # type: ignore[union-attr]
            with at_rest(strategy.model) as model:
                logits = avalanche_forward(model, held.x, tasks)
            self._judge(self._lesson(held.x, held.y, tasks, logits, None).evidence)
        self.advantage = self._comparison.advantage()

    def _judge(self, evidence: GateInputs) -> None:
        self._comparison.heard(evidence)
        self._comparison.compared(evidence, self.gate(evidence))

    def _keep(self) -> None:
        """A copy of the average joins the teachers; where that is one too many, the one least listened to goes."""
        if len(self.snapshots) >= self.limit:
            self.snapshots.remove(min(self.snapshots, key=lambda snapshot: snapshot.listened))
        for snapshot in self.snapshots:
            snapshot.age, snapshot.listened = snapshot.age + 1, 0.0
        self.snapshots.append(_Snapshot(f"snapshot-{self._taken}", frozen(self.average), self._known.clone()))
        self._taken += 1

    def _lesson(self, x: Tensor, y: Tensor, t: Tensor, logits: Tensor, recalled: Remembered | None) -> _Lesson:
        """What the teachers say of the rows; ``recalled`` brings the logits that were remembered with them."""
        classes = logits.shape[1]
        said: list[tuple[str, Tensor, Tensor, int]] = []
        for key, module, known, age in self._asked():
            answer, there = _answer(module, x, t, classes)
            said.append((key, answer, there & wider(known, classes), age))
        if self.memory is not None:
            said.append(_recalled(recalled, self._known, y, classes))
        answers, known = torch.stack([s[1] for s in said], 1), torch.stack([s[2] for s in said], 1)
        known = known.to(answers.device) & answers.isfinite()
        heard = known.gather(2, y.view(-1, 1, 1).expand(-1, len(said), 1)).squeeze(2)
        keys = tuple(s[0] for s in said)
        facts = torch.tensor([[self._right.get(s[0], 0.5), 1 / (1 + s[3])] for s in said], device=answers.device)
        measure = partial(self._comparison.measured, keys, classes)
        met = None if recalled is None else recalled.met()
        stale = torch.tensor([key != "average" for key in keys], device=answers.device)
        evidence = GateInputs(logits.detach(), y, answers, known, heard, facts, keys, False, measure, met, stale)
        return _Lesson(x, y, t, logits, evidence, soft_answers(answers, known, self.temperature))

    def _asked(self) -> Sequence[tuple[str, nn.Module, Tensor, int]]:
        """Name, network, known classes and age of every teacher that is a network."""
        return [
            ("average", self.average, self._known, 0),
            *[(s.key, s.module, s.known, s.age) for s in self.snapshots],
        ]

    def _weigh(self, lesson: _Lesson, own: bool) -> Tensor:
        """The gate's weights, the teachers' by their advantage; the label has the rest, on the plugin's own rows.

        The hard label of the strategy's rows is the strategy's business.
        """
        taught = self.advantage * self.gate(lesson.evidence)[:, 1:]
        left = 1 - taught.sum(1, keepdim=True)
        return torch.cat([left if own else torch.zeros_like(left), taught], 1)

    def _note(self, lessons: Sequence[_Lesson], weights: Sequence[Tensor]) -> None:
        """How much each teacher is listened to, and how often it is right, for the gate, the pool and loggers."""
        mean = torch.cat([*weights]).mean(0)
        keys = lessons[0].evidence.teachers
        self.weights = dict(zip(keys, mean[1:].tolist(), strict=True))
        self.weights["hard"] = 1.0 - sum(self.weights.values())
        for snapshot in self.snapshots:
            snapshot.listened += self.weights[snapshot.key]
        evidence = lessons[0].evidence  # rows before they are trained on
        best = evidence.answers.masked_fill(~evidence.known, -torch.inf).argmax(2)
        right = ((best == evidence.labels.unsqueeze(1)) & evidence.heard).sum(0).tolist()
        for key, hits, of in zip(keys, right, evidence.heard.sum(0).tolist(), strict=True):
            if of:
                self._right[key] = 0.99 * self._right.get(key, 0.5) + 0.01 * hits / of

    def _adapt(self, strategy: Any, lessons: Sequence[_Lesson], scales: Sequence[float]) -> None:
        """φ ← φ - rate·dL_out/dφ, L_out the cross entropy of held-out rows after the step that is about to be taken."""
        assert self.memory is not None
        query = self.memory.query(64)
        if query is None:
            return
        model, optimizer = strategy.model, strategy.optimizer
        parameters = [p for p in model.parameters() if p.requires_grad]
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        grads = torch.autograd.grad(strategy.loss, parameters, retain_graph=True, materialize_grads=True)
        moved = [m.requires_grad_() for m in hypergradient.virtual_step(optimizer, parameters, grads, None)]
        state = dict(zip(names, moved, strict=True)) | hypergradient.own_buffers(model)
        tasks = self.memory.holdout.task[query.slots]
        outer = F.cross_entropy(_call(model, state, query.x, tasks), query.y)
        slopes = torch.autograd.grad(outer, moved, materialize_grads=True)
        u = hypergradient.direction(optimizer, parameters, grads, slopes, None)
        tables = [
            scale * hypergradient.finite_difference(model, u, _losses_of(lesson, self.temperature))
            for scale, lesson in zip(scales, lessons, strict=False)
        ]
        if not all(bool(table.isfinite().all()) for table in tables):
            return
        self._move(lessons, tables)
        self._settle(lessons, tables)
        self.adaptations += 1

    def _move(self, lessons: Sequence[_Lesson], tables: Sequence[Tensor]) -> None:
        """One step of the gate's parameters by Σ A·w / batch, with the pull to where they began."""
        if self._optimizer is None:
            return
        costs = [
            (table * self._weigh(lesson, own=bool(number))).sum() / len(table)
            for number, (table, lesson) in enumerate(zip(tables, lessons, strict=True))
        ]
        begun = [o.to(p) for o, p in zip(self._origin, self._moved, strict=True)]
        self._origin = follow(self._optimizer, self._moved, begun)
        pull = [ANCHOR * ((p - o) ** 2).sum() for p, o in zip(self._moved, self._origin, strict=True)]
        self._optimizer.zero_grad()
        torch.stack([*costs, *pull]).sum().backward()
        self._optimizer.step()

    def _settle(self, lessons: Sequence[_Lesson], tables: Sequence[Tensor]) -> None:
        """Tell gates that learn from prices what was measured, once for all rows of the step.

        The label of the strategy's rows has no price, for its weight is not the gate's. A teacher's is as much smaller
        as the advantage makes its weight.
        """
        if not self._priced or not self.advantage:  # prices that are all 0 would only thin out their spread
            return
        rows = sum(len(table) for table in tables)
        priced = [self.advantage * rows / len(table) * table for table in tables]
        priced[0][:, 0] = 0.0
        evidence, table = _joined([lesson.evidence for lesson in lessons]), torch.cat(priced)
        for part in self.gate.modules():
            if isinstance(part, Hedging):
                part.feedback(evidence, table)


def _joined(evidence: Sequence[GateInputs]) -> GateInputs:
    """The inputs of the same teachers for the rows of several lessons, one behind the other."""
    first = evidence[0]
    met = [torch.zeros_like(e.labels) if e.met is None else e.met for e in evidence]
    return GateInputs(
        torch.cat([e.logits for e in evidence]),
        torch.cat([e.labels for e in evidence]),
        torch.cat([e.answers for e in evidence]),
        torch.cat([e.known for e in evidence]),
        torch.cat([e.heard for e in evidence]),
        first.facts,
        first.teachers,
        False,
        first.measure,
        torch.cat(met),
        first.stale,
    )


def _losses_of(lesson: _Lesson, temperature: float) -> Any:
    def losses(module: nn.Module, parameters: dict[str, Tensor]) -> Tensor:
        logits = _call(module, parameters, lesson.x, lesson.t)
        return source_losses(logits, lesson.y, lesson.soft, temperature)

    return losses


def _call(module: nn.Module, parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    return functional_call(module, parameters, (x, t) if is_multi_task_module(module) else (x,))


def _rows(strategy: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The step's rows and their logits; ER-ACE keeps the replayed ones apart from its mini-batch."""
    rows = (strategy.mb_x, strategy.mb_y, strategy.mb_task_id, strategy.mb_output)
    apart = ("mb_buffer_x", "mb_buffer_y", "mb_buffer_tid", "mb_buffer_out")
    if getattr(strategy, "replay_loader", None) is None or not all(name in vars(strategy) for name in apart):
        return rows
    x, y, t, logits = (torch.cat([ours, vars(strategy)[name]]) for ours, name in zip(rows, apart, strict=True))
    return x, y, t, logits


@torch.no_grad()
def _answer(module: nn.Module, x: Tensor, t: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """A network's logits [batch, classes], and the rows [batch, 1] that it answers: tasks it has a head for."""
    there = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if is_multi_task_module(module):
        heads: Any = module.known_train_tasks_labels
        there = torch.isin(t, torch.tensor(sorted(heads), device=t.device))
        if not there.all():
            answer = torch.zeros(len(x), classes, device=x.device)
            if there.any():
                answer[there] = wider(avalanche_forward(module, x[there], t[there]), classes)
            return answer, there.unsqueeze(1)
    return wider(avalanche_forward(module, x, t), classes), there.unsqueeze(1)


def _recalled(recalled: Remembered | None, known: Tensor, y: Tensor, classes: int) -> tuple[str, Tensor, Tensor, int]:
    """The logits that were remembered with the rows as a teacher's answer; rows that have just arrived have none."""
    if recalled is None:
        nothing = torch.zeros(len(y), classes, device=y.device)
        return "memory", nothing, nothing.bool(), 0
    there = torch.arange(classes, device=y.device) < recalled.width().unsqueeze(1)
    return "memory", wider(recalled.logits().float(), classes), there & wider(known, classes).to(y.device), 0


def _begins_task(experience: Any) -> bool:
    """Every experience but the later parts of one that an online stream has cut; that stream may hide its tasks.

    Not by the end of a task: Avalanche 0.6.0 leaves ``is_last_subexp`` false where the parts are all of one size.
    """
    if isinstance(experience, OnlineCLExperience):
        return bool(experience.access_task_boundaries and experience.is_first_subexp)
    return True


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise ConfigError(f"needed 0 or more, got {value}", where=f"MatchGateDistillation.{name}")
