"""The trajectory: what an adaptation must know of the student's last steps, kept from the moment that each was taken.

    before the update ─► after it          per step; θ, gradients and moments are copied only where needed

A trajectory of one step lives within that step. A longer one, and one that is read when the next batch arrives, is part
of the checkpoint: a resumed run adapts from the same steps.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamkd.gates.gate import GateInputs, Measured
from streamkd.learning.step import Step
from streamkd.losses.match_gate import LossInputs
from streamkd.meta.hypergradient import OptimizerMoments, Update, moments_of, norm_of, own_buffers


@dataclass(frozen=True, slots=True)
class InnerStep:
    """One step: its rows, what gate and losses saw (no graph; of features only the teachers'), and its update."""

    number: int
    x: Tensor
    evidence: GateInputs
    lesson: LossInputs
    buffers: dict[str, Tensor]
    update: Update

    def at(self, names: list[str]) -> dict[str, Tensor]:
        """Parameters, which go by these names, and buffers as they were."""
        return dict(zip(names, self.update.before, strict=True)) | self.buffers


class Trajectory:
    """The last ``length`` steps without a gap; ``kept``: they are read after their step is over."""

    def __init__(self, length: int, *, kept: bool) -> None:
        self.length, self.kept = length, kept or length > 1
        self.steps: list[InnerStep] = []

    @torch.no_grad()
    def keep(self, step: Step, number: int, x: Tensor, evidence: GateInputs, lesson: LossInputs) -> None:
        """A step whose gradients are there, unclipped, and whose parameters have not yet moved."""
        if self.steps and self.steps[-1].number != number - 1:
            self.steps.clear()
        self._close(step)
        lesson = dataclasses.replace(lesson, logits=evidence.logits, features={})
        self.steps.append(
            InnerStep(number, x, self._lasting(evidence), lesson, own_buffers(step.student), self._update(step))
        )
        del self.steps[: -self.length]

    def _close(self, step: Step) -> None:
        """The step before keeps the moments as it left them: the coming one is about to change them."""
        if self.steps:
            after = [
                OptimizerMoments(m.first.clone(), m.second.clone(), m.count)
                for m in moments_of(step.optimizer, step.parameters)
            ]
            last = self.steps[-1]
            self.steps[-1] = dataclasses.replace(last, update=dataclasses.replace(last.update, moments=after))

    def _update(self, step: Step) -> Update:
        shared = step.clip_norm is None and not self.kept
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in step.parameters]
        norm = None
        if step.clip_norm is not None:
            norm = norm_of([p.grad for p in step.trained if p.grad is not None])
        before = [p.detach().clone() for p in step.parameters]
        return Update(before, gradients if shared else [g.clone() for g in gradients], norm, [])

    def _lasting(self, evidence: GateInputs) -> GateInputs:
        """With what is measured now, for a gate may ask for it when the pool is another."""
        if not self.kept or evidence.measure is None:
            return evidence
        return dataclasses.replace(evidence, measure=_Kept(evidence.measure()))

    def read(self, step: Step) -> list[InnerStep]:
        """The steps, oldest first, the newest with the moments that the optimiser holds now."""
        if not self.steps:
            return []
        *older, last = self.steps
        moments = moments_of(step.optimizer, step.parameters)
        return [*older, dataclasses.replace(last, update=dataclasses.replace(last.update, moments=moments))]

    def clear(self) -> None:
        """Another student begins: no step of the one before is of use."""
        self.steps.clear()

    def forget(self) -> None:
        """Let go of what is not read later."""
        if not self.kept:
            self.steps.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": [_tree(taken) for taken in self.steps]}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore; a trajectory of another length keeps what it can use."""
        steps = [_taken(tree, device) for tree in state["steps"]]
        self.steps = steps[-self.length :] if self.kept else []


@dataclass(frozen=True, slots=True)
class _Kept:
    measured: Measured

    def __call__(self) -> Measured:
        return self.measured


def _tree(taken: InnerStep) -> dict[str, Any]:
    evidence, lesson, update = taken.evidence, taken.lesson, taken.update
    seen = {f.name: getattr(evidence, f.name) for f in dataclasses.fields(GateInputs) if f.name != "measure"}
    return {
        "number": taken.number,
        "x": taken.x,
        "evidence": seen | {"credit": None, "noise": 0.0} | (evidence.measure()._asdict() if evidence.measure else {}),
        # logits are the evidence's, features are taken anew
        "lesson": {
            f.name: getattr(lesson, f.name)
            for f in dataclasses.fields(LossInputs)
            if f.name not in ("logits", "features")
        },
        "buffers": dict(taken.buffers),
        "update": {
            "before": list(update.before),
            "gradients": list(update.gradients),
            "norm": update.norm,
            "moments": [[m.first, m.second, m.count] for m in update.moments],
        },
    }


def _taken(tree: Mapping[str, Any], device: torch.device) -> InnerStep:
    tree = _moved(tree, device)
    seen = dict(tree["evidence"])
    credit, noise = seen.pop("credit"), seen.pop("noise", 0.0)
    here = {f.name for f in dataclasses.fields(GateInputs)}  # an older state may know what no gate is told any more
    seen = {name: value for name, value in seen.items() if name in here}
    evidence = GateInputs(**seen, measure=None if credit is None else _Kept(Measured(credit, noise)))
    update = tree["update"]
    moments = [OptimizerMoments(*moment) for moment in update["moments"]]
    return InnerStep(
        tree["number"],
        tree["x"],
        evidence,
        LossInputs(logits=evidence.logits, **tree["lesson"]),
        dict(tree["buffers"]),
        Update(update["before"], update["gradients"], update["norm"], moments),
    )


def _moved(tree: Any, device: torch.device) -> Any:
    match tree:
        case Tensor():
            return tree.to(device)
        case Mapping():
            return {key: _moved(value, device) for key, value in tree.items()}
        case list():
            return [_moved(value, device) for value in tree]
    return tree
