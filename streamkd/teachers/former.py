"""The teacher ``former``: how it was answered before, for a world that comes again.

    every ``every`` records: of the teachers that learn record by record the one of the largest weight
        ─► a frozen copy, the part that is served of it ─► a source of the mixture like any other
    more than ``limit`` copies: of the two that agree most on remembered records the older one goes

Nobody has to see that the world has changed, nor when: a copy is there before it does, and what one that fits again is
worth is told by the next records. Copies teach nobody: what they know may be true no more. They are a part of a version
while they have weight, and of the state as the files that a version has.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from streamkd.hookspecs import Kind, Options, TeacherKind, hookimpl
from streamkd.plugins import Registry
from streamkd.records import Label
from streamkd.teachers.teacher import Part, Role, TeacherContext, module_bytes

NEVER = -20.0  # log-probability of a label that came after the copy was made


class FormerOptions(Options):
    """Frozen copies of the teacher that followed the present best."""

    every: int = Field(default=1_000, gt=0, description="labelled records between two copies")
    limit: int = Field(default=6, gt=0, description="most copies kept")


class FormerTeacher:
    """A frozen part of another teacher, with its columns followed by those of labels that are new since."""

    role: Role = "prequential"
    fresh = False

    def __init__(self, key: str, part: Part, state: Mapping[str, Any]) -> None:
        """``state``: the files that the part is made of, as ``FormerMaker`` writes them."""
        self.key, self._part, self._state = key, part, state
        self._width = len(part.known)

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        with torch.no_grad():
            said = self._part(x)
        return nn.functional.pad(said, (0, self._width - said.shape[1]), value=NEVER)

    def known(self) -> Bool[Tensor, "classes"]:
        return nn.functional.pad(self._part.known, (0, self._width - len(self._part.known)))

    def grow(self, labels: Sequence[Label]) -> None:
        self._width = len(labels)

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"]
    ) -> Float[Tensor, "batch classes"]:
        """It answers, and learns nothing."""
        return self.logits(x)

    def part(self) -> Part | None:
        """It is one; without columns for labels that it does not know, so nothing once there are such."""
        return self._part if len(self._part.known) == self._width else None

    def size_bytes(self) -> int:
        return module_bytes(cast(nn.Module, self._part))

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """``FormerMaker`` has made it of the state."""


class FormerMaker:
    """What ``name: former`` in the configuration stands for: the pool asks it for copies, and which of them goes."""

    role = "former"

    def __init__(self, options: FormerOptions, context: TeacherContext) -> None:
        self.key, self.limit, self._every, self._context = context.key, options.limit, options.every, context
        self._waited = self._taken = 0

    def due(self, records: int) -> bool:
        """Whether a copy is to be taken, now that so many more records have been learned."""
        self._waited += records
        if self._waited < self._every:
            return False
        self._waited = 0
        return True

    def take(self, part: Part) -> FormerTeacher:
        """A copy, named by its number: what is written and read, so that it is the same bits after a restart."""
        self._taken += 1
        with TemporaryDirectory() as folder:
            about = dict(part.write(Path(folder)))
            files = {file.name: _bytes(file) for file in sorted(Path(folder).iterdir())}
        state = {"teacher": part.teacher, "about": about, "files": files, "classes": len(part.known)}
        return self._read(f"{self.key}-{self._taken - 1}", state)

    def restored(self, states: Mapping[str, Mapping[str, Any]]) -> list[FormerTeacher]:
        """The newest copies of these states, by key; without those of teachers that are not installed any more."""
        known = self._registry.names("teachers")
        return [self._read(key, state) for key, state in states.items() if state["teacher"] in known][-self.limit :]

    @cached_property
    def _registry(self) -> Registry:
        return self._context.registry or Registry.load()

    def _read(self, key: str, state: Mapping[str, Any]) -> FormerTeacher:
        """The copy of a state."""
        kind, registry = self._registry.kind("teachers", state["teacher"]), self._registry
        assert isinstance(kind, TeacherKind)  # it gave a part
        with TemporaryDirectory() as folder:
            for name, content in state["files"].items():
                (Path(folder) / name).write_bytes(content.numpy().tobytes())
            part = kind.load(Path(folder), state["about"], self._context.schema, state["classes"], registry)
        return FormerTeacher(key, part.eval().requires_grad_(False).to(self._context.device), state)

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self._waited, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._waited, self._taken = state["waited"], state["taken"]


def superfluous(copies: Sequence[FormerTeacher], x: Tensor | None) -> FormerTeacher:
    """Of the two that give the same label most often on rows x [n, *shape] the older, which comes first."""
    if x is None or len(copies) < 2:
        return copies[0]
    said = torch.stack([copy.logits(x).argmax(1) for copy in copies])
    older, newer = torch.triu_indices(len(copies), len(copies), 1)
    alike = (said[older] == said[newer]).float().mean(1)
    return copies[int(older[alike.argmax()])]


def _bytes(file: Path) -> Tensor:
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """Copies of the past."""
    yield Kind("former", FormerMaker, FormerOptions, "frozen copies of who followed the stream best, for its return")
