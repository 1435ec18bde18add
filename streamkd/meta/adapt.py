"""Meta-adaptation of the gate: a few bi-level steps when a task begins, one every ``every`` steps in between.

    support = the step's own rows;  query = held-out memory, never replayed
    inner   θ' = U(θ, ∇L_in(θ, φ))
    outer   L_out = CE(query; θ') + anchor·‖φ - φ_0‖²,   φ ← φ - rate·dL_out/dφ

The support batch is trained on afterwards in full; its forward pass is shared with the student's own step.
"""

import time
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from streamkd.distill import optimizers
from streamkd.distill.gate import Priced
from streamkd.distill.losses import MatchGate, soft_answers, source_losses
from streamkd.distill.memory import Remembered
from streamkd.distill.step import Plan, Step
from streamkd.meta import hypergradient

Engine = Literal["auto", "forward", "finite-difference"]


class GateAdapter:
    """Adapts one gate on the schedule above; counts what it did."""

    def __init__(
        self,
        gate: nn.Module,
        *,
        every: int,
        on_task_steps: int,
        engine: Engine,
        learning_rate: float,
        query: int,
        anchor: float = 1e-3,
    ) -> None:
        self.gate, self.every, self.on_task_steps, self.query = gate, every, on_task_steps, query
        self.anchor = anchor
        self.parameters = [p for p in gate.parameters() if p.requires_grad]
        self.origin = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate) if self.parameters else None
        self.engine: Engine = engine
        self.refused = False
        self.steps = 0
        self.burst = 0
        self.adaptations = 0
        self.seconds = 0.0
        self.outer_loss = float("nan")

    def new_task(self) -> None:
        """A task has begun: the next ``on_task_steps`` steps adapt."""
        self.burst = self.on_task_steps

    def due(self) -> bool:
        """Whether this step adapts; called once a step."""
        self.steps += 1
        if self.burst:
            self.burst -= 1
            return self.optimizer is not None
        return self.optimizer is not None and self.every > 0 and self.steps % self.every == 0

    def adapt(self, step: Step, plan: Plan, logits: Tensor) -> None:
        """One outer step on the gate's parameters; without held-out records nothing happens."""
        query = step.memory.query(self.query)
        if query is None or self.optimizer is None:
            return
        begun = time.perf_counter()
        evidence = step.evidence(plan, logits)
        weights = self.gate(evidence)
        self.origin = optimizers.follow(self.optimizer, self.parameters, self.origin)  # the gate may just have grown
        table = self._table(step, plan, logits, weights.detach(), query)
        if torch.isfinite(table).all():
            if isinstance(self.gate, Priced):
                self.gate.settle(evidence, table)
            self.optimizer.zero_grad()
            # Σ A·∂w/∂φ / batch is dL_out/dφ: a backward through the gate alone
            pull = sum(((p - o) ** 2).sum() for p, o in zip(self.parameters, self.origin, strict=True))
            ((table * weights).sum() / len(table) + self.anchor * pull).backward()
            self.optimizer.step()
            self.adaptations += 1
        self.seconds += time.perf_counter() - begun

    def _table(self, step: Step, plan: Plan, logits: Tensor, weights: Tensor, query: Remembered) -> Tensor:
        """batch · dL_out/dw for every sample and source, [batch, 1 + teachers]."""
        inner = step.loss(step.lesson(plan, logits, weights))
        grads = torch.autograd.grad(inner, step.parameters, retain_graph=True, materialize_grads=True)
        moved = hypergradient.virtual_step(step.optimizer, step.parameters, grads, step.clip_norm)
        outer = self._outer(step, moved, query)
        u = hypergradient.direction(step.optimizer, step.parameters, grads, outer, step.clip_norm)
        temperature, scale = _gated_term(step)
        soft = soft_answers(plan.answers.logits, plan.answers.known, temperature)
        return scale * self._slopes(step, plan, u, soft, temperature)

    def _outer(self, step: Step, moved: list[Tensor], query: Remembered) -> tuple[Tensor, ...]:
        """v = ∇CE(query) at θ'."""
        leaves = [m.requires_grad_() for m in moved]
        names = [name for name, p in step.student.named_parameters() if p.requires_grad]
        parameters = dict(zip(names, leaves, strict=True)) | hypergradient.own_buffers(step.student)
        loss = F.cross_entropy(functional_call(step.student, parameters, (query.x,)), query.y)
        self.outer_loss = float(loss.detach())
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    def _slopes(self, step: Step, plan: Plan, u: list[Tensor], soft: Tensor, temperature: float) -> Tensor:
        if self.engine == "forward" or (self.engine == "auto" and not self.refused):
            try:
                return hypergradient.forward(step.student, plan.x, u, plan.y, soft, temperature)
            except (NotImplementedError, RuntimeError):
                if self.engine == "forward":
                    raise
                self.refused = True  # an operator has no forward mode, and never will

        def losses(module: nn.Module, parameters: dict[str, Tensor]) -> Tensor:
            z = functional_call(module, parameters, (plan.x,))
            return source_losses(z, plan.y, soft, temperature)

        return hypergradient.finite_difference(step.student, u, losses)

    def state_dict(self) -> dict[str, Any]:
        return {
            "origin": self.origin,
            "optimizer": optimizers.state_of(self.optimizer) if self.optimizer else {},
            "steps": self.steps,
            "burst": self.burst,
            "adaptations": self.adaptations,
            "refused": self.refused,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.origin = list(state["origin"])
        if self.optimizer is not None:
            optimizers.restore(self.optimizer, state["optimizer"])
        self.steps, self.burst, self.adaptations = state["steps"], state["burst"], state["adaptations"]
        self.refused = state["refused"]


def _gated_term(step: Step) -> tuple[float, float]:
    """Temperature and weight of the term that the gate weighs; weight 0 where there is none."""
    for term in step.terms:
        if isinstance(term.loss, MatchGate):
            return term.loss.temperature, term.weight
    return 1.0, 0.0
