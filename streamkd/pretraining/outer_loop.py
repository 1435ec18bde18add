"""Phase 2: a gate is trained over many episodes of the real step before the stream begins.

    episode: a course of known tasks, a pool of good and bad teachers, perhaps wrong labels
      for each batch   the step as the stream takes it; every ``horizon`` steps the gate moves along dL_out/dφ
      L_out            CE on clean query records of all tasks so far, after ``horizon`` steps of the student

The gate and its optimiser live on from episode to episode, everything else begins anew; so does what a gate holds of
one episode alone (``streamkd.meta.adaptation.Beginning``), for strangers and labels are others each time. Horizon: the
first-order sum of ``streamkd.meta.adaptation`` over the steps that were really taken.

``streamkd.pretraining.plain`` is for people with only PyTorch: their model, teachers, optimiser and batches.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from streamkd.learning.step import Step
from streamkd.meta.adaptation import GateAdapter
from streamkd.pretraining.episodes import Course
from streamkd.pretraining.initialization import Batch
from streamkd.pretraining.synthetic import SyntheticTeacher


@dataclass(frozen=True, slots=True)
class Played:
    """One episode: the outer losses that the gate was moved by, and the accuracy on the query at its end."""

    outer: float
    accuracy: float


def train_gate(
    adapter: GateAdapter,
    episodes: Iterable[tuple[Course, Step]],
    *,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Played]:
    """Play every course with its own step, whose gate is the adapter's; the gate is moved.

    After each episode, the last too, the gate is as a stream would begin with it.
    """
    played = []
    for number, (course, step) in enumerate(episodes):
        usual = [teacher.key for teacher in step.pool.teachers if not isinstance(teacher, SyntheticTeacher)]
        played.append(play(adapter, course, step, batch))
        adapter.begin_stream(usual)
        progress(number + 1)
    return played


def play(adapter: GateAdapter, course: Course, step: Step, batch: int) -> Played:
    """One course: each task's query is held out as the task begins, then its support arrives in batches."""
    step.memory.holdout_ratio = 0.0  # what arrives may have wrong labels: the query is the course's own
    outer = []
    for task, part in enumerate(course):
        step.grow(part.classes)
        hold_out(step, part.query, task)
        for x, y in zip(part.support.x.split(batch), part.support.y.split(batch), strict=True):
            step.learn(x, y, task)
            outer.append(adapter.outer_loss)
        step.pool.end_task(step.student)
    return Played(sum(outer) / len(outer), accuracy_of(step, course))


@torch.no_grad()
def hold_out(step: Step, query: Batch, task: int) -> None:
    """Offer records to the held-out part of the memory."""
    ring = step.memory.holdout
    draws = torch.rand(len(query.y), 2, generator=torch.Generator().manual_seed(task)).tolist()
    device = next(step.student.parameters()).device
    x, y = query.x.to(device), query.y.to(device)
    chosen = ring.offer(x, y.tolist(), [(chance, pick) for chance, pick in draws])
    places, rows = torch.tensor(list(chosen), device=device), torch.tensor(list(chosen.values()), device=device)
    ring.take(places, x[rows], y[rows], task, step.student(x[rows]))


@torch.no_grad()
def accuracy_of(step: Step, course: Course) -> float:
    """Of the student on the query of all tasks."""
    x, y = (torch.cat([getattr(part.query, name) for part in course]) for name in ("x", "y"))
    return float((step.student(x).argmax(1) == y).float().mean())
