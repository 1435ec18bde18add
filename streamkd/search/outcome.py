"""What a search came to, read from its ledger: the one account that results, page and summary give.

Ledger ─► header, trials ─► verdict, front, importance ─► Outcome ─► results | page | summary
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from streamkd.errors import StateError
from streamkd.search import best
from streamkd.search.best import Verdict
from streamkd.search.importance import Importance, importance
from streamkd.search.ledger import Ledger, Skipped, State, TrialRecord
from streamkd.search.space import Space

HEADER = {"config": dict, "space": list, "settings": dict, "objectives": dict, "seeds": list, "total": int}
"""What a header has to have."""


@dataclass(frozen=True)
class Outcome:
    """A search as it stands, finished or not."""

    header: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def objectives(self) -> dict[str, str]:
        """Name: "max" or "min"; the first one leads."""
        return dict(self.header["objectives"])

    @property
    def leading(self) -> str:
        return next(iter(self.objectives))

    @property
    def direction(self) -> str:
        return self.objectives[self.leading]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.header["seeds"])

    @property
    def total(self) -> int:
        """Records of a whole trial, per seed."""
        return int(self.header["total"])

    @property
    def records(self) -> int:
        """Records that all trials have seen, over all seeds."""
        return sum(one.records for one in self.trials) * len(self.seeds)

    @property
    def whole(self) -> int:
        """Records that as many whole trials would have seen."""
        return len(self.trials) * self.total * len(self.seeds)

    @property
    def states(self) -> dict[str, int]:
        """How many trials are in each state; states of none are left out."""
        counts = Counter(one.state for one in self.trials)
        return {state: counts[state] for state in get_args(State) if counts[state]}

    @cached_property
    def space(self) -> Space:
        return Space.from_json(self.header["space"])

    @cached_property
    def verdict(self) -> Verdict | None:
        return best.choose(self.trials, self.leading, self.direction)

    @cached_property
    def front(self) -> tuple[TrialRecord, ...]:
        """The Pareto front of two objectives; empty for one."""
        return best.front(self.trials, self.objectives) if len(self.objectives) > 1 else ()

    @cached_property
    def importance(self) -> Importance:
        return importance(self.trials, self.leading, self.direction)

    @property
    def failures(self) -> list[TrialRecord]:
        return [one for one in self.trials if one.state == "failed"]


def read(ledger: Ledger) -> Outcome:
    """The outcome as the ledger has it now.

    Raises:
        StateError: the header is not that of a search.
    """
    wrong = [name for name, kind in HEADER.items() if not isinstance(ledger.header.get(name), kind)]
    if wrong or not ledger.header["objectives"]:
        raise StateError(
            f"is not the header of a search: {', '.join(wrong) or 'objectives'} missing or of another kind",
            where=f"{ledger.store}/search.json", fix="put a copy back, or begin another search with --out",
        )  # fmt: skip
    trials, skipped = ledger.read()
    return Outcome(ledger.header, tuple(trials), tuple(skipped))
