"""The gated distillation as one Avalanche plugin, for any strategy that calls ``before_backward``.

    Naive(model, optimizer, criterion, plugins=[MatchGateDistillation()])

The strategy keeps its own loss L_host for the hard labels; the plugin adds what the teachers say, weighed by a gate::

    L = L_host + weight/n · Σ_i Σ_k w_ik·T²·KL(p_ik^T ‖ s_i^T)               the n rows of the strategy's mini-batch
               + 1/n · Σ_j [w_j0·CE(y_j, s_j) + Σ_k w_jk·T²·KL(p_jk^T ‖ s_j^T)]    rows of its own memory, if any

so that a remembered row counts as much as a fresh one; w comes from a gate of ``streamkd.distill``, rows sum to 1.
Teachers: a moving average of the model (``average``), copies of that average from the ends of tasks, and the
logits of its own remembered rows. Each is heard only on the classes that it was trained on. With a memory of its own
the gate is adapted to the held-out part of it, by the hypergradient of ``streamkd.meta``; without, it stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.benchmarks import OnlineCLExperience
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import avalanche_forward, is_multi_task_module
from torch import Tensor, nn
from torch.func import functional_call

from streamkd.distill.copies import MovingAverage, frozen
from streamkd.distill.gate import Evidence
from streamkd.distill.losses import match_gate, soft_answers, source_losses
from streamkd.distill.memory import Memory, Remembered
from streamkd.distill.scorer import PerSampleGate, PerSampleOptions
from streamkd.errors import ConfigError
from streamkd.meta import hypergradient

ANCHOR = 1e-3  # pull of the gate's parameters towards where they began
SLOTS = 0  # nobody's answers are cached: foreign networks are asked live


@dataclass(frozen=True, slots=True)
class _Lesson:
    """Rows to be taught on: x [batch, ...], labels, task labels and logits, with what the teachers say of them."""

    x: Tensor
    y: Tensor
    t: Tensor
    logits: Tensor
    evidence: Evidence
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
        gate: any gate of ``streamkd.distill``; ``None``: the per-sample gate with its defaults.
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
    streams are cut at the tasks that they show. Not for strategies without ``before_backward`` (LaMAML). ER-ACE
    runs with it, but its own loss and the teachers' pull against each other: look whether it gains there.

    Raises:
        ConfigError: a number out of its range; while training: an optimiser without a closed form (not SGD, Adam or
            AdamW with one group) where the gate is to be adapted.
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
        self.gate = gate or PerSampleGate(PerSampleOptions())
        self.memory = Memory(memory, holdout_ratio, "class-balanced", SLOTS, seed) if memory else None
        self.snapshots: list[_Snapshot] = []
        self.weights: dict[str, float] = {}
        """Mean weight of each source on the last step's rows, the hard label's under ``hard``."""
        self.adaptations = 0
        self._average: MovingAverage | None = None
        self._known = torch.zeros(0, dtype=torch.bool)  # classes that the model was trained on
        self._right: dict[str, float] = {}
        self._steps = self._taken = 0
        self._origin = [p.detach().clone() for p in self.gate.parameters()]
        moved = [*self.gate.parameters()]
        self._optimizer = torch.optim.Adam(moved, lr=adapt_rate) if moved and memory else None

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
            weights = [self._weigh(lesson, own=bool(number)) for number, lesson in enumerate(lessons)]
        self._note(lessons, weights)
        scales = [self.weight, 0.0 if remembered is None else len(remembered.y) / len(strategy.mb_y)]
        for scale, lesson, rows in zip(scales, lessons, weights, strict=False):
            taught = match_gate(lesson.logits, lesson.y, lesson.soft, rows, self.temperature)
            strategy.loss = strategy.loss + scale * taught.mean()
        if self._optimizer is not None and self.adapt_every and self._steps % self.adapt_every == 0:
            self._adapt(strategy, lessons, scales)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """The average follows; fresh rows are offered to the memory, in the first epoch alone."""
        assert self._average is not None
        self._average.follow(strategy.model)
        self._known = _wider(self._known, strategy.mb_output.shape[1]).to(strategy.mb_y.device)
        self._known[strategy.mb_y] = True
        if self.memory is not None and strategy.clock.train_exp_epochs == 0:
            self.memory.grow(strategy.mb_output.shape[1])
            task = int(strategy.mb_task_id[0])
            self.memory.insert(strategy.mb_x, strategy.mb_y, task, strategy.mb_output.detach())

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
            said.append((key, answer, there & _wider(known, classes), age))
        if self.memory is not None:
            said.append(_recalled(recalled, self._known, y, classes))
        answers, known = torch.stack([s[1] for s in said], 1), torch.stack([s[2] for s in said], 1)
        known = known.to(answers.device) & answers.isfinite()
        heard = known.gather(2, y.view(-1, 1, 1).expand(-1, len(said), 1)).squeeze(2)
        keys = tuple(s[0] for s in said)
        facts = torch.tensor([[self._right.get(s[0], 0.5), 1 / (1 + s[3])] for s in said], device=answers.device)
        evidence = Evidence(logits.detach(), y, answers, known, heard, facts, keys)
        return _Lesson(x, y, t, logits, evidence, soft_answers(answers, known, self.temperature))

    def _asked(self) -> Sequence[tuple[str, nn.Module, Tensor, int]]:
        """Name, network, known classes and age of every teacher that is a network."""
        return [
            ("average", self.average, self._known, 0),
            *[(s.key, s.module, s.known, s.age) for s in self.snapshots],
        ]

    def _weigh(self, lesson: _Lesson, own: bool) -> Tensor:
        """The gate's weights; the hard label of the strategy's own rows is the strategy's business."""
        weights = self.gate(lesson.evidence)
        return weights if own else weights * (torch.arange(weights.shape[1], device=weights.device) > 0)

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
        assert self._optimizer is not None
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
        total: Tensor = sum(  # type: ignore[assignment]
            ANCHOR * ((p - o.to(p.device)) ** 2).sum()
            for p, o in zip(self.gate.parameters(), self._origin, strict=True)
        )
        for number, (scale, lesson) in enumerate(zip(scales, lessons, strict=False)):
            table = hypergradient.finite_difference(model, u, _losses_of(lesson, self.temperature))
            total = total + scale * (table * self._weigh(lesson, own=bool(number))).sum() / len(table)
        if torch.isfinite(total):
            self._optimizer.zero_grad()
            total.backward()
            self._optimizer.step()
            self.adaptations += 1


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
                answer[there] = _wider(avalanche_forward(module, x[there], t[there]), classes)
            return answer, there.unsqueeze(1)
    return _wider(avalanche_forward(module, x, t), classes), there.unsqueeze(1)


def _recalled(recalled: Remembered | None, known: Tensor, y: Tensor, classes: int) -> tuple[str, Tensor, Tensor, int]:
    """The logits that were remembered with the rows as a teacher's answer; rows that have just arrived have none."""
    if recalled is None:
        nothing = torch.zeros(len(y), classes, device=y.device)
        return "memory", nothing, nothing.bool(), 0
    there = torch.arange(classes, device=y.device) < recalled.width().unsqueeze(1)
    return "memory", _wider(recalled.logits().float(), classes), there & _wider(known, classes).to(y.device), 0


def _wider(tensor: Tensor, classes: int) -> Tensor:
    """Columns up to ``classes``, the new ones 0 (or false)."""
    return F.pad(tensor, (0, max(classes - tensor.shape[-1], 0)))


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
