"""A trial as a search keeps it: what it was given, how far it came, how it ended. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

JOURNAL = "journal.log"
"""The file of a search directory that a search is told by."""
State = Literal["waiting", "running", "finished", "pruned", "failed"]
"""``waiting``: it was under way when the search was stopped, and begins again when that goes on."""
DONE = ("finished", "pruned", "failed")
"""States that are final: a resumed search does not run them again."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial.

    ``readings`` are those of the trial, in order, as plain values: ``records`` (seen per seed), ``objectives``
    (name: mean over seeds), ``per_seed`` (name: list), ``seconds``; numbers that are not finite are ``None``.
    ``reason`` of a failed one begins with its kind: error, crash, hang, memory or nan.
    """

    number: int
    values: Mapping[str, Any]
    state: State = "waiting"
    readings: tuple[Mapping[str, Any], ...] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def records(self) -> int:
        """Records that each seed has seen."""
        return int(self.readings[-1]["records"]) if self.readings else 0

    def objective(self, name: str) -> float | None:
        """The mean over seeds at its last reading; ``None`` where it has none."""
        return self.readings[-1]["objectives"].get(name) if self.readings else None

    def final(self, name: str) -> float | None:
        """The objective of a trial that finished; ``None`` for all others."""
        return self.objective(name) if self.state == "finished" else None
