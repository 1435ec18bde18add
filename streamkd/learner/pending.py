"""Labels that come later: each record is answered when it comes, and learned when its label is there.

    source (``Late``) ─► records that came before the next label ─► answered now, kept by the offset of their labels
    labels            ─► batch ─► what was said of its rows then ─► the mixture's test, and accuracies

So nobody is judged by what he would say of a record today. A learner whose labels come at once has nobody waiting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd.gates.fixed_share import PAIRS
from streamkd.gates.spread import LEAST
from streamkd.learning.mixture import STUDENT, Testimony
from streamkd.records import Late, RecordSchema
from streamkd.streams.encoding import codec

KEPT_BYTES = 64 << 20
"""Of what each source said of records that wait. What came beyond is answered and counted, but weighs nobody."""
ARRAYS = ("mixed", "published", "said", "each")  # of an answer
Ask = Callable[[Tensor], tuple[Testimony, np.ndarray | None]]
"""Raw inputs [rows, *shape] to what everybody says of them, and the served version's probabilities [rows, classes]."""


@dataclass(frozen=True, slots=True)
class Kept:
    """To one record: what was answered in the stream (``mixed`` [classes]) and by the served version (``published``
    [classes], NaN where there was none), and of ``names``, unless it is beyond ``KEPT_BYTES``, what was ``said``
    [sources, classes] and ``each`` [2, pairs, classes] (``streamkd.learning.mixture.Testimony``). In float32.
    """

    names: tuple[str, ...]
    mixed: np.ndarray
    published: np.ndarray
    said: np.ndarray | None = None
    each: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        """Of what may be left out."""
        return sum(array.nbytes for array in (self.said, self.each) if array is not None)


class Pending:
    """Answers by the offset of their label; ``asked`` counts the records that have come."""

    def __init__(self, source: Late, schema: RecordSchema, device: torch.device) -> None:
        self._source, self._schema, self._device = source, schema, device
        self.asked = 0
        self._answers: dict[int, Kept] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def answer(self, partition: str, offset: int, ask: Ask | None) -> None:
        """Kept who has come before the label at ``offset``; nobody, where there is nothing yet to ask."""
        rows, offsets = self._source.asked(partition, self.asked, offset)
        self.asked += len(offsets)
        if ask is None or not len(offsets):
            return
        records, _ = codec.encode(rows, self._schema, 0)
        if len(records):
            self._keep(offsets[records.offsets], *ask(torch.from_numpy(records.inputs.copy()).to(self._device)))

    def _keep(self, offsets: np.ndarray, said: Testimony, published: np.ndarray | None) -> None:
        assert said.each is not None  # whoever was asked has it
        published = np.full_like(said.mixed, np.nan) if published is None else published
        for row, offset in enumerate(offsets.tolist()):
            arrays = [array[row].astype(np.float32) for array in (said.mixed, published, said.probabilities, said.each)]
            answer = Kept(said.names, *arrays)
            fits = self._bytes + answer.bytes <= KEPT_BYTES
            answer = answer if fits else replace(answer, said=None, each=None)
            self._answers[offset] = answer
            self._bytes += answer.bytes

    def take(self, offsets: Sequence[int], classes: int) -> tuple[Testimony, np.ndarray]:
        """What was said of the records of these labels, over so many classes; the served version's [rows, classes] too.

        NaN where nobody was asked.
        """
        answers = [self._answers.pop(offset, None) for offset in offsets]
        known = [answer for answer in answers if answer is not None]
        self._bytes -= sum(answer.bytes for answer in known)
        names = known[-1].names if known else (STUDENT,)
        shapes = ((), (), (len(names),), (2, len(PAIRS)))
        mixed, published, said, each = (np.full((len(answers), *shape, classes), np.nan) for shape in shapes)
        for row, answer in enumerate(answers):
            if answer is not None:
                mixed[row], published[row] = _wide(answer.mixed, classes), _wide(answer.published, classes)
            if answer is not None and answer.said is not None and answer.each is not None:
                said[row] = _wide(answer.said[_places(answer.names, names)], classes)
                each[row] = _wide(answer.each, classes, LEAST / classes)
        return Testimony(names, said, mixed, each), published

    def state_dict(self) -> dict[str, Any]:
        """The answers, those of the same sources and classes together."""
        groups: dict[tuple[Any, ...], list[tuple[int, Kept]]] = {}
        for offset, answer in self._answers.items():
            shape = (answer.names, len(answer.mixed), len(answer.published), answer.said is None)
            groups.setdefault(shape, []).append((offset, answer))
        return {"asked": self.asked, "groups": [_together(group) for group in groups.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.asked = state["asked"]
        found = dict(pair for group in state["groups"] for pair in _apart(group))
        self._answers = dict(sorted(found.items()))
        self._bytes = sum(answer.bytes for answer in found.values())


def _wide(said: np.ndarray, classes: int, least: float = 0.0) -> np.ndarray:
    """Over the classes of now: who did not know one gave it nothing, or the least that a mixture gives."""
    return np.pad(said, [(0, 0)] * (said.ndim - 1) + [(0, classes - said.shape[-1])], constant_values=least)


def _places(theirs: tuple[str, ...], names: tuple[str, ...]) -> list[int]:
    """Where each of ``names`` stands among them; who was not there yet stands where the student does."""
    return [theirs.index(name if name in theirs else STUDENT) for name in names]


def _together(group: Sequence[tuple[int, Kept]]) -> dict[str, Any]:
    offsets, answers = zip(*group, strict=True)
    kept = [name for name in ARRAYS if getattr(answers[0], name) is not None]
    arrays = {name: torch.from_numpy(np.stack([getattr(answer, name) for answer in answers])) for name in kept}
    return {"names": list(answers[0].names), "offsets": torch.tensor(offsets), "arrays": arrays}


def _apart(group: Mapping[str, Any]) -> list[tuple[int, Kept]]:
    names, arrays = tuple(group["names"]), {name: tensor.numpy().copy() for name, tensor in group["arrays"].items()}
    rows = enumerate(group["offsets"].tolist())
    return [(offset, Kept(names, **{name: array[row] for name, array in arrays.items()})) for row, offset in rows]
