"""The student's start, learned over known tasks with learn2learn's MAML and MetaSGD.

    episode: tasks one after another ─► clone ─► steps as the stream takes them (replay, its optimiser) ─► CE(query)
                                                                         start ◄── summed over points on the way

The start is a student of *one* class: its head row begins every class (UNICORN-MAML, Ye & Chao 2022, section 5), so
it fits any number of labels, whenever they come. MAML: Finn et al. 2017, equation 1; MetaSGD: Li et al. 2017,
equation 2, with one rate for each parameter, by which the episodes alone go; the query loss at points on the way:
Antoniou et al. 2019, equation 3.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamkd import extras
from streamkd.students.networks import Student

How = Literal["none", "maml", "metasgd"]
LEAST, MOST = 0.1, 10.0  # bounds of a rate's factor
BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's as torch has them


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows x [n, *shape] and their classes y [n], numbered by arrival within an episode."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, slots=True)
class Episode:
    """Steps in order, each with its fresh and its replayed rows, and a query of all classes of the episode."""

    steps: Sequence[Batch]
    query: Batch
    classes: int


@dataclass(frozen=True, slots=True)
class Start:
    """A one-class student's weights, and the outer losses on the way to them."""

    weights: dict[str, Tensor]
    losses: list[float]


@dataclass(frozen=True, slots=True)
class Inner:
    """How the inner loop steps: as the stream's optimiser does, without momentum of SGD and weight decay."""

    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    first_order: bool = True
    points: int = 5
    """How often the query is asked on the way."""


def learn_start(
    student: Student,
    episodes: Iterable[Sequence[Episode]],
    inner: Inner,
    *,
    how: Literal["maml", "metasgd"],
    outer_rate: float = 2e-3,
    progress: Callable[[int], None] = lambda done: None,
) -> Start:
    """Learn from batches of episodes where ``student``, of one class, should begin; it is moved there."""
    logs = [torch.zeros((), device=p.device, requires_grad=how == "metasgd") for p in student.parameters()]
    groups: list[dict[str, Any]] = [{"params": list(student.parameters())}, {"params": logs, "lr": 10 * outer_rate}]
    optimizer = torch.optim.Adam(groups[: 2 if how == "metasgd" else 1], lr=outer_rate)
    losses = []
    for number, batch in enumerate(episodes):
        optimizer.zero_grad()
        loss = torch.stack([_outer(student, logs, episode, inner) for episode in batch]).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for log in logs:
                log.clamp_(math.log(LEAST), math.log(MOST))
        progress(number + 1)
    weights = {name: value.detach().clone() for name, value in student.state_dict().items()}
    return Start(weights, losses)


def _outer(student: Student, logs: Sequence[Tensor], episode: Episode, inner: Inner) -> Tensor:
    """Mean CE on the query at points on the way; its gradient reaches the start and the logarithms of the rates."""
    clone = learn2learn().MetaSGD(student, lrs=[inner.learning_rate * log.exp() for log in logs]).clone()
    _widen(clone.module, episode.classes)
    moments = _Moments(inner)
    every = max(len(episode.steps) // inner.points, 1)
    found, seen = [], torch.zeros(episode.classes, dtype=torch.bool, device=episode.query.y.device)
    for number, step in enumerate(episode.steps, 1):
        seen[step.y] = True
        loss = F.cross_entropy(clone(step.x).masked_fill(~seen, -torch.inf), step.y)
        graph = not inner.first_order
        grads = torch.autograd.grad(loss, list(clone.module.parameters()), create_graph=graph, retain_graph=graph)
        clone.module = learn2learn().meta_sgd.meta_sgd_update(clone.module, clone.lrs, moments.direction(grads))
        if number % every == 0:
            mine = seen[episode.query.y]
            logits = clone(episode.query.x[mine]).masked_fill(~seen, -torch.inf)
            found.append(F.cross_entropy(logits, episode.query.y[mine]))
    return torch.stack(found).mean()


class _Moments:
    """What the stream's optimiser makes of a gradient before its rate: itself, or Adam's m̂/(√v̂ + ε)."""

    def __init__(self, inner: Inner) -> None:
        self.inner = inner
        self.count = 0
        self.first: list[Tensor] = []
        self.second: list[Tensor] = []

    def direction(self, grads: Sequence[Tensor]) -> list[Tensor]:
        if self.inner.optimizer == "sgd":
            return list(grads)
        self.count += 1
        if not self.first:
            self.first = [torch.zeros_like(g) for g in grads]
            self.second = [torch.zeros_like(g) for g in grads]
        (b1, b2), t = BETAS, self.count
        self.first = [b1 * m + (1 - b1) * g for m, g in zip(self.first, grads, strict=True)]
        # the scale is held constant: √ has no derivative at 0, where dead units are
        self.second = [b2 * v + (1 - b2) * g.detach() ** 2 for v, g in zip(self.second, grads, strict=True)]
        return [
            m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + EPS) for m, v in zip(self.first, self.second, strict=True)
        ]


def _widen(student: Student, classes: int) -> None:
    """Every class begins with the one row of the head, which gathers their gradients."""
    parameters = cast(dict[str, Tensor], student.head._parameters)
    for name in ("weight", "bias"):
        row = parameters[name]
        parameters[name] = row.expand(classes, *row.shape[1:]).clone()


def learn2learn() -> Any:
    """learn2learn's algorithms.

    Raises:
        MissingExtra: learn2learn is not installed.
    """
    return extras.load("learn2learn.algorithms", "the student's start", "student_start")
