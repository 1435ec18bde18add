"""Labels that come later: each record is answered when it comes, and learned when its label is there.

    source (``Late``) ─► records that came before the next label ─► answered now, kept by the offset of their labels
    labels            ─► batch ─► what was said of its rows then ─► the mixture's test, and accuracies

So nobody is judged by what he would say of a record today. A learner whose labels come at once has nobody waiting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd.learning.mixture import STUDENT, Testimony
from streamkd.records import Late, RecordSchema
from streamkd.streams.encoding import codec

KEPT_BYTES = 64 << 20
"""Of what each source said of records that wait. What came beyond is answered and counted, but weighs nobody."""
NOBODY = -1  # the column of an answer that nobody gave
Ask = Callable[[Tensor], tuple[Testimony, Tensor | None]]
"""Raw inputs [rows, *shape] to what everybody says of them, and the logits of the version that is served."""


@dataclass(frozen=True, slots=True)
class Answer:
    """To one record: who said what (probabilities [sources, classes] float32, none beyond ``KEPT_BYTES``), what was
    answered in the stream (``mixed`` [classes]), and the column that the served version gave.
    """

    names: tuple[str, ...]
    said: np.ndarray | None
    mixed: np.ndarray
    published: int

    @property
    def bytes(self) -> int:
        """Of ``said``."""
        return 0 if self.said is None else self.said.nbytes


class Waiting:
    """Answers by the offset of their label; ``asked`` counts the records that have come."""

    def __init__(self, source: Late, schema: RecordSchema, device: torch.device) -> None:
        self._source, self._schema, self._device = source, schema, device
        self.asked = 0
        self._answers: dict[int, Answer] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def answer(self, partition: str, offset: int, ask: Ask | None) -> None:
        """Answer who has come before the label at ``offset``; nobody, where there is nothing yet to ask."""
        rows, offsets = self._source.asked(partition, self.asked, offset)
        self.asked += len(offsets)
        if ask is None or not len(offsets):
            return
        records, _ = codec.encode(rows, self._schema, 0)
        if len(records):
            self._keep(offsets[records.offsets], *ask(torch.from_numpy(records.inputs.copy()).to(self._device)))

    def _keep(self, offsets: np.ndarray, said: Testimony, published: Tensor | None) -> None:
        columns = np.full(len(offsets), NOBODY) if published is None else published.argmax(1).cpu().numpy()
        probabilities = said.probabilities.astype(np.float32)
        for row, offset in enumerate(offsets.tolist()):
            fits = self._bytes + probabilities[row].nbytes <= KEPT_BYTES
            kept = probabilities[row].copy() if fits else None
            answer = Answer(said.names, kept, said.mixed[row].astype(np.float32), int(columns[row]))
            self._answers[offset] = answer
            self._bytes += answer.bytes

    def take(self, offsets: Sequence[int], classes: int) -> tuple[Testimony, np.ndarray]:
        """What was said of the records of these labels, over so many classes, and the columns that the served version
        gave; a record that was not asked about is a row of NaN, and nobody's column.
        """
        answers = [self._answers.pop(offset, None) for offset in offsets]
        known = [answer for answer in answers if answer is not None]
        self._bytes -= sum(answer.bytes for answer in known)
        names = known[-1].names if known else (STUDENT,)
        said, mixed = np.full((len(answers), len(names), classes), np.nan), np.full((len(answers), classes), np.nan)
        for row, answer in enumerate(answers):
            if answer is not None:
                mixed[row] = _wide(answer.mixed, classes)
                if answer.said is not None:
                    said[row] = _wide(answer.said[_places(answer.names, names)], classes)
        columns = np.array([NOBODY if answer is None else answer.published for answer in answers])
        return Testimony(names, said, mixed), columns

    def state_dict(self) -> dict[str, Any]:
        """The answers, those of the same sources and classes together."""
        groups: dict[tuple[Any, ...], list[tuple[int, Answer]]] = {}
        for offset, answer in self._answers.items():
            shape = (answer.names, len(answer.mixed), answer.said is None)
            groups.setdefault(shape, []).append((offset, answer))
        return {"asked": self.asked, "groups": [_together(group) for group in groups.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.asked = state["asked"]
        found = dict(pair for group in state["groups"] for pair in _apart(group))
        self._answers = dict(sorted(found.items()))
        self._bytes = sum(answer.bytes for answer in found.values())


def _wide(said: np.ndarray, classes: int) -> np.ndarray:
    """Over the classes of now: who did not know one gave it nothing."""
    return np.pad(said, [(0, 0)] * (said.ndim - 1) + [(0, classes - said.shape[-1])])


def _places(theirs: tuple[str, ...], names: tuple[str, ...]) -> list[int]:
    """Where each of ``names`` stands among them; who was not there yet stands where the student does."""
    return [theirs.index(name if name in theirs else STUDENT) for name in names]


def _together(group: Sequence[tuple[int, Answer]]) -> dict[str, Any]:
    offsets, answers = zip(*group, strict=True)
    said = None if answers[0].said is None else torch.from_numpy(np.stack([answer.said for answer in answers]))
    return {
        "names": list(answers[0].names),
        "offsets": torch.tensor(offsets),
        "said": said,
        "mixed": torch.from_numpy(np.stack([answer.mixed for answer in answers])),
        "published": torch.tensor([answer.published for answer in answers]),
    }


def _apart(group: Mapping[str, Any]) -> list[tuple[int, Answer]]:
    names, said = tuple(group["names"]), group["said"]
    lines = zip(group["offsets"].tolist(), group["mixed"].numpy(), group["published"].tolist(), strict=True)
    return [
        (offset, Answer(names, None if said is None else said[row].numpy().copy(), mixed.copy(), published))
        for row, (offset, mixed, published) in enumerate(lines)
    ]
