"""Admission: whether a snapshot joins the pool, by what held-out records say of it and of those who are there.

Who gives up a place to it, where there is none left, is the pool's to say: the snapshot of least worth.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import Field

from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.teachers.worth import Assessment


@dataclass(frozen=True, slots=True)
class Applicant:
    """A snapshot with outputs for ``classes`` that may join, and what it is worth ``alone``.

    ``pool`` is of the teachers that are there, in the order of ``keys``; ``leaving`` is whose place it would take,
    ``None`` where there is room.
    """

    alone: Assessment
    classes: int
    pool: Assessment
    keys: tuple[str, ...]
    leaving: str | None


@runtime_checkable
class Admission(Protocol):
    """Who decides whether a snapshot joins; nobody is asked where no record is held out."""

    def admits(self, applicant: Applicant) -> bool: ...


class WorthOptions(Options):
    """Better than chance, and worth as much as whoever makes room."""

    margin: float = Field(default=0.0, ge=0, le=1, description="held-out accuracy on its own classes above chance")


class Worth:
    """A snapshot joins if it is better than chance, and worth no less to the others than whoever would leave."""

    def __init__(self, options: WorthOptions) -> None:
        self.margin = options.margin

    def admits(self, applicant: Applicant) -> bool:
        alone, pool = applicant.alone, applicant.pool
        if alone.heard.any() and float(alone.accuracy()) < 1 / max(applicant.classes, 1) + self.margin:
            return False
        if applicant.leaving is None:
            return True
        least = applicant.keys.index(applicant.leaving)
        others = [k for k in range(len(applicant.keys)) if k != least]
        return float(pool.gain(others, alone.likelihood[:, 0])) >= float(pool.marginal()[least])


@hookimpl
def streamkd_admissions() -> Iterable[Kind]:
    """The built-in admission."""
    yield Kind("worth", Worth, WorthOptions, "better than chance, and worth as much as whoever makes room")
