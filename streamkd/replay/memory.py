"""Memory: a bounded set of remembered samples, of which a part is held out: taken as it arrives, not learned yet.

    arriving rows ─► hold ─► the held-out ring ─► query
                       │             └─► released: who makes room there is learned then
                       └─► remember ─► the replayed ring ─► sample

It is bounded by records, or by bytes: then by all that is kept of a record, in the stream's own element type. Where a
record comes to take more (a new class, another teacher whose answers are kept) there are fewer places, and the policy
says who goes. What a step costs does not depend on how many there are.

On a stream that repeats its records, one that is held out comes again and is not learned; one that was learned comes
again and is not held out (``streamkd.replay.duplicates``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd.errors import ConfigError
from streamkd.replay.duplicates import Duplicates, marks
from streamkd.replay.holdout import Holdout, Offer, Released
from streamkd.replay.policy import ClassBalanced, Policy
from streamkd.replay.ring import Remembered, Ring

MOST_HELD_OUT = 160  # records: every step goes by what was said of each, and none of them is learned
SOON = 1_000  # records that are too few for a source to have begun anew, of a memory of more
FEW = 10  # times as many as are drawn: of so few records all are shuffled
DRAWS = 5  # of a row: may it be held out, two for its place there, two for the place of who may be replayed in its turn
ROUNDS = 4  # of drawing, where many of the records are contradicted


class Memory:
    """A replayed ring and a held-out one; each has a policy of its own, else class-balanced.

    ``size`` places in all, or as many as ``bytes`` have room for; at most ``most_held_out`` of them are held out.
    """

    def __init__(
        self,
        size: int | None,
        holdout_ratio: float,
        teacher_slots: int,
        seed: int,
        policy: Policy | None = None,
        holdout_policy: Policy | None = None,
        *,
        bytes: int = 0,
        most_held_out: int = MOST_HELD_OUT,
    ) -> None:
        self.bytes, self.holdout_ratio, self.teacher_slots = bytes, holdout_ratio, teacher_slots
        self._places_held_out = holdout_ratio, most_held_out  # whatever share of what arrives is held out from here on
        replayed, held = self._divided(bytes if size is None else size)  # a row takes one byte at least
        self.replayed = Ring(replayed, policy or ClassBalanced(), teacher_slots)
        self.holdout = Holdout(held, holdout_policy or ClassBalanced(), teacher_slots, replayed=False)
        self._bounded_by_bytes = size is None
        self._fitted: tuple[int, int] | None = None  # for how many classes and teachers there are places now
        self.duplicates = Duplicates(min(replayed + held, SOON))
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.replayed) + len(self.holdout)

    @property
    def _rings(self) -> tuple[Ring, Ring]:
        return self.replayed, self.holdout

    def _divided(self, places: int) -> tuple[int, int]:
        """Places of the replayed and of the held-out part."""
        ratio, most = self._places_held_out
        held = min(round(places * ratio), most)
        return places - held, held

    def grow(self, classes: int) -> None:
        """Widen the cached answers to ``classes`` columns."""
        self._fit(classes, self.replayed.slots)
        for ring in self._rings:
            ring.grow(classes)

    def open(self, slots: int) -> None:
        """Have room for the answers of so many teachers."""
        self._fit(0, slots)
        for ring in self._rings:
            ring.open(slots)

    def _fit(self, classes: int, slots: int) -> None:
        """Have as many places as there are bytes for, once rows take so much.

        Raises:
            ConfigError: there are bytes for no row.
        """
        if not self._bounded_by_bytes or self.replayed.x is None:
            return
        classes, slots = max(classes, self.replayed.logits.shape[1]), max(slots, self.replayed.slots)
        if self._fitted == (classes, slots):
            return
        self._fitted = classes, slots
        row_bytes = max(ring.row_bytes(classes, slots) for ring in self._rings)
        if row_bytes > self.bytes:
            raise ConfigError(
                f"one remembered record takes {row_bytes} bytes, got {self.bytes}",
                where="memory.bytes",
                fix="raise it to a thousand times that, or give memory.size",
            )
        for ring, places in zip(self._rings, self._divided(self.bytes // row_bytes), strict=True):
            ring.resize(places, self._draws)

    def _draws(self, count: int) -> list[float]:
        return torch.rand(count, generator=self._generator).tolist()

    def insert(self, x: Tensor, y: Tensor, task: int, logits: Tensor) -> None:
        """Offer rows [batch, *shape] that were learned; a share is held out, and replayed when it is so no more."""
        self.remember(self.hold(x, y, task, lambda rows: logits[rows]), x, y, task, logits)

    def hold(self, x: Tensor, y: Tensor, task: int, logits: Callable[[list[int]], Tensor]) -> Offer:
        """Hold out what the draw wants of arriving rows [batch, *shape]; ``remember`` takes of the others later.

        Rows without label (-1) go nowhere, nor do those that are held out since they came before; one that was learned
        before is not held out any more. ``logits`` gives the student's on rows that may be held out; where they are not
        finite a row is not: it would take another's place, and measure nothing.
        """
        if self._bounded_by_bytes and self.replayed.x is None:
            for ring in self._rings:
                if ring.x is None:
                    ring.allocate(x, 0)
            self._fit(0, 0)
        numbers = torch.rand(len(y), DRAWS, generator=self._generator).tolist()
        mark = marks(x)
        offer, released = Offer(len(y), again=self._again(mark)), list[Released]()
        turns = {row: row for row, label in enumerate(y.tolist()) if label >= 0}
        drawn = [row for row in turns if numbers[row][0] < self.holdout_ratio and row not in offer.again]
        for row, said in self._measurable(drawn, logits):
            one, (_, chance, pick, *_) = slice(row, row + 1), numbers[row]
            known_by = torch.from_numpy(mark[one])
            place, left = self.holdout.hold(x[one], y[one], task, said, known_by, (chance, pick))
            if place is not None:
                offer.held[place] = row
                offer.untaught.append(row)
                turns[row] = -1
            if left is not None:
                turns[row] = len(y) + len(released)
                released.append(left)
        offer.untaught.extend(twins := self._twins(mark, offer.again))
        for row, who in turns.items():
            if who >= 0 and row not in twins:
                offer.rows.append(who)
                offer.draws.append((numbers[row][3], numbers[row][4]))
        return replace(offer, released=Released.joined(released))

    def _measurable(self, drawn: list[int], logits: Callable[[list[int]], Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Of the rows that the draw would hold out those of which the student says anything, with that [1, classes]."""
        if not drawn or not self.holdout.capacity:
            return
        said = logits(drawn)
        self.grow(said.shape[1])
        finite = torch.isfinite(said).all(1).tolist()
        yield from ((row, said[i : i + 1]) for i, row in enumerate(drawn) if finite[i])

    def _again(self, mark: np.ndarray) -> list[int]:
        """The rows that came before; none where inputs tell no records apart."""
        again = self.duplicates.arrive(mark)
        return np.flatnonzero(again).tolist() if self.duplicates.tells_apart else []

    def _twins(self, mark: np.ndarray, again: Sequence[int]) -> list[int]:
        """Of the rows that came before, those that are held out since."""
        held = set(self.holdout.marks()) if again else ()
        return [row for row in again if int(mark[row]) in held]

    def remember(self, offer: Offer, x: Tensor, y: Tensor, task: int, logits: Tensor) -> None:
        """Take of the rows that ``offer`` is about into the replayed part; what arrived comes first in x, y, logits."""
        if not self.replayed.capacity:
            return
        self.grow(logits.shape[1])
        x, y = x[: offer.arrived], y[: offer.arrived]
        released, rows = offer.released, torch.tensor(offer.rows, dtype=torch.int64, device=y.device)
        every = (x, y) if released is None else (torch.cat([x, released.x]), torch.cat([y, released.y]))
        chosen = self.replayed.offer(every[0][rows], every[1][rows].tolist(), offer.draws)
        places = torch.tensor([*chosen], dtype=torch.int64, device=y.device)
        rows = rows[[*chosen.values()]]
        came = rows < len(y)
        if len(fresh := rows[came]):
            self.replayed.take(places[came], x[fresh], y[fresh], task, logits[fresh])
        if released is not None and len(others := rows[~came]):
            self.replayed.receive(places[~came], released[others - len(y)])

    def withdraw(self, offer: Offer) -> None:
        """Give up the rows that were held out; what had been in their places is gone all the same."""
        self.holdout.drop(offer.held)

    def sample(self, count: int) -> Remembered | None:
        """Up to ``count`` different samples of the replayed part; they are learned now, and that is counted.

        What newer records contradict is not replayed.
        """
        sample = self._draw(self.replayed, count)
        if sample is not None:
            self.replayed.met[sample.slots] += 1
        return sample

    def query(self, count: int) -> Remembered | None:
        """Up to ``count`` different samples of the held-out part."""
        return self._draw(self.holdout, count)

    def _draw(self, ring: Ring, count: int) -> Remembered | None:
        """Some of the ring's rows, in an order of chance, by looking at not many more."""
        if not ring.filled or not count:
            return None
        if ring.filled <= FEW * count:
            slots = torch.randperm(ring.filled, generator=self._generator).to(ring.y.device)
            slots = slots[~ring.contradicted[slots]][:count]
        else:
            slots = self._distinct(ring, count)
        return Remembered(ring, slots) if len(slots) else None

    def _distinct(self, ring: Ring, count: int) -> Tensor:
        found: dict[int, None] = {}
        for _ in range(ROUNDS):
            slots = torch.randint(ring.filled, (2 * count,), generator=self._generator).to(ring.y.device)
            found |= dict.fromkeys(slots[~ring.contradicted[slots]].tolist())
            if len(found) >= count:
                break
        return torch.tensor([*found][:count], dtype=torch.int64, device=ring.y.device)

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
        self._fitted = None
        self._fit(0, 0)
        if not self._bounded_by_bytes:
            for ring in self._rings:
                ring.resize(ring.capacity, self._draws)
        if "recognition" in state:
            self.duplicates.load_state_dict(state["recognition"])
        else:
            self._recognise()

    def _recognise(self) -> None:
        """An older checkpoint: of what came, only the remembered rows can be known again."""
        for ring in self._rings:
            if ring.x is not None and ring.filled:
                known_by = marks(ring.x[: ring.filled])
                self.duplicates.learn(known_by)
                ring.mark[: ring.filled] = torch.from_numpy(known_by).to(ring.mark.device)
