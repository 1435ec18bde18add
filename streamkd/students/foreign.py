"""Anybody's module where a step expects a student: its head, its normalisation and its growth are its owner's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamkd.students.networks import Normalise, Student


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
        if len(x) > 1 or not self.training:
            return self.body(x)
        with _by_running_statistics(self.body):  # a lone row is no batch to be normalised by
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


@contextmanager
def _by_running_statistics(module: nn.Module) -> Iterator[None]:
    """Its batch normalisation goes by what was seen before, and does not move that."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    for part in norms:
        part.eval()
    try:
        yield
    finally:
        for part in norms:
            part.train()


class _AsItIs(nn.Module):
    """The normalisation of a module that has its own."""

    fit = 0
