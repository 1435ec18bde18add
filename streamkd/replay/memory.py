"""Memory: a bounded set of remembered samples, of which a part is held out: taken as it arrives, for nobody to learn.

Each sample carries the logits that the student gave at insertion and those of frozen teachers (float16),
so that a frozen teacher is never asked twice about it. All rows live in tensors of a fixed size: the memory
never holds on to a batch that it saw.

Which place an offered row takes is said by a policy (``streamkd.replay.policy``).

On a stream that repeats its records, one that is held out comes again and is not learned; one that was learned comes
again and is not held out (``streamkd.replay.duplicates``).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd.errors import PluginError
from streamkd.hookspecs import Stateful
from streamkd.replay.duplicates import Duplicates, marks
from streamkd.replay.policy import Accounting, ClassBalanced, Contents, Offered, Policy

TENSORS = ("x", "y", "task", "mark", "logits", "width", "met", "frozen", "answered", "since", "numbers")


class Remembered:
    """Samples drawn from memory: x [n, *shape] in the stream's element type, y [n] int64, and what was cached of them.

    ``slots`` [n] are their places. The caches are gathered when they are asked for: most steps need few of them, and
    none after the memory has changed.
    """

    def __init__(self, ring: "Ring", slots: Tensor) -> None:
        assert ring.x is not None
        self._ring, self.slots = ring, slots
        self.x = ring.x.index_select(0, slots)
        self.y = ring.y.index_select(0, slots)

    def logits(self) -> Tensor:
        """[n, classes] float16: the student at insertion."""
        return self._ring.logits.index_select(0, self.slots)

    def width(self) -> Tensor:
        """[n] int64: classes that the student knew at insertion."""
        return self._ring.width.index_select(0, self.slots)

    def met(self) -> Tensor:
        """[n] int64: how often each was learned before: as it came, and whenever it was sampled earlier."""
        return self._ring.met.index_select(0, self.slots)

    def frozen(self, slot: int) -> tuple[Tensor, Tensor]:
        """Cached answers of a teacher slot [n, classes] float16, and where there are any [n] bool."""
        answers, answered = self._ring.frozen[:, slot], self._ring.answered[:, slot]
        return answers.index_select(0, self.slots), answered.index_select(0, self.slots)


class Ring:
    """``capacity`` places filled by a policy; ``offer`` decides, ``take`` writes the rows."""

    def __init__(self, capacity: int, policy: Policy, teacher_slots: int) -> None:
        self.capacity, self.policy, self.teacher_slots = capacity, policy, teacher_slots
        self.filled = 0
        self.offered = 0
        self.x: Tensor | None = None

    def __len__(self) -> int:
        return self.filled

    def _allocate(self, x: Tensor, classes: int) -> None:
        places, device = self.capacity, x.device
        self.x = torch.zeros((places, *x.shape[1:]), dtype=x.dtype, device=device)
        self.y = torch.zeros(places, dtype=torch.int64, device=device)
        self.task = torch.zeros(places, dtype=torch.int64, device=device)
        self.mark = torch.zeros(places, dtype=torch.int64, device=device)
        self.logits = torch.zeros((places, classes), dtype=torch.float16, device=device)
        self.width = torch.zeros(places, dtype=torch.int64, device=device)
        self.met = torch.zeros(places, dtype=torch.int64, device=device)
        self.frozen = torch.zeros((places, self.teacher_slots, classes), dtype=torch.float16, device=device)
        self.answered = torch.zeros((places, self.teacher_slots), dtype=torch.bool, device=device)
        self.since = torch.zeros(places, dtype=torch.int64, device=device)
        self.numbers = torch.zeros((places, self.policy.columns), dtype=torch.float64, device=device)

    def grow(self, classes: int) -> None:
        """Widen the cached answers to ``classes`` columns."""
        if self.x is not None and (more := classes - self.logits.shape[1]) > 0:
            self.logits = torch.nn.functional.pad(self.logits, (0, more))
            self.frozen = torch.nn.functional.pad(self.frozen, (0, more))

    def offer(self, x: Tensor, labels: Sequence[int], draws: Sequence[tuple[float, float]]) -> dict[int, int]:
        """Which of the rows x [n, *shape] goes to which place: {place: row}; ``draws`` are two uniform numbers per row.

        Raises:
            PluginError: the policy gives a place that there is not.
        """
        if self.x is None:
            self._allocate(x, 0)
        chosen: dict[int, int] = {}
        places = self.policy.places(Offered(x, labels, draws), self._contents())
        for row, place in zip(range(len(labels)), places, strict=True):
            if place is None:
                continue
            if not 0 <= place < min(self.filled + 1, self.capacity):
                raise PluginError(
                    f"needed a place of the {self.filled} filled ones, or the next of {self.capacity}, got {place}",
                    where=f"memory.policy {type(self.policy).__name__}",
                )
            self.filled = max(self.filled, place + 1)
            chosen[place] = row
        self.offered += len(labels)
        return chosen

    def _contents(self) -> Contents:
        assert self.x is not None
        held = slice(self.filled)
        age = self.offered - self.since[held]
        return Contents(self.capacity, self.offered, self.x[held], self.y[held], age, self.numbers)

    def take(self, places: Tensor, x: Tensor, y: Tensor, task: int, logits: Tensor, mark: Tensor | None = None) -> None:
        """Write rows into places; their cached teacher answers are forgotten. ``mark`` is what they are known by."""
        assert self.x is not None, "rows are offered before they are taken"
        self.grow(logits.shape[1])
        self.x[places], self.y[places], self.task[places] = x, y, task
        self.mark[places] = 0 if mark is None else mark.to(self.mark.device)
        self.logits[places] = logits.half()
        self.width[places] = logits.shape[1]
        self.met[places] = 0
        self.since[places] = self.offered
        self.answered[places] = False

    def marks(self) -> list[int]:
        """What its rows are known by."""
        return [] if self.x is None else self.mark[: self.filled].tolist()

    def forget(self, slot: int) -> None:
        """Drop the cached answers of a teacher's slot."""
        if self.x is not None:
            self.answered[:, slot] = False

    def drop(self, places: Iterable[int]) -> None:
        """Empty some places; the last rows move up into them."""
        for place in sorted(places, reverse=True):
            self.filled -= 1
            if isinstance(self.policy, Accounting):
                self.policy.dropped(place, self.filled)
            for name in TENSORS if self.x is not None else ():
                getattr(self, name)[place] = getattr(self, name)[self.filled]

    def state_dict(self) -> dict[str, Any]:
        tensors = {} if self.x is None else {name: getattr(self, name)[: self.filled] for name in TENSORS}
        policy = self.policy.state_dict() if isinstance(self.policy, Stateful) else {}
        return {"filled": self.filled, "offered": self.offered, "policy": policy, **tensors}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore; with another number of teacher slots, cached answers that have no place any more are dropped."""
        self.filled = state["filled"]
        # older checkpoints have what a policy keeps beside the rows
        self.offered = state["offered"] if "offered" in state else sum(count for _, count in state["seen"])
        if isinstance(self.policy, Stateful):
            self.policy.load_state_dict(state.get("policy", state))
        if "x" in state:
            self._allocate(state["x"].to(device), state["logits"].shape[1])
            for name in ("x", "y", "task", "logits", "width"):
                getattr(self, name)[: self.filled] = state[name].to(device)
            for name in ("met", "mark", "since", "numbers"):  # not in older checkpoints
                if name in state:
                    getattr(self, name)[: self.filled] = state[name].to(device)
            slots = min(self.teacher_slots, state["frozen"].shape[1])
            for name in ("frozen", "answered"):
                getattr(self, name)[: self.filled, :slots] = state[name][:, :slots].to(device)


@dataclass(frozen=True, slots=True)
class Offer:
    """Rows of a batch and the memory: ``held`` {place: row} are held out already, ``rows`` may yet be replayed.

    ``again`` are rows that came before, ``twins`` those of them that are held out since. ``draws`` are three uniform
    numbers per row of the batch.
    """

    held: dict[int, int]
    rows: list[int]
    draws: list[float]
    twins: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)

    @property
    def untaught(self) -> list[int]:
        """The rows that nobody may learn from."""
        return [*self.held.values(), *self.twins]

    def pairs(self, rows: Sequence[int]) -> list[tuple[float, float]]:
        """The two numbers of each row that decide its place."""
        return [(self.draws[3 * row + 1], self.draws[3 * row + 2]) for row in rows]


class Memory:
    """A replayed ring and a held-out one, ``size`` places in all; each has a policy of its own, else class-balanced."""

    def __init__(
        self,
        size: int,
        holdout_ratio: float,
        teacher_slots: int,
        seed: int,
        policy: Policy | None = None,
        holdout_policy: Policy | None = None,
    ) -> None:
        held = round(size * holdout_ratio)
        self.holdout_ratio = holdout_ratio
        self.replayed = Ring(size - held, policy or ClassBalanced(), teacher_slots)
        self.holdout = Ring(held, holdout_policy or ClassBalanced(), teacher_slots)
        self.duplicates = Duplicates(size)
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.replayed) + len(self.holdout)

    def grow(self, classes: int) -> None:
        """Widen the cached answers to ``classes`` columns."""
        self.replayed.grow(classes)
        self.holdout.grow(classes)

    def insert(self, x: Tensor, y: Tensor, task: int, logits: Tensor) -> None:
        """Offer rows [batch, *shape] that were learned; a share goes to the held-out part, never to both."""
        self.remember(self.hold(x, y, task, lambda rows: logits[rows]), x, y, task, logits)

    def hold(self, x: Tensor, y: Tensor, task: int, logits: Callable[[list[int]], Tensor]) -> Offer:
        """Hold out what the draw wants of arriving rows [batch, *shape]; ``remember`` takes of the others later.

        Rows without label (-1) go nowhere, nor do those that are held out since they came before; one that was learned
        before is not held out any more. ``logits`` gives the student's on rows that may be held out; where they are not
        finite a row is not: it would take another's place, and measure nothing.
        """
        draws = torch.rand(3 * len(y), generator=self._generator).tolist()
        labels, mark = y.tolist(), marks(x)
        again = set(self._again(mark))
        mine = [row for row, label in enumerate(labels) if label >= 0]
        drawn = [row for row in mine if draws[3 * row] < self.holdout_ratio and row not in again]
        drawn = drawn if self.holdout.capacity else []
        offer = Offer({}, [], draws)
        if drawn:
            said = logits(drawn)
            fine = torch.isfinite(said).all(1).tolist()
            sane, said = [row for row, ok in zip(drawn, fine, strict=True) if ok], said[fine]
            chosen = self.holdout.offer(x[sane], [labels[row] for row in sane], offer.pairs(sane))
            offer.held.update({place: sane[index] for place, index in chosen.items()})
            if chosen:
                rows = [*offer.held.values()]
                places = torch.tensor([*chosen], device=x.device)
                said, known_by = said[[*chosen.values()]], torch.from_numpy(mark[rows])
                self.holdout.take(places, x[rows], y[rows], task, said, known_by)
        if again:
            offer.again.extend(sorted(again))
            offer.twins.extend(self._twins(mark, again))
        gone = {*drawn, *offer.twins}
        offer.rows.extend(row for row in mine if row not in gone)
        return offer

    def _again(self, mark: np.ndarray) -> list[int]:
        """The rows that came before; none where inputs tell no records apart."""
        again = self.duplicates.arrive(mark)
        return np.flatnonzero(again).tolist() if self.duplicates.tells_apart else []

    def _twins(self, mark: np.ndarray, again: set[int]) -> list[int]:
        """Of the rows that came before, those that are held out since."""
        held = set(self.holdout.marks())
        return [row for row in sorted(again) if int(mark[row]) in held]

    def remember(self, offer: Offer, x: Tensor, y: Tensor, task: int, logits: Tensor) -> None:
        """Take rows of the batch [batch, *shape] that ``offer`` is about into the replayed part."""
        if not self.replayed.capacity:
            return
        labels = y.tolist()
        chosen = self.replayed.offer(x[offer.rows], [labels[row] for row in offer.rows], offer.pairs(offer.rows))
        if chosen:
            rows = [offer.rows[index] for index in chosen.values()]
            places = torch.tensor([*chosen], device=x.device)
            self.replayed.take(places, x[rows], y[rows], task, logits[rows])

    def withdraw(self, offer: Offer) -> None:
        """Give up the rows that were held out; what had been in their places is gone all the same."""
        self.holdout.drop(offer.held)

    def sample(self, count: int) -> Remembered | None:
        """Up to ``count`` different samples of the replayed part; they are learned now, and that is counted."""
        sample = self._draw(self.replayed, count)
        if sample is not None:
            self.replayed.met[sample.slots] += 1
        return sample

    def query(self, count: int) -> Remembered | None:
        """Up to ``count`` different samples of the held-out part."""
        return self._draw(self.holdout, count)

    def _draw(self, ring: Ring, count: int) -> Remembered | None:
        if not ring.filled or not count:
            return None
        slots = torch.randperm(ring.filled, generator=self._generator)[:count]
        return Remembered(ring, slots if ring.y.device.type == "cpu" else slots.to(ring.y.device))

    def state_dict(self) -> dict[str, Any]:
        return {
            "replayed": self.replayed.state_dict(),
            "holdout": self.holdout.state_dict(),
            "recognition": self.duplicates.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.replayed.load_state_dict(state["replayed"], device)
        self.holdout.load_state_dict(state["holdout"], device)
        self._generator.set_state(state["generator"])
        if "recognition" in state:
            self.duplicates.load_state_dict(state["recognition"])
        else:
            self._recognise()

    def _recognise(self) -> None:
        """An older checkpoint: of what came, only the remembered rows can be known again."""
        for ring in (self.replayed, self.holdout):
            if ring.x is not None and ring.filled:
                known_by = marks(ring.x[: ring.filled])
                self.duplicates.learn(known_by)
                ring.mark[: ring.filled] = torch.from_numpy(known_by).to(ring.mark.device)


def whole(ring: Ring) -> Remembered | None:
    """All samples of a ring, in the order of their places."""
    return Remembered(ring, torch.arange(ring.filled, device=ring.y.device)) if ring.x is not None else None
