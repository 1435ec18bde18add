"""One mistake: who makes it, and what is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamkd.hookspecs import Group, Kind, Options, SourceKind, TeacherKind

ALOOF = "it draws nothing from torch's and numpy's own random generators"


@dataclass(frozen=True)
class Mistake:
    """A kind that is right but for ``name``; ``clause`` are words of the one clause that finds it."""

    group: Group
    name: str
    clause: str
    make: Callable[..., Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the check."""

    load: Callable[..., Any] | None = None
    """Of a teacher that may be served."""

    @property
    def kind(self) -> Kind:
        if self.load is not None:
            return TeacherKind("broken", self.make, Options, load=self.load)
        return (SourceKind if self.group == "sources" else Kind)("broken", self.make, Options)
