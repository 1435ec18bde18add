"""What is served: a student, or named parts and how they are combined; as a model, and as the files of a version.

    parts, held-out records ─► Selector.choose ─► Student or Served ─► write ─► version's directory ─► load

The first part is a student and lies in a version directory as it always does, for whoever reads it alone; each further
part has a folder of its own. ``model.json`` says by whose rule they are combined, and how: whoever loads a version asks
that selector to combine what its parts say.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor, nn

from streamkd.errors import StateError
from streamkd.hookspecs import TeacherKind
from streamkd.plugins import Registry
from streamkd.students import networks
from streamkd.students.networks import LoadedVersion, Student
from streamkd.teachers.teacher import Part

Combine: TypeAlias = Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor]


class Served(nn.Module):
    """Raw inputs [batch, *shape] to logits [batch, classes]: what ``combine`` makes of the parts' by ``how``.

    ``how`` is plain JSON. The first of ``parts`` is a student; any other is a student too, or what a teacher gave. By
    ``class_weights`` in ``how``, whoever chose, each class's probability counts so many times.
    """

    def __init__(self, parts: Mapping[str, Student | Part], combine: Combine, how: Mapping[str, Any]) -> None:
        super().__init__()
        self.names, self.combine, self.how = tuple(parts), combine, dict(how)
        self.parts = nn.ModuleList(cast(nn.Module, part) for part in parts.values())

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        said = [part(x) for part in self.parts]
        logits = said[0] if len(said) == 1 else self.combine(torch.stack(said, 1), self.known, self.how)
        weights = self.how.get("class_weights")
        return logits if weights is None else logits + torch.tensor(weights).to(logits).log()

    @property
    def student(self) -> Student:
        """The first part."""
        return cast(Student, self.parts[0])

    @property
    def classes(self) -> int:
        """Width of its answers."""
        return self.student.classes

    @property
    def known(self) -> Bool[Tensor, "parts classes"]:
        """Which classes each part knows; a student knows all."""
        whole = torch.ones(self.classes, dtype=torch.bool, device=self.student.head.weight.device)
        return torch.stack([whole if isinstance(part, Student) else cast(Tensor, part.known) for part in self.parts])


Model = Student | Served
"""What may be served."""


def weighted(model: Model, weights: Sequence[float]) -> Served:
    """The same, each class's probability counting so many times [classes]."""
    how = {"class_weights": [*weights]}
    if isinstance(model, Student):
        return Served({"student": model}, _alone, how)
    parts = cast(Mapping[str, Student | Part], dict(zip(model.names, model.parts, strict=True)))
    return Served(parts, model.combine, {**model.how, **how})


def _alone(logits: Tensor, _known: Tensor, _how: Mapping[str, Any]) -> Tensor:
    return logits[:, 0]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be served, and what tells its worth.

    ``teachers`` are the parts of those that can answer requests now, by key, in the pool's order; ``held`` the
    held-out records x [n, *shape] and their columns y [n], ``None`` where nothing is held out; ``noise`` the part of
    their labels that seems to be wrong. ``weights`` are shares of an answer by what has come true, of ``student``,
    ``average`` and the teachers; ``exponents`` of their probabilities make each as sure as it may be.
    """

    student: Student
    average: Student | None
    teachers: Mapping[str, Part]
    held: tuple[Tensor, Tensor] | None
    noise: float
    weights: Mapping[str, float] = field(default_factory=dict)
    exponents: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Selector(Protocol):
    """Who decides what is served. It changes none of the candidates, and says the same of the same ones."""

    def choose(self, candidates: Candidates) -> Model:
        """One of the students, or a ``Served`` of some candidates with ``self.combine``."""
        ...

    def combine(
        self,
        logits: Float[Tensor, "batch parts classes"],
        known: Bool[Tensor, "parts classes"],
        how: Mapping[str, Any],
    ) -> Float[Tensor, "batch classes"]:
        """Logits of what it chose: of the parts' in their order, and of what ``choose`` said beside them."""
        ...


def write(directory: Path, model: Model, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Write a version into an empty directory.

    ``meta`` as for ``networks.write_published``, and of a ``Served`` also ``served`` {name, options}: its selector.
    """
    if isinstance(model, Student):
        return networks.write_published(directory, model, meta)
    parts: list[dict[str, Any]] = [{"name": model.names[0]}]
    for name, part in list(zip(model.names, model.parts, strict=True))[1:]:
        folder = f"parts/{len(parts)}"
        (directory / folder).mkdir(parents=True)
        parts.append({"name": name, "folder": folder, **_write_part(directory / folder, cast(Student | Part, part))})
    about = {**meta["served"], "how": model.how, "parts": parts}
    return networks.write_published(directory, model.student, {**meta, "served": about})


def _write_part(folder: Path, part: Student | Part) -> dict[str, Any]:
    if isinstance(part, Student):
        networks.write_weights(folder, part)
        return {}
    return {"teacher": part.teacher, "about": dict(part.write(folder))}


def load(directory: Path, registry: Registry, version: int = 0) -> LoadedVersion:
    """The version in a directory, of one part or of several.

    Raises:
        StateError: files are missing or do not fit each other. PluginError: whoever could load a part is not installed.
    """
    published = networks.load_published(directory, registry, version)
    meta = json.loads((directory / "model.json").read_text("utf-8"))
    about = _as_of_today(meta)
    if "parts" not in about:
        return published
    try:
        kind = registry.kind("selectors", about["name"])
        selector: Selector = kind.make(kind.options.model_validate(about["options"]))
        first, *further = about["parts"]
        parts = {first["name"]: cast(Student, published.student)}
        parts |= {part["name"]: _load_part(directory, part, published, registry) for part in further}
        model = Served(parts, selector.combine, about["how"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as fault:
        raise StateError(f"the parts of a version cannot be loaded: {fault}", where=str(directory)) from fault
    return dataclasses.replace(published, student=model.eval().requires_grad_(False))


def _load_part(directory: Path, part: Mapping[str, Any], published: LoadedVersion, registry: Registry) -> Any:
    folder = directory / part["folder"]
    if "teacher" not in part:
        return networks.read_model(folder / networks.WEIGHTS, directory / "model.json", registry)[0]
    kind = registry.kind("teachers", part["teacher"])
    if not isinstance(kind, TeacherKind):
        raise ValueError(f"the teacher {kind.name} loads no part")
    return kind.load(folder, part["about"], published.schema, len(published.classes), registry)


def _as_of_today(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a version is combined; an older one of two parts says it in another form."""
    if "ensemble" not in meta:
        return meta.get("served", {})
    share, features = meta["ensemble"]["share"], meta["ensemble"]["features"]
    analytic = {"teacher": "analytic", "folder": ".", "about": {"features": features, "file": "ensemble.safetensors"}}
    parts = [{"name": "average"}, {"name": "analytic", **analytic}]
    return {"name": "ensemble", "options": {}, "how": {"share": share}, "parts": parts}
