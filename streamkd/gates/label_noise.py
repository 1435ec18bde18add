"""Label noise: what part of the labels is wrong, as far as sure answers to arriving records tell.

    answers to records that nobody has learned yet ─► by confidence, in blocks ─► mistakes of the sure, of the less sure
                                                  ─► what is left where confidence goes to its end: the floor

Who is ignorant errs less, the surer he is; a wrong label contradicts the sure as often as anybody. So the mistakes are
counted among the surest tenth of a block's answers, e₁, and among those up to a third, e₂; where the line through both
ends, 2e₁ - e₂, is what no confidence takes away. Data that is hard, and classes that overlap, have a slope and hardly
a floor. (Confident learning, Northcutt et al. 2021, section 3, thresholds confidence by class instead; on hard clean
data that counts ignorance.)

Wrong labels come evenly, a world that changes does not: before it changed, the sure were right. So of all stretches of
the last records the least floor counts, with its error in mind. And whoever finds labels right where he is sure
disproves that they are wrong: so of all who answer, student and teachers, the least counts. What is said is too low
rather than too high.

Where nobody is right on more than ``SKILL`` of what he is asked, ignorance may look like noise: then nothing is said.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BLOCK = 500  # labelled records; the surest tenth of fewer would be a handful
TOGETHER = 10  # steps that are looked at at once: at each, it took 2 % of a learner's time
BLOCKS = 40  # that are remembered: noise that begins later is seen once those before it are forgotten
STRETCH = 2  # blocks whose floor is taken together
SURE, LESS_SURE = 1 / 10, 1 / 3  # the parts of the answers whose mistakes are counted
SKILL = 0.4  # right answers below which nothing is told
QUIET, LOUD = 0.05, 0.25  # a small part is ignorance as often as error


class Tally(NamedTuple):
    """Answers and mistakes in a block: of the surest, of the less sure, of all."""

    sure: int
    sure_wrong: int
    less: int
    less_wrong: int
    all: int
    all_wrong: int

    @classmethod
    def of(cls, confidence: Float[Tensor, "batch"], wrong: Bool[Tensor, "batch"]) -> "Tally":
        """Count a block's answers."""
        wrong = wrong[confidence.argsort(descending=True, stable=True)]
        sure, less = int(len(wrong) * SURE), int(len(wrong) * LESS_SURE)
        mistakes = [int(part.sum()) for part in (wrong[:sure], wrong[sure:less], wrong)]
        return cls(sure, mistakes[0], less - sure, mistakes[1], len(wrong), mistakes[2])

    @classmethod
    def sum(cls, tallies: Sequence["Tally"]) -> "Tally":
        """Several blocks together."""
        return cls(*map(sum, zip(*tallies, strict=True)))

    @property
    def floor(self) -> tuple[float, float]:
        """2e₁ - e₂, and its standard error, with half a mistake to spare in each part."""
        sure, less = self.sure_wrong / self.sure, self.less_wrong / self.less
        spare = sure * (1 - sure) + 0.25 / self.sure, less * (1 - less) + 0.25 / self.less
        return 2 * sure - less, float((4 * spare[0] / self.sure + spare[1] / self.less) ** 0.5)


class LabelNoise:
    """What arriving records say of their labels; in the checkpoint, bounded, the same for the same records."""

    def __init__(self) -> None:
        self._blocks: dict[str, deque[Tally]] = {}
        self._names: tuple[str, ...] = ()
        self._arrived: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting: dict[str, list[Tensor]] = {}
        self._count = 0

    def observe(
        self,
        names: Sequence[str],
        logits: Float[Tensor, "batch sources classes"],
        known: Bool[Tensor, "batch sources classes"],
        labels: Int[Tensor, "batch"],
    ) -> None:
        """Take the answers of student and teachers to rows that arrive; those without label (-1) say nothing.

        A source is asked where it knows the label, and another class that it could take for it.
        """
        if self._arrived and (tuple(names) != self._names or logits.shape[2] != self._arrived[0][0].shape[2]):
            self._look()
        self._names = tuple(names)
        self._arrived.append((logits, known, labels))
        self._count += int((labels >= 0).sum())
        if self._count >= BLOCK:
            self._look()
            self._close()
        elif len(self._arrived) >= TOGETHER:
            self._look()

    def _look(self) -> None:
        """How sure everybody was of the rows that have arrived, and whether wrong: for several steps at once."""
        if not self._arrived:
            return
        logits, known, labels = (torch.cat(parts) for parts in zip(*self._arrived, strict=True))
        self._arrived = []
        labelled = labels >= 0
        logits, known, labels = logits[labelled].float(), known[labelled], labels[labelled]
        if not len(labels):
            return
        columns = labels.view(-1, 1, 1).expand(-1, len(self._names), 1)
        heard = known.gather(2, columns).squeeze(2) & (known.sum(2) > 1)
        confidence, answer = torch.softmax(logits.masked_fill(~known, -torch.inf), 2).max(2)
        found = torch.stack([confidence, (answer != labels.unsqueeze(1)).float()], 2).cpu()
        asked = (heard & confidence.isfinite()).cpu()
        for column, name in enumerate(self._names):
            if len(mine := found[asked[:, column], column]):
                self._waiting.setdefault(name, []).append(mine)

    def _close(self) -> None:
        """Count the block that is full; who was not asked in it is forgotten."""
        for name in {*self._blocks} - {*self._waiting}:
            del self._blocks[name]
        for name, parts in self._waiting.items():
            rows = torch.cat(parts)
            if len(rows) >= BLOCK // 2:
                tally = Tally.of(rows[:, 0], rows[:, 1] > 0)
                self._blocks.setdefault(name, deque(maxlen=BLOCKS)).append(tally)
        self._waiting, self._count = {}, 0

    @property
    def share(self) -> float | None:
        """The part of the labels that is wrong, in [0, 1); ``None`` where that cannot be told."""
        if not self._blocks:
            return None
        every = {name: Tally.sum(blocks) for name, blocks in self._blocks.items()}
        if all(tally.all_wrong > (1 - SKILL) * tally.all for tally in every.values()):
            return None
        return min(_floor(blocks) for blocks in self._blocks.values())

    def state_dict(self) -> dict[str, Any]:
        self._look()
        return {
            "blocks": {name: [list(tally) for tally in blocks] for name, blocks in self._blocks.items()},
            "waiting": {name: torch.cat(parts) for name, parts in self._waiting.items()},
            "count": self._count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        blocks = state["blocks"].items()
        self._blocks = {name: deque((Tally(*row) for row in rows), maxlen=BLOCKS) for name, rows in blocks}
        self._arrived, self._waiting = [], {name: [rows] for name, rows in state["waiting"].items()}
        self._count = state["count"]


def _floor(blocks: Sequence[Tally]) -> float:
    """The floor of all blocks together, or of the stretch that has the least, where that is less; at least 0.

    The least of m equal stretches falls short by about √(2·ln m) standard errors: it is given them back.
    """
    blocks = list(blocks)
    first = len(blocks) % STRETCH if len(blocks) > STRETCH else 0
    floors = [Tally.sum(blocks[at : at + STRETCH]).floor for at in range(first, len(blocks), STRETCH)]
    spread = max(1.0, math.sqrt(2 * math.log(len(floors))))
    least = min(floor + spread * error for floor, error in floors)
    return max(0.0, min(Tally.sum(blocks).floor[0], least))


def doubt(noise: float, quiet: float = QUIET, loud: float = LOUD) -> float:
    """How far a label is to be doubted where a part ``noise`` of them seems wrong: 0 up to ``quiet``, 1 ``loud`` on."""
    return min(1.0, max(0.0, (noise - quiet) / loud))
