"""A model of Avalanche's where a step expects a student: rows with their task, and heads that its owner lets grow.

x [batch, *shape], task labels ─► rows ─► Foreign(ByTask(model)) ─► logits; NaN where there is no head for the task
"""

import operator
from typing import Any, cast

import torch
from torch import Tensor, nn

from streamkd.learning.step import Step
from streamkd.students.foreign import Foreign
from streamkd.teachers.teacher import copy_of


class ByTask(nn.Module):
    """A module with a head for each task, over rows [batch, size + 1] whose last number is the task label."""

    def __init__(self, module: Any, shape: torch.Size) -> None:
        super().__init__()
        self.module, self.shape = module, shape

    @staticmethod
    def rows(x: Tensor, tasks: Tensor) -> Tensor:
        """x [batch, *shape] and task labels [batch] as one tensor."""
        return torch.cat([x.flatten(1), tasks.to(x.dtype).unsqueeze(1)], 1)

    def get_extra_state(self) -> dict[str, Any]:
        """What of its modules' heads is no tensor."""
        heads = {name: [sorted(m.known_train_tasks_labels), m.max_class_label] for name, m in self._multi_task()}
        return {"shape": list(self.shape), "heads": heads}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.shape = torch.Size(state["shape"])
        for name, module in self._multi_task():
            known, module.max_class_label = state["heads"][name]
            module.known_train_tasks_labels = set(known)

    def _multi_task(self) -> list[tuple[str, Any]]:
        return [(name, m) for name, m in self.module.named_modules() if hasattr(m, "known_train_tasks_labels")]

    def forward(self, rows: Tensor) -> Tensor:
        x, tasks = rows[:, :-1].unflatten(1, self.shape), rows[:, -1].long()
        there = torch.isin(tasks, torch.tensor(sorted(self.module.known_train_tasks_labels), device=tasks.device))
        logits: Tensor = self.module(x[there], tasks[there])
        if there.all():
            return logits
        return logits.new_full((len(x), logits.shape[1]), torch.nan).masked_scatter(there.unsqueeze(1), logits)


def fits(step: Step, model: nn.Module) -> bool:
    """Whether the parameters that the step knows are those that the model is trained by."""
    theirs = [p for p in model.parameters() if p.requires_grad]
    return len(step.parameters) == len(theirs) and all(map(operator.is_, step.parameters, theirs))


def refitted(step: Step, body: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """The step over a body with other parameters, in whose form its average goes on."""
    student = Foreign(body, cast(Foreign, step.student).trained)
    if (average := step.pool.average) is not None:
        average.student = grown(cast(Foreign, average.student), student)
    parts = (step.memory, step.pool, step.gate, step.terms)
    return Step(student, optimizer, *parts, replay=step.replay, measure=step.measure)


@torch.no_grad()
def grown(old: Foreign, network: Foreign) -> Foreign:
    """A frozen average in the form of a network that has got new or larger tensors.

    A tensor that has grown keeps its old values in its leading corner, the rest begins as the network has it.
    """
    new, before = copy_of(network), _tensors(old)
    for name, tensor in _tensors(new).items():
        if name in before and before[name].dim() == tensor.dim():
            corner = tuple(slice(min(a, b)) for a, b in zip(before[name].shape, tensor.shape, strict=True))
            tensor[corner] = before[name][corner]
    return new


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
