"""Teachers that only episodes have, good and bad ones, so that a gate learns when to listen.

    expert     a network that was trained on every known label
    permuted   its answers stand in the wrong columns: sure of itself, and wrong
    half       right on one half of the labels, permuted on the other: a hole in its coverage
    random     a network that was never trained

All are one network read through a choice of columns, so one trained network serves every episode.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streamkd.records import Label
from streamkd.students.networks import Student
from streamkd.teachers.teacher import Role

Nature = Literal["expert", "permuted", "half", "random"]
NATURES: tuple[Nature, ...] = ("expert", "permuted", "half", "random")


class SyntheticTeacher:
    """``network``, whose output ``columns[k]`` answers for column k of the episode; of ``unknown`` it says nothing."""

    role: Role = "live"
    fresh = True
    version = 0

    def __init__(
        self,
        key: str,
        network: Callable[[Tensor], Tensor],
        columns: Sequence[int],
        width: int,
        unknown: Sequence[int] = (),
    ) -> None:
        self.key, self.network, self.columns = key, network, torch.tensor(columns)
        self._width, self._unknown = width, torch.tensor([column in unknown for column in range(len(columns))])

    @torch.no_grad()
    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        return self.network(x)[:, self.columns[: self._width]]

    def known(self) -> Bool[Tensor, "classes"]:
        return ~self._unknown[: self._width]

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {}

    def grow(self, labels: Sequence[Label]) -> None:
        self._width = len(labels)

    def observe(self, x: Tensor, y: Tensor) -> None: ...

    def after_step(self, student: Student) -> None: ...

    def size_bytes(self) -> int:
        return 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def stranger(
    nature: Nature, key: str, expert: Student, untrained: Student, classes: Sequence[int], generator: torch.Generator
) -> SyntheticTeacher:
    """A teacher for an episode whose column k is label number ``classes[k]``; ``expert`` has a column per number."""
    columns = torch.tensor(classes)
    places = torch.randperm(len(columns), generator=generator)
    wrong = {"expert": places[:0], "random": places[:0], "permuted": places, "half": places[: len(places) // 2]}[nature]
    # a turn by one: nothing among the wrong ones stays where it was
    columns[wrong] = columns[wrong].roll(1)
    network = untrained if nature == "random" else expert
    return SyntheticTeacher(key, network, columns.tolist(), len(classes))
