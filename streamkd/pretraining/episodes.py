"""Episodes of phase 2: pairs and sequences of known tasks, drawn anew each time, their labels numbered by arrival.

    known tasks ─► per label a support and a query part, for good ─► draw tasks, labels, records ─► Course
    Course ─► start_episode (for ``starts``: steps with replayed rows), or played by ``train`` with the real step

A record is never support in one episode and query in another. All randomness is the generator's.

Known classes are few, and a start that has met each of them a hundred times knows them, not how to learn others. In a
start's episodes each class of images is therefore turned by quarter-turns of its own: a turned class is a class of its
own, and there are four times as many (Santoro et al. 2016; task augmentation in Ni et al. 2021).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from streamkd.pretraining.initialization import Batch, Episode
from streamkd.students import images

T = TypeVar("T")
QUERY = 0.25  # share of each label's records


@dataclass(frozen=True, slots=True)
class EpisodeShape:
    """How large episodes are: tasks in a row, labels of a task at most, support records of a task about."""

    tasks: int = 2
    ways: int = 10
    records: int = 100


@dataclass(frozen=True, slots=True)
class TaskPart:
    """One task of a course: support in order of arrival, query, and the labels known once it is over.

    ``classes`` are the known labels' own numbers, in the order of their columns.
    """

    support: Batch
    query: Batch
    classes: tuple[int, ...]


Course = Sequence[TaskPart]


class KnownTask:
    """Records of known tasks: x [n, *shape], y [n] label numbers, and the labels of each task.

    Raises:
        ValueError: no label has the two records that it needs, or fewer than two labels are there.
    """

    def __init__(self, x: Tensor, y: Tensor, tasks: Sequence[Sequence[int]], seed: int) -> None:
        self.x = x
        self.generator = torch.Generator().manual_seed(seed)
        self.support: dict[int, Tensor] = {}
        self.query: dict[int, Tensor] = {}
        for label in y.unique().tolist():
            rows = self._shuffled((y == label).nonzero().squeeze(1))
            held = max(round(QUERY * len(rows)), 1)
            if len(rows) > held:
                self.query[label], self.support[label] = rows[:held], rows[held:]
        if len(self.support) < 2:
            raise ValueError(f"needed two labels with two records each, got {len(self.support)}")
        kept = [[label for label in labels if label in self.support] for labels in tasks]
        self.tasks = [labels for labels in kept if labels]

    def support_rows(self) -> tuple[Tensor, Tensor]:
        """All support records, for teachers that know them: x [n, *shape], y [n] label numbers."""
        rows = torch.cat(list(self.support.values()))
        y = torch.cat([torch.full((len(own),), label) for label, own in self.support.items()])
        return self.x[rows], y.to(self.x.device)

    def draw(self, shape: EpisodeShape, noise: float = 0.0) -> Course:
        """Tasks one after another; ``noise``: the share of support labels changed to another of their task."""
        columns: dict[int, int] = {}
        course = []
        for labels in self._draw_tasks(shape):
            rows, y = self._records(self.support, labels, -(-shape.records // len(labels)))
            given = self._noisy(y, labels, noise) if noise else y
            for label in [*given.tolist(), *labels]:
                columns.setdefault(label, len(columns))
            asked, answers = self._records(self.query, labels, len(self.x))
            course.append(
                TaskPart(self._batch(rows, given, columns), self._batch(asked, answers, columns), tuple(columns))
            )
        return course

    def start_episode(
        self, shape: EpisodeShape, batch: int, replay: int, *, turned: bool = False, shift: int = 0
    ) -> Episode:
        """A course as the steps of a stream: each batch with rows drawn from all that came before it.

        Of images each class may be ``turned`` by quarter-turns of its own, and each support row moved by up to
        ``shift`` pixels, anew every time that it comes; other records are left as they are.
        """
        course = self.draw(shape)
        x, y = torch.cat([part.support.x for part in course]), torch.cat([part.support.y for part in course])
        asked, answers = torch.cat([part.query.x for part in course]), torch.cat([part.query.y for part in course])
        classes = len(course[-1].classes)
        pictures = images.is_image(tuple(x.shape[1:]))
        if turned and pictures:
            quarters = torch.randint(4, (classes,), generator=self.generator).to(y.device)
            x, asked = images.turned(x, quarters[y]), images.turned(asked, quarters[answers])
        steps, begin = [], 0
        for part in course:
            for rows in torch.arange(begin, begin + len(part.support.y)).split(batch):
                past = torch.randperm(int(rows[0]), generator=self.generator)[:replay]
                rows = torch.cat([rows, past])
                seen = images.shifted(x[rows], shift, self.generator) if shift and pictures else x[rows]
                steps.append(Batch(seen, y[rows]))
            begin += len(part.support.y)
        return Episode(steps, Batch(asked, answers), classes)

    def _draw_tasks(self, shape: EpisodeShape) -> list[list[int]]:
        """Labels of each task; where too few tasks are known, one task's labels are dealt out."""
        tasks = self.tasks
        if len(tasks) < shape.tasks:
            every = [label for labels in tasks for label in labels]
            dealt = self._pick(every, len(every))
            count = max(min(shape.tasks, len(every) // 2), 1)
            tasks = [dealt[number::count] for number in range(count)]
        return [self._pick(labels, shape.ways) for labels in self._pick(tasks, shape.tasks)]

    def _records(self, rows: Mapping[int, Tensor], labels: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
        """Up to ``most`` rows of each label, shuffled, and their label numbers."""
        mine = [self._shuffled(rows[label])[:most] for label in labels]
        y = torch.cat([torch.full((len(own),), label) for own, label in zip(mine, labels, strict=True)])
        order = torch.randperm(len(y), generator=self.generator)
        return torch.cat(mine)[order], y[order]

    def _noisy(self, y: Tensor, labels: Sequence[int], noise: float) -> Tensor:
        if len(labels) < 2:
            return y
        pool = torch.tensor(labels)
        place = torch.searchsorted(pool.sort().values, y)
        other = (place + torch.randint(1, len(labels), y.shape, generator=self.generator)) % len(labels)
        changed = torch.rand(y.shape, generator=self.generator) < noise
        return torch.where(changed, pool.sort().values[other], y)

    def _batch(self, rows: Tensor, y: Tensor, columns: Mapping[int, int]) -> Batch:
        return Batch(self.x[rows], torch.tensor([columns[label] for label in y.tolist()], device=self.x.device))

    def _pick(self, items: Sequence[T], most: int) -> list[T]:
        return [items[place] for place in torch.randperm(len(items), generator=self.generator)[:most].tolist()]

    def _shuffled(self, rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=self.generator)]
