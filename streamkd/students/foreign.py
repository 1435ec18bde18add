"""Anybody's module where a step expects a student: its head, its normalisation and its growth are its owner's."""

from typing import cast

import torch
from torch import Tensor, nn

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

    def train_on(self, labels: Tensor) -> None:
        """It has been trained on these labels [n], of which -1 is none."""
        self.trained[labels[labels >= 0]] = True


class _AsItIs(nn.Module):
    """The normalisation of a module that has its own."""

    fit = 0
