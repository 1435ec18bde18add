"""Anybody's module where a step expects a student: its head, its normalisation and its growth are its owner's."""

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from streamkd.errors import StateConflict
from streamkd.students.networks import Normalise, Student, by_running_statistics


class Foreign(Student):
    """A module from rows x [batch, *shape] to logits [batch, classes].

    ``trained`` [classes] are the classes that it was trained on: of the others its logits tell nothing. It is a buffer,
    so that copies and averages know what they know.
    """

    trained: Tensor

    def __init__(self, module: nn.Module, trained: Tensor) -> None:
        nn.Module.__init__(self)
        self.normalise = cast(Normalise, _AsItIs())
        self.body = module
        self.register_buffer("trained", trained.clone())

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or len(x) > 1:
            return self.body(x)
        with by_running_statistics(self.body):
            return self.body(x)

    @property
    def classes(self) -> int:
        return len(self.trained)

    def known(self) -> Tensor:
        return self.trained

    def grow(self, classes: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Its owner has widened the head: the new classes were not trained on."""
        if (more := classes - self.classes) > 0:
            self.trained.data = nn.functional.pad(self.trained, (0, more))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the state of an earlier self, whose tensors may be smaller: they are what this one has then.

        Raises:
            StateConflict: it is another module's.
        """
        self.grow(len(state["trained"]))
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        for name, saved in state.items():
            if name.endswith("._extra_state"):
                self.get_submodule(name.removesuffix("._extra_state")).set_extra_state(saved)
                continue
            now = tensors.get(name)
            if now is None or now.dim() != saved.dim() or any(map(operator.gt, saved.shape, now.shape)):
                here = "is missing" if now is None else f"is {list(now.shape)}"
                raise StateConflict(
                    f"needed the module of the state, got another: its {name} {list(saved.shape)} {here} here",
                    where=type(self.body).__name__,
                    fix="load the state into the same model, with all the heads that it had",
                )
            now.data = saved.to(now, copy=True)
        for name in self.state_dict().keys() - state.keys():  # heads for tasks that came later
            owner, _, own = name.rpartition(".")
            delattr(self.get_submodule(owner), own)

    def train_on(self, labels: Tensor) -> None:
        """It has been trained on these labels [n], of which -1 is none."""
        self.trained[labels[labels >= 0]] = True


class _AsItIs(nn.Module):
    """The normalisation of a module that has its own."""

    fit = 0
