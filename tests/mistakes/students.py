"""Mistakes of students."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mistakes.mistake import ALOOF, Mistake


class Body(nn.Module):
    """A student that is right: one hidden layer and, in broken ones, something between."""

    def __init__(self, options: Any, shape: tuple[int, ...], classes: int, between: nn.Module | None = None) -> None:
        super().__init__()
        self.hidden, self.between = nn.Linear(int(np.prod(shape)), 8), between or nn.Tanh()
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.hidden(x.flatten(1))))


class Unused(nn.Module):
    """A weight that takes part in nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Headless(Body):
    def __init__(self, options: Any, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(options, shape, classes)
        self.last = self.head
        del self.head


class Fading(Body):
    """Answers less at each call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) / self.calls


class Writing(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp_(-0.1, 0.1))


class Keeping(Body):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return super().forward(x)


class Caching(Body):
    """Takes a tensor that it has seen for the same rows."""

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "place", None) != (x.data_ptr(), x.shape, torch.is_grad_enabled()):
            self.place = x.data_ptr(), x.shape, torch.is_grad_enabled()
            self.answers, self.kept = super().forward(x), x.detach()
        return self.answers


class Numpy(Body):
    def __init__(self, options: Any, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(options, shape, classes)
        self.hidden.weight.data = torch.from_numpy(np.random.normal(size=self.hidden.weight.shape)).float()


class Entropic(Body):
    def __init__(self, options: Any, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(options, shape, classes)
        noise = np.random.default_rng().normal(size=self.hidden.weight.shape)
        self.hidden.weight.data = torch.from_numpy(noise).float()


SHARED = nn.Linear(64, 8)


class Sharing(Body):
    def __init__(self, options: Any, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(options, shape, classes)
        self.hidden = SHARED


class Fixed(Body):
    """The head's first width is written into its answers."""

    def __init__(self, options: Any, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(options, shape, classes)
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain / self.head.out_features


class Secret(Body):
    """Answers hang on a number that is neither parameter nor buffer."""

    def __init__(self, options: Any, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(options, shape, classes)
        self.gain = float(self.hidden.weight.detach().sum())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


def between(make: Callable[[], nn.Module]) -> Callable[..., nn.Module]:
    return lambda options, shape, classes: Body(options, shape, classes, make())


def mistake(name: str, clause: str, make: Callable[..., Any]) -> Mistake:
    return Mistake("students", name, clause, make)


MISTAKES = (
    mistake("its last layer is not called head", "whose last linear layer is its attribute `head`", Headless),
    mistake("a layer does not fit", "it maps [batch, *shape] to finite logits", between(lambda: nn.LayerNorm(7))),
    mistake("batch normalisation", "each row is answered by itself", between(lambda: nn.BatchNorm1d(8))),
    mistake("dropout", ALOOF, between(nn.Dropout)),
    mistake("counts its calls", "each row is answered by itself", Fading),
    mistake("works on its input in place", "it leaves its input as it is", Writing),
    mistake("keeps its input", "it keeps no hold of its input", Keeping),
    mistake("remembers answers by where a tensor lies", "it answers what its input holds now", Caching),
    mistake("draws first weights from numpy's generator", ALOOF, Numpy),
    mistake("draws first weights from a new generator", "the seed alone gives the first weights", Entropic),
    mistake("shares a layer among all students", "two students share no tensor", Sharing),
    mistake(
        "a weight takes part in nothing", "every weight that asks for a gradient gets a finite one", between(Unused)
    ),
    mistake("answers hang on the number of classes", "the head grows and the old logits stay as they are", Fixed),
    mistake("a number is left out of its state", "a state dict carries the student over", Secret),
)
