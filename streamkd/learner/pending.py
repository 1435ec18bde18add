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
Ask = Callable[[Tensor], tuple[Testimony, np.ndarray | None]]
"""Raw inputs [rows, *shape] to what everybody says of them, and the served version's probabilities [rows, classes]."""
SAID, EACH = "said", "each"  # what ``Testimony`` has of a record besides opinions, which go by their teacher


@dataclass(frozen=True, slots=True)
class Kept:
    """Of one record: what was answered in the stream (``mixed`` [classes]) and by the served version (``published``
    [classes], NaN where there was none), and unless it is beyond ``KEPT_BYTES`` the evidence [..., classes]: what the
    sources ``names`` said, what pairs of rate and share made of it, and opinions by teacher. In float32.
    """

    names: tuple[str, ...]
    mixed: np.ndarray
    published: np.ndarray
    evidence: Mapping[str, np.ndarray]

    @property
    def bytes(self) -> int:
        """Of the evidence."""
        return sum(array.nbytes for array in self.evidence.values())


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
        """Answer who has come before the label at ``offset``; nobody, where there is nothing yet to ask."""
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
        evidence = {SAID: said.probabilities, EACH: said.each, **said.opinions}
        for row, offset in enumerate(offsets.tolist()):
            mine = {name: array[row].astype(np.float32) for name, array in evidence.items()}
            kept = Kept(said.names, said.mixed[row].astype(np.float32), published[row].astype(np.float32), mine)
            kept = kept if self._bytes + kept.bytes <= KEPT_BYTES else replace(kept, evidence={})
            self._answers[offset] = kept
            self._bytes += kept.bytes

    def take(self, offsets: Sequence[int], classes: int) -> tuple[Testimony, np.ndarray]:
        """What was said of the records of these labels, over so many classes; the served version's [rows, classes] too.

        NaN where nobody was asked.
        """
        answers = [self._answers.pop(offset, None) for offset in offsets]
        known = [answer for answer in answers if answer is not None]
        self._bytes -= sum(answer.bytes for answer in known)
        self._forget(offsets[-1])
        names = known[-1].names if known else (STUDENT,)
        last = known[-1].evidence if known else {}
        shapes = {SAID: (len(names),), EACH: (2, len(PAIRS))} | {name: last[name].shape[:-1] for name in last}
        mixed, published = (np.full((len(answers), classes), np.nan) for _ in range(2))
        evidence = {name: np.full((len(answers), *shape, classes), np.nan) for name, shape in shapes.items()}
        for row, answer in enumerate(answers):
            if answer is None:
                continue
            mixed[row], published[row] = _wide(answer.mixed, classes), _wide(answer.published, classes)
            for name in evidence.keys() & answer.evidence.keys():
                said = answer.evidence[name]
                evidence[name][row] = _wide(said[_places(answer.names, names)] if name == SAID else said, classes)
        said, each = evidence.pop(SAID), evidence.pop(EACH)
        return Testimony(names, said, mixed, each, evidence), published

    def _forget(self, offset: int) -> None:
        """Labels up to ``offset`` are over: whoever still waits for one of them was refused when it came."""
        if len(self._answers) > self.asked - offset - 1:
            self._answers = {at: kept for at, kept in self._answers.items() if at > offset}
            self._bytes = sum(kept.bytes for kept in self._answers.values())

    def state_dict(self) -> dict[str, Any]:
        """The answers, those of the same sources and classes together."""
        groups: dict[tuple[Any, ...], list[tuple[int, Kept]]] = {}
        for offset, answer in self._answers.items():
            shapes = tuple((name, array.shape) for name, array in answer.evidence.items())
            shape = (answer.names, len(answer.mixed), len(answer.published), shapes)
            groups.setdefault(shape, []).append((offset, answer))
        return {"asked": self.asked, "groups": [_together(group) for group in groups.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.asked = state["asked"]
        found = dict(pair for group in state["groups"] for pair in _apart(group))
        self._answers = dict(sorted(found.items()))
        self._bytes = sum(answer.bytes for answer in found.values())


def _wide(said: np.ndarray, classes: int) -> np.ndarray:
    """Over the classes of now: who did not know one gave it the least that a mixture gives."""
    more = [(0, 0)] * (said.ndim - 1) + [(0, classes - said.shape[-1])]
    return np.pad(said, more, constant_values=LEAST / classes)


def _places(theirs: tuple[str, ...], names: tuple[str, ...]) -> list[int]:
    """Where each of ``names`` stands among them; who was not there yet stands where the student does."""
    return [theirs.index(name if name in theirs else STUDENT) for name in names]


def _together(group: Sequence[tuple[int, Kept]]) -> dict[str, Any]:
    offsets, answers = zip(*group, strict=True)
    evidence = {name: torch.from_numpy(np.stack([a.evidence[name] for a in answers])) for name in answers[0].evidence}
    return {
        "names": list(answers[0].names),
        "offsets": torch.tensor(offsets),
        "mixed": torch.from_numpy(np.stack([answer.mixed for answer in answers])),
        "published": torch.from_numpy(np.stack([answer.published for answer in answers])),
        "evidence": evidence,
    }


def _apart(group: Mapping[str, Any]) -> list[tuple[int, Kept]]:
    mixed, published = (group[name].numpy().copy() for name in ("mixed", "published"))
    evidence = {name: tensor.numpy().copy() for name, tensor in group["evidence"].items()}
    return [
        (offset, Kept(tuple(group["names"]), mixed[row], published[row], {n: e[row] for n, e in evidence.items()}))
        for row, offset in enumerate(group["offsets"].tolist())
    ]
