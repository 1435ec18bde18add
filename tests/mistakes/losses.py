"""Mistakes of losses."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mistakes.mistake import ALOOF, Mistake
from streamkd.losses.match_gate import MatchGate, MatchGateOptions


def altered(change: Callable[[Any, Tensor], Tensor]) -> Callable[..., Any]:
    """Match-gate, and what a mistake does to its values."""

    class Altered(MatchGate):
        def __call__(self, lesson: Any) -> Tensor:
            return change(lesson, super().__call__(lesson))

    return lambda options: Altered(MatchGateOptions())


def misleading(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Match-gate, and what a mistake does to what the gate is told."""

    class Misleading(MatchGate):
        def per_source(self, lesson: Any) -> Tensor:
            return change(super().per_source(lesson))

    return lambda options: Misleading(MatchGateOptions())


class Plain:
    """A loss that is right: how far the student's confidence is from a half; it asks neither label nor gate."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, options: Any) -> None: ...

    def __call__(self, lesson: Any) -> Tensor:
        return lesson.logits.softmax(1).square().sum(1) * lesson.weights.sum(1)


class Clamping(Plain):
    """Cross entropy that takes -1 for the first class."""

    def __call__(self, lesson: Any) -> Tensor:
        return F.cross_entropy(lesson.logits, lesson.labels.clamp_min(0), reduction="none") * lesson.weights.sum(1)


class Indexing(Plain):
    """Cross entropy that takes -1 for the last class."""

    def __call__(self, lesson: Any) -> Tensor:
        rows = torch.arange(len(lesson.labels))
        return -lesson.logits.log_softmax(1)[rows, lesson.labels] * lesson.weights.sum(1)


class Stubborn(Plain):
    """Teaches rows that are held out."""

    def __call__(self, lesson: Any) -> Tensor:
        return F.cross_entropy(lesson.logits, lesson.labels, ignore_index=-1, reduction="none")


class Secretive(Plain):
    """Reads the gate's weights, and gives it nothing."""

    def __call__(self, lesson: Any) -> Tensor:
        hard = F.cross_entropy(lesson.logits, lesson.labels, ignore_index=-1, reduction="none")
        return lesson.weights[:, 0] * hard


class Rewarding(Plain):
    """Rewards in place of losses."""

    def __call__(self, lesson: Any) -> Tensor:
        return -super().__call__(lesson)


class Drifting(Plain):
    """Less at each call."""

    calls = 0

    def __call__(self, lesson: Any) -> Tensor:
        self.calls += 1
        return super().__call__(lesson) / self.calls


class Tempering(Plain):
    """Tempers the answers where they lie."""

    def __call__(self, lesson: Any) -> Tensor:
        lesson.answers.div_(2)
        return super().__call__(lesson)


class Hasty(Plain):
    """Costs nothing where the lesson is complete."""

    def __call__(self, lesson: Any) -> Tensor:
        return super().__call__(lesson) * (0 if lesson.complete else 1)


class Coarse(Plain):
    """Float32 whatever comes."""

    def __call__(self, lesson: Any) -> Tensor:
        return super().__call__(lesson).float()


class Noisy(Plain):
    def __call__(self, lesson: Any) -> Tensor:
        return super().__call__(lesson) + 1e-9 * torch.rand(())


class Unprepared(Plain):
    """Has parameters, and makes them nowhere."""

    def parameters(self) -> list[Any]:
        return []


class Unrelating(Plain):
    """Says no where there is nothing to say."""

    relating = False


class Overheard(MatchGate):
    """Tells the gate of a label that is not there."""

    def __init__(self, options: Any) -> None:
        super().__init__(MatchGateOptions())

    def per_source(self, lesson: Any) -> Tensor:
        table = super().per_source(lesson).clone()
        last = -lesson.logits.log_softmax(1)[:, -1]
        return torch.cat([torch.where(lesson.labels < 0, last, table[:, 0]).unsqueeze(1), table[:, 1:]], 1)


def mistake(name: str, clause: str, make: Callable[..., Any]) -> Mistake:
    return Mistake("losses", name, clause, make)


OTHERS, SLOPE = "the value of a sample does not depend on the others", "per_source is the loss's slope in each weight"
MISTAKES = (
    mistake("parameters() without prepare()", "gives a loss that says its layers", Unprepared),
    mistake("relating = False", "gives a loss that says its layers", Unrelating),
    mistake("gives the mean", "it gives one finite value per sample", altered(lambda lesson, v: v.mean())),
    mistake("gives float32 of float64", "it gives one finite value per sample", Coarse),
    mistake("works on the answers in place", "it leaves its lesson as it is", Tempering),
    mistake("counts its calls", "of the same lesson it says the same, whatever came between", Drifting),
    mistake("noise", ALOOF, Noisy),
    mistake("less the mean over the batch", OTHERS, altered(lambda lesson, v: v - v.mean())),
    mistake(
        "reads the first teacher",
        "the order of the teachers",
        altered(lambda lesson, v: v + lesson.answers[:, 0].sum(1)),
    ),
    mistake(
        "reads what a teacher does not know",
        "a teacher that knows nothing and has no weight is as good as gone",
        altered(lambda lesson, v: v + lesson.answers.sum((1, 2))),
    ),
    mistake("costs nothing where the lesson is complete", "a lesson that says that it is complete", Hasty),
    mistake(
        "divides by the teachers", "without teachers", altered(lambda lesson, v: v / (lesson.answers.shape[1] > 0))
    ),
    mistake("takes -1 for the first class", "a row without label teaches no class of its own", Clamping),
    mistake("takes -1 for the last class", "a row without label teaches no class of its own", Indexing),
    mistake(
        "cut from the student", "is its derivative, and reaches the student", altered(lambda lesson, v: v.detach())
    ),
    mistake(
        "a gradient without a value",
        "its gradient is its derivative",
        altered(lambda lesson, v: v + lesson.logits.sum(1) - lesson.logits.sum(1).detach()),
    ),
    mistake(
        "reads the gate's weights, without per_source()", "one that reads how the gate weighs its sources", Secretive
    ),
    mistake("teaches rows that are held out", "a row whose weights are all 0 is held out", Stubborn),
    mistake("is negative", "no value is negative", Rewarding),
    mistake(
        "per_source() without the label",
        "per_source(lesson) is a finite number",
        misleading(lambda table: table[:, 1:]),
    ),
    mistake("per_source() is half the slope", SLOPE, misleading(lambda table: table * 0.5)),
    mistake("per_source() is cut from the student", SLOPE, misleading(lambda table: table.detach())),
    mistake("per_source() in another order", SLOPE, misleading(lambda table: table.flip(1))),
    mistake("per_source() of a label that is not there", "per_source of a label that is not there", Overheard),
)
