"""Meta-adaptation of the gate: a few bi-level steps when a task begins, one every ``every`` steps in between.

    inner   the student's own steps as they were taken:  θ' = U(θ, ∇L_in(θ, φ)),  support = their rows
    outer   L_out = CE(query; θ') + balance·imbalance(w) + anchor·‖φ - φ_0‖²,   φ ← φ - rate·dL_out/dφ

The query is drawn from the held-out memory, which is never replayed, once the student has moved: no step is taken
twice, and what plugins add to the loss is part of the step. (It is a pass of its own over these records, for what
counts is the gradient of the student as it is then.) The engine ``prequential`` takes the batch that arrives next,
before the student has moved by it. Every gate among the terms is adapted, each by its own table.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from streamkd.gates.gate import Gate, GateInputs, Hedging, imbalance
from streamkd.learning.batch import StepBatch
from streamkd.learning.step import Step
from streamkd.learning.terms import layers_of, seen
from streamkd.losses.match_gate import Gated, LossInputs
from streamkd.meta import hypergradient, jacobian, maml
from streamkd.meta.jacobian import Jvp
from streamkd.meta.maml import SHARED
from streamkd.meta.optimizers import adam
from streamkd.meta.rates import rates_of
from streamkd.meta.trajectory import InnerStep, Trajectory
from streamkd.students import optimizers

logger = logging.getLogger(__name__)
Engine = Literal["auto", "forward", "finite-difference", "maml", "prequential"]


@runtime_checkable
class Beginning(Protocol):
    """A gate, or its optimiser, that holds what is true of one stream alone: of its labels, its pool, its prices."""

    def begin_stream(self, teachers: Collection[str]) -> None:
        """A stream, or an episode, begins under these teachers: keep of what was learned what holds for it."""
        ...


def begin_stream(gates: nn.Module, teachers: Collection[str]) -> None:
    """Tell every gate among ``gates``, or within them, that a stream begins under these teachers."""
    for part in [*gates.modules()]:
        if isinstance(part, Beginning):
            part.begin_stream(teachers)


class GateAdapter:
    """Adapts the gates of one step on the schedule above; counts what it did.

    ``horizon``: over so many inner steps, by the first-order sum (``maml``: unrolled, ``first_order`` or second).
    """

    def __init__(
        self,
        gate: nn.Module,
        *,
        every: int,
        on_task_steps: int,
        engine: Engine,
        learning_rate: float,
        query: int,
        optimizer: Callable[[Sequence[nn.Parameter], float], torch.optim.Optimizer] = adam,
        anchor: float = 1e-3,
        horizon: int = 1,
        first_order: bool = False,
        balance: float = 0.0,
    ) -> None:
        self.gate, self.every, self.on_task_steps, self.query = gate, every, on_task_steps, query
        self.anchor, self.balance, self.first_order = anchor, balance, first_order
        self.engine: Engine = engine
        self.parameters = [p for p in gate.parameters() if p.requires_grad]
        self.origin = [p.detach().clone() for p in self.parameters]
        self.active = bool(self.parameters) or any(isinstance(part, Hedging) for part in gate.modules())
        self.optimizer = optimizer(self.parameters, learning_rate) if self.parameters else None
        self.trajectory = Trajectory(horizon, kept=engine == "prequential")
        self.lacking: str | None = None  # what torch said of an operator without forward mode
        self.faults: Counter[str] = Counter()  # left out (memory, not_finite), or by differences for once (forward)
        self.steps = 0
        self.burst = 0
        self.adaptations = 0
        self.seconds = 0.0
        self.outer_loss = float("nan")
        self._due = False
        self._task: int | None = None
        self._gated: list[tuple[int, Gated]] = []
        self._layers: tuple[str, ...] = ()
        self._names: list[str] = []

    @property
    def engine_in_use(self) -> str:
        """Where the tables come from now: what ``auto`` has come to, and a switch that an operator asked for."""
        if self.lacking is not None:
            return "finite-difference"
        return "forward" if self.engine == "auto" else self.engine

    def attach(self, step: Step) -> None:
        """Join the step whose gates are to be adapted: from now on it tells of its updates.

        Raises:
            ConfigError: the engine does not fit it.
        """
        self.trajectory.clear()
        step.adapter = self
        losses = [(place, term.loss) for place, term in enumerate(step.terms) if term.weight]
        self._gated = [(place, loss) for place, loss in losses if isinstance(loss, Gated)]
        self._layers = layers_of(step.terms)
        self._names = [name for name, p in step.student.named_parameters() if p.requires_grad]
        if not self.active:
            return
        rates_of(step.optimizer, step.parameters)
        if self.engine == "maml":
            maml.rate_of(step)

    def begin_stream(self, teachers: Collection[str]) -> None:
        """An episode begins under these teachers; where a gate keeps less, its moments are cut back with it."""
        begin_stream(self.gate, teachers)
        if self.optimizer is not None:
            self.origin = _cut_back(self.optimizer, self.parameters, self.origin)
        if isinstance(self.optimizer, Beginning):
            self.optimizer.begin_stream(teachers)

    def begin_task(self) -> None:
        """A task begins, or the world has changed within one: the next steps adapt."""
        self._task = None

    def due(self, task: int) -> bool:
        """Whether a step on that task adapts; called once a step. A task's first ``on_task_steps`` steps do."""
        if task != self._task:
            self._task, self.burst = task, self.on_task_steps
        self.steps += 1
        if self.burst:
            self.burst -= 1
            self._due = self.active
        else:
            self._due = self.active and self._due_in(0)
        return self._due

    def _due_in(self, steps: int) -> bool:
        """Whether so many steps from now one is due, as far as is known."""
        return self.burst >= steps > 0 or (self.every > 0 and (self.steps + steps) % self.every == 0)

    def _wanted(self) -> bool:
        """Whether an adaptation, now or soon, will look at this step."""
        later = self.engine == "prequential"
        ahead = range(1, self.trajectory.length + later)
        return self.active and ((self._due and not later) or any(map(self._due_in, ahead)))

    def before_update(self, step: Step, plan: StepBatch, evidence: GateInputs, lesson: LossInputs) -> None:
        """The student's gradients are there, not yet clipped: the step is kept if an adaptation will look at it.

        To the engine ``prequential`` its fresh rows are the query for the steps before it.
        """
        begun = time.perf_counter()
        if self.due(plan.task) and self.engine == "prequential":
            self._adapt_by_arrived(step, plan)
        if self._wanted():
            self.trajectory.keep(step, self.steps, plan.x, evidence, lesson)
        self.seconds += time.perf_counter() - begun

    def _adapt_by_arrived(self, step: Step, plan: StepBatch) -> None:
        trajectory, labelled = self.trajectory.read(step), plan.y[: plan.fresh] >= 0
        if not trajectory or trajectory[-1].number != self.steps - 1 or not bool(labelled.any()):
            return
        with self._sparing_memory():
            outer = self._outer(step, plan.x[: plan.fresh][labelled], plan.y[: plan.fresh][labelled])
            self._adapt(step, trajectory, self._by_slopes(step, trajectory, outer))

    def after_update(self, step: Step) -> None:
        """The student has moved; without held-out records nothing happens."""
        if not self._due or self.engine == "prequential":
            return
        begun = time.perf_counter()
        trajectory = self.trajectory.read(step)
        if trajectory and trajectory[-1].number == self.steps and (query := step.memory.query(self.query)) is not None:
            with self._sparing_memory():
                if self.engine == "maml":
                    trajectory = maml.since_growth(trajectory)
                    self._adapt(step, trajectory, self._by_unrolling(step, trajectory, (query.x, query.y)))
                else:
                    outer = self._outer(step, query.x, query.y)
                    self._adapt(step, trajectory, self._by_slopes(step, trajectory, outer))
        self.trajectory.forget()
        self.seconds += time.perf_counter() - begun

    @contextmanager
    def _sparing_memory(self) -> Iterator[None]:
        """An adaptation for which there is no memory now is left out, and the next is tried as ever."""
        try:
            yield
        except RuntimeError as fault:
            if not _out_of_memory(fault):
                raise
            self._count("memory", fault)

    def _count(self, reason: str, why: object) -> None:
        """Count what went wrong with an adaptation, and say it the first time."""
        if not self.faults[reason]:
            logger.warning("an adaptation of the gate failed (%s), others like it are counted: %s", reason, why)
        self.faults[reason] += 1

    def _outer(self, step: Step, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        """v = ∇CE(query) at the student's parameters, its running statistics left alone."""
        with torch.enable_grad():
            logits = functional_call(step.student, hypergradient.own_buffers(step.student), (x,))
            loss = F.cross_entropy(logits, y)
        self.outer_loss = float(loss.detach())
        return torch.autograd.grad(loss, step.parameters, materialize_grads=True)

    def _by_slopes(
        self, step: Step, trajectory: Sequence[InnerStep], outer: Sequence[Tensor]
    ) -> list[dict[int, Tensor]]:
        """The tables of each step along its own direction."""
        updates = [taken.update for taken in trajectory]
        us = hypergradient.directions(step.optimizer, step.parameters, updates, outer, step.clip_norm)
        return [self._tables(step, taken, u) for taken, u in zip(trajectory, us, strict=True)]

    def _tables(self, step: Step, taken: InnerStep, u: list[Tensor]) -> dict[int, Tensor]:
        at = taken.at(self._names)
        if self.engine != "finite-difference" and self.lacking is None:
            try:
                return self._read(step, taken, jacobian.forward(step.student, taken.x, at, u, self._layers))
            except RuntimeError as fault:  # a NotImplementedError is one
                if self.engine == "forward" or _out_of_memory(fault):
                    raise
                self._without_forward_mode(fault)
        return self._read(step, taken, jacobian.difference(step.student, taken.x, at, u, self._layers))

    def _without_forward_mode(self, fault: RuntimeError) -> None:
        """For ever where an operator has none; after any other fault for this once."""
        if not jacobian.lacks_forward_mode(fault):
            self._count("forward", fault)
            return
        self.lacking = str(fault).splitlines()[0]
        logger.warning("the gate's tables come from finite differences from now on: %s", self.lacking)

    def _read(self, step: Step, taken: InnerStep, slope: Jvp) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for place, loss in self._gated:
            term, lesson = step.terms[place], seen(taken.lesson, place)
            table = term.weight * slope.table(loss, lesson)
            key = SHARED if term.gate is None else place
            found[key] = found[key] + table if key in found else table
        return found

    def _by_unrolling(
        self, step: Step, trajectory: Sequence[InnerStep], query: tuple[Tensor, Tensor]
    ) -> list[dict[int, Tensor]]:
        weights = []
        for taken in trajectory:
            weights.append({SHARED: taken.lesson.weights, **taken.lesson.own_weights})
        found, self.outer_loss = maml.tables(step, step.terms, trajectory, weights, query, self.first_order)
        return found

    def _adapt(self, step: Step, trajectory: Sequence[InnerStep], tables: Sequence[dict[int, Tensor]]) -> None:
        """One outer step; tables that are not finite move nothing."""
        if not all(bool(torch.isfinite(table).all()) for each in tables for table in each.values()):
            self._count("not_finite", "a table is not finite")
            return
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        with torch.enable_grad(), self._looking_back():
            costs = [
                self._cost(step, key, taken, table, newest=taken is trajectory[-1])
                for taken, each in zip(trajectory, tables, strict=True)
                for key, table in each.items()
            ]
            total = sum(cost for cost in costs if cost is not None)
        if isinstance(total, Tensor):
            total.backward()
        if not self._slopes_finite():
            self._count("not_finite", "a gradient of the gate is not finite")
            return
        self._move()
        self.adaptations += 1

    def _slopes_finite(self) -> bool:
        """Whether what moves the gate is: one infinite moment would stay for ever."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return not gradients or bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all())

    @contextmanager
    def _looking_back(self) -> Iterator[None]:
        """The gates in evaluation mode: a step that is over knew other teachers and fewer classes than they do now."""
        modes = [(part, part.training) for part in self.gate.modules()]
        self.gate.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training

    def _cost(self, step: Step, key: int, taken: InnerStep, table: Tensor, *, newest: bool) -> Tensor | None:
        """Σ A·w / batch, whose slope Σ A·∂w/∂φ / batch is dL_out/dφ: a backward through the gate alone."""
        gate, evidence = _gate(step, key), taken.evidence
        # a gate's rows sum to 1; where the step gave a row less, its weights enter by that factor
        table = table * seen(taken.lesson, key).weights.sum(1, keepdim=True)
        if newest and isinstance(gate, Hedging):
            gate.feedback(evidence, table)
        weights = gate(evidence)
        if not weights.requires_grad:
            return None
        cost = (table * weights).sum() / len(table)
        if self.balance:
            cost = cost + self.balance * imbalance(weights, evidence.heard)
        return cost

    @torch.no_grad()
    def _move(self) -> None:
        if self.optimizer is None:
            return
        self.origin = optimizers.follow(self.optimizer, self.parameters, self.origin)
        moved = [(p, o) for p, o in zip(self.parameters, self.origin, strict=True) if p.grad is not None]
        if moved and self.anchor:
            parameters, origins = map(list, zip(*moved, strict=True))
            pull = torch._foreach_sub(parameters, origins)
            torch._foreach_add_([p.grad for p in parameters], pull, alpha=2 * self.anchor)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "origin": self.origin,
            "optimizer": optimizers.state_of(self.optimizer) if self.optimizer else {},
            "steps": self.steps,
            "burst": self.burst,
            "task": self._task,
            "adaptations": self.adaptations,
            "lacking": self.lacking,
            "trail": self.trajectory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; what the configuration has changed since (engine, horizon) begins anew."""
        device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.origin = [begun.to(device) for begun in state["origin"]]
        if self.optimizer is not None:  # older versions may have moved a temperature behind the gate
            optimizers.restore(self.optimizer, state["optimizer"], len(self.parameters))
        self.steps, self.burst, self.adaptations = state["steps"], state["burst"], state["adaptations"]
        self._task = state.get("task")
        self.lacking = state.get("lacking")  # "refused" of older versions also came from what passes, and is not read
        self.trajectory.load_state_dict(state.get("trail", {"steps": []}), device)


@torch.no_grad()
def _cut_back(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], origin: Sequence[Tensor]
) -> list[Tensor]:
    """Moments of parameters that have lost their ends lose the same; the origin of such a one is where it is now."""
    for parameter, begun in zip(parameters, origin, strict=True):
        if begun.shape != parameter.shape:
            left = tuple(slice(n) for n in parameter.shape)
            for name, moment in optimizer.state.get(parameter, {}).items():
                if isinstance(moment, Tensor) and moment.shape == begun.shape:
                    optimizer.state[parameter][name] = moment[left].clone()
    pairs = zip(parameters, origin, strict=True)
    return [begun if begun.shape == parameter.shape else parameter.detach().clone() for parameter, begun in pairs]


def _out_of_memory(fault: RuntimeError) -> bool:
    """Of a GPU, or as the CPU's allocator says it."""
    return isinstance(fault, torch.OutOfMemoryError) or "allocate memory" in str(fault)


def _gate(step: Step, key: int) -> Gate:
    own = None if key == SHARED else step.terms[key].gate
    return step.gate if own is None else own
