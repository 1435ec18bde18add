"""Teachers: whoever answers a batch with logits that the student may learn from.

    ema        a moving average of the student, asked about every row; also the default served model
    snapshot   a frozen copy of the average, admitted when a task ends

A *live* teacher changes at every step and is asked each time. A *frozen* one never changes, so its answer on a
remembered sample is cached; whether it is asked about fresh rows too is its own choice (``fresh``). A *versioned* one
(``Versioned``) changes now and then and says so: its cached answers are asked for anew when its version has risen.
A *prequential* one (``Incremental``) speaks of the rows that have just arrived alone, in the order of the stream; one
of the *present* (``Incremental`` too) of all rows, while it knows better than the student what comes.

A ``Teacher`` answers, says what it knows, and follows the label space. What else it can do it shows by having the
methods of ``Following``, ``Observing``, ``Incremental``, ``Recalling``, ``Layered``, ``Servable``, ``Stateful`` or
``Sized``.
"""

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from streamkd.errors import PluginError
from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.students.networks import Student

M = TypeVar("M", bound=nn.Module)
Role = Literal["live", "remembered", "frozen", "versioned", "prequential", "present", "snapshots"]


@dataclass(frozen=True)
class TeacherContext:
    """What a teacher is built from. ``student`` is copied, never kept; ``labels`` is the label space at start.

    ``schema`` is that of the whole records: which columns a teacher reads is its own choice
    (``streamkd.students.columns``). ``registry`` knows the students (``None``: whoever needs them loads it).
    """

    key: str
    student: Student
    schema: RecordSchema
    labels: Sequence[Label]
    device: torch.device
    registry: Registry | None = None


@runtime_checkable
class Teacher(Protocol):
    """One teacher. Its columns follow the label space; ``grow`` tells it of new labels."""

    key: str
    role: Role
    fresh: bool
    """Frozen and prequential teachers only: asked about rows that have just arrived, before the step is taken."""

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Answers on raw inputs [batch, *shape], one column per label of the label space."""
        ...

    def known(self) -> Bool[Tensor, "classes"]:
        """The labels that it knows; the others are masked."""
        ...

    def grow(self, labels: Sequence[Label]) -> None: ...


@runtime_checkable
class Following(Protocol):
    """A live teacher that is made of the student."""

    def after_step(self, student: Student) -> None:
        """Follow the student's update."""
        ...


@runtime_checkable
class Layered(Protocol):
    """A teacher whose layers losses can read."""

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Outputs of named layers on raw inputs."""
        ...


@runtime_checkable
class Sized(Protocol):
    """A teacher that counts towards ``pool.bytes``."""

    def size_bytes(self) -> int: ...


@runtime_checkable
class Versioned(Protocol):
    """A teacher of role ``versioned``: ``logits`` and ``known`` change only when ``version`` rises.

    The version is part of its state. ``grow`` may widen the answers without a new version: the new labels are unknown.
    """

    version: int


@runtime_checkable
class Observing(Protocol):
    """A teacher that learns from labels itself."""

    def observe(self, x: Tensor, y: Tensor) -> None:
        """The fresh labelled rows of the step that has just been taken: raw inputs [n, *shape], columns y [n] int64.

        What it keeps of them it copies: the tensors are the step's own.
        """
        ...

    def end_task(self) -> None:
        """A task has ended: what it has put off it does now, before it is judged."""
        ...


@runtime_checkable
class Incremental(Teacher, Protocol):
    """A teacher that learns record by record, each one a test before it is learned (prequential, Gama et al. 2013)."""

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"]
    ) -> Float[Tensor, "batch classes"]:
        """Answer row i having learned those rows before it that are to be learned, then learn it; on to the next.

        Once a step, when it has been taken, of all its fresh rows in the order of the stream, raw inputs [n, *shape],
        columns y, -1 without label. Rows that are held out or have no label are answered and not learned. It takes
        the place of ``observe``; what it keeps of the rows it copies. Of more than forty rows several may go together.
        """
        ...


@runtime_checkable
class Hindsight(Incremental, Protocol):
    """One that weighs answers of its own, by what they were when a record came, where its label comes later."""

    def opinion(self, x: Tensor) -> np.ndarray:
        """[n, ..., classes] of rows [n, *shape] that have come: what it wants to be told again with their labels."""
        ...

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"], then: np.ndarray | None = None
    ) -> Float[Tensor, "batch classes"]:
        """``then`` [n, ..., classes] are opinions of these rows, NaN where there was none; else they come just now."""
        ...


@runtime_checkable
class Recalling(Protocol):
    """A teacher that may have learned from remembered rows, and can say what it would say of each if it had not."""

    def recall(self, x: Tensor, y: Tensor) -> Float[Tensor, "batch classes"]:
        """Logits on remembered rows: raw inputs [n, *shape], columns y [n] int64."""
        ...


@runtime_checkable
class Part(Protocol):
    """A ``torch.nn.Module`` that may answer in a version: raw inputs [batch, *shape] to logits [batch, classes].

    ``teacher``: the kind whose ``load`` gives back what ``write`` wrote, for its schema's rows; ``known``: it answers.
    """

    teacher: str
    known: Bool[Tensor, "classes"]

    def __call__(self, x: Tensor) -> Float[Tensor, "batch classes"]: ...

    def write(self, directory: Path) -> Mapping[str, Any]:
        """Write itself into an empty directory, without pickle; what ``load`` has to know besides, as plain JSON."""
        ...


@runtime_checkable
class Servable(Protocol):
    """A teacher that may be served; its kind is a ``TeacherKind``."""

    def part(self) -> Part | None:
        """What answers as it does to rows of the stream, by the student's columns alone; ``None``: nothing now."""
        ...


class EmaOptions(Options):
    """A moving average of the student's weights."""

    decay: float = Field(default=0.999, ge=0, lt=1)


class EmaTeacher:
    """θ' ← d·θ' + (1-d)·θ after each step, with d = min(decay, (1+t)/(10+t)) so that the start is forgotten.

    Mean teacher, Tarvainen & Valpola 2017, equation 1.
    """

    role: Role = "live"
    fresh = True

    def __init__(self, options: EmaOptions, context: TeacherContext) -> None:
        self.key = context.key
        self.decay = options.decay
        self.steps = 0
        self.student = copy_of(context.student)
        self._pairs: _Pairs | None = None

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        with torch.no_grad():
            return self.student(x)

    def known(self) -> Bool[Tensor, "classes"]:
        return self.student.known()

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        with torch.no_grad():
            return layer_outputs(self.student, x, layers)

    def grow(self, labels: Sequence[Label]) -> None:
        self.student.grow(len(labels))

    @torch.no_grad()
    def after_step(self, student: Student) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        if self._pairs is None or self._pairs.of is not student:
            self._pairs = _Pairs.between(self.student, student)
        torch._foreach_lerp_(self._pairs.ours, self._pairs.theirs, 1 - decay)
        if self._pairs.kept:
            torch._foreach_copy_(self._pairs.kept, self._pairs.new)

    def size_bytes(self) -> int:
        return module_bytes(self.student)

    def state_dict(self) -> dict[str, Any]:
        return {"student": self.student.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.student.restore(state["student"])
        self.steps = state["steps"]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Parameters and buffers of an average beside those of its student: walking modules costs more than the update."""

    of: Student
    ours: list[Tensor]
    theirs: list[Tensor]
    kept: list[Tensor]
    new: list[Tensor]

    @classmethod
    def between(cls, average: Student, student: Student) -> "_Pairs":
        fixed = (
            () if student.normalise.fit else tuple(f"normalise.{name}" for name, _ in student.normalise.named_buffers())
        )
        names = [name for name, _ in student.named_buffers() if name not in fixed]
        kept, new = ([module.get_buffer(name) for name in names] for module in (average, student))
        return cls(student, [*average.parameters()], [*student.parameters()], kept, new)


def copy_of(student: M) -> M:
    """A copy in evaluation mode that shares no tensor with the original and never asks for a gradient."""
    clone = copy.deepcopy(student)
    return clone.eval().requires_grad_(False)


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def layer_outputs(module: nn.Module, x: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """Outputs of named submodules during one forward pass."""
    found: dict[str, Tensor] = {}
    with capture(module, layers, found):
        module(x)
    return found


def layer(module: nn.Module, name: str) -> nn.Module:
    """The submodule of that dotted name.

    Raises:
        PluginError: there is none; the known ones are named, the nearest first.
    """
    known = dict(module.named_modules())
    known.pop("")
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, cutoff=0.4)
        raise PluginError(
            f"there is no layer {name!r} in {type(module).__name__}",
            where=f"layer {name}",
            fix=(f"did you mean {near[0]!r}? " if near else "") + f"known layers: {', '.join(known)}",
        )
    return known[name]


class capture:  # noqa: N801 - reads as a verb: `with capture(...)`
    """While entered, the outputs of named submodules land in ``into``.

    Raises:
        PluginError: a name that the module does not have, before anything runs.
    """

    def __init__(self, module: nn.Module, layers: Iterable[str], into: dict[str, Tensor]) -> None:
        self._modules = [(name, layer(module, name)) for name in layers]
        self._into = into
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        self._handles = [m.register_forward_hook(self._keep(name)) for name, m in self._modules]

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._into[name] = output

        return hook

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """Teachers that are made of the student."""
    yield Kind("ema", EmaTeacher, EmaOptions, "moving average of the student")
