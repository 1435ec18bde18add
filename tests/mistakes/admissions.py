"""Mistakes of admissions to the pool."""

from collections.abc import Callable
from typing import Any

import torch

from mistakes.mistake import ALOOF, Mistake


class Half:
    """An admission that is right: whoever knows half of what it is asked."""

    def __init__(self, options: Any) -> None: ...

    def admits(self, applicant: Any) -> Any:
        return float(applicant.alone.accuracy()) >= 0.5


class Nameless:
    def __init__(self, options: Any) -> None: ...


class Graded(Half):
    def admits(self, applicant: Any) -> Any:
        return applicant.alone.accuracy() >= 0.5


class Crowded(Half):
    """Takes it that somebody leaves."""

    def admits(self, applicant: Any) -> Any:
        return applicant.keys.index(applicant.leaving) >= 0


class Comparing(Half):
    """Takes the best of nobody."""

    def admits(self, applicant: Any) -> Any:
        return bool(applicant.alone.accuracy() > applicant.pool.accuracy().max())


class Rounding(Half):
    def admits(self, applicant: Any) -> Any:
        return bool(applicant.alone.likelihood.round_().mean() >= 0.5)


class Alternating(Half):
    """Every second one."""

    def __init__(self, options: Any) -> None:
        self.count = 0

    def admits(self, applicant: Any) -> Any:
        self.count += 1
        return self.count % 2 == 1


class Gambling(Half):
    def admits(self, applicant: Any) -> Any:
        return bool(torch.rand(()) < 2)


def admission(name: str, clause: str, make: Callable[..., Any]) -> Mistake:
    return Mistake("admissions", name, clause, make)


SAYS = "admits(applicant) says yes or no"
MISTAKES = (
    admission("admits nobody by that name", "`make(options)` gives an admission", Nameless),
    admission("gives a tensor", SAYS, Graded),
    admission("takes it that somebody leaves", SAYS, Crowded),
    admission("takes the best of nobody", SAYS, Comparing),
    admission("rounds what it is shown", "it leaves what it is shown as it is", Rounding),
    admission("every second one", "of the same applicant it says the same", Alternating),
    admission("guesses, from torch's generator", ALOOF, Gambling),
)
