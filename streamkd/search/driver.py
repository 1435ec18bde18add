"""The driver of a search: creates or resumes its ledger, lets an engine run the trials, writes the results.

    Search.next ─► engine: a worker runs the trial, `course.steps` writes each reading ─► Search.told: goes on?
                     │                                                                        │
                     └─ crash, hang, memory: Search.ended ◄───────────────────────────────────┘ no: pruned

An engine is a strategy for running trials and nothing else: which trial is next, whether one goes on, what is
written and shown are the search's. Engines are handed in by name, so that this knows none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.search.ledger import Ledger, TrialRecord
from streamkd.search.settings import Settings
from streamkd.search.space import Space

if TYPE_CHECKING:
    from streamkd.search.recording import Recording

UNFINISHED = ("waiting", "running", "lost")


class Engine(Protocol):
    """Runs the trials of a search."""

    def run(self, search: "Search") -> None:
        """Run what ``search.next()`` gives until it gives ``None`` and nothing is running, or ``search.stopping``.

        On an exception (Ctrl-C too) it ends its workers before it lets go; the search marks what was running as
        lost. Each trial that it took ends in ``search.ended``, whatever becomes of its worker.
        """


Engines = Mapping[str, Callable[[Settings], Engine]]


@dataclass(frozen=True)
class Standing:
    """Where a search stands, for whoever watches it."""

    trials: tuple[TrialRecord, ...]
    settings: Settings
    total: int
    seconds: float


Watch = Callable[[Standing], None]
"""Told whenever a trial moved."""


@dataclass(frozen=True)
class Summary:
    """What became of a search."""

    out: str
    trials: tuple[TrialRecord, ...]
    best: int | None
    records: int
    """Records that all trials saw, over all seeds."""
    whole: int
    """Records that so many full trials would have seen."""
    seconds: float


class Search:
    """A search under way, as an engine sees it. Any thread of the driver's process may call it."""

    config: Config
    space: Space
    settings: Settings
    ledger: Ledger
    recordings: "Mapping[int, Recording]"
    make: Callable[..., Any]
    """Makes a trial: ``make(config, registry, recordings, objectives)``, as ``search.trial.Trial``; can be pickled."""
    total: int
    """Records of a whole trial, per seed."""

    def next(self) -> TrialRecord | None:
        """The next trial, in the ledger as running; ``None`` where no more is to be begun."""
        raise NotImplementedError

    def told(self, record: TrialRecord) -> bool:
        """A worker gave a reading (it is in the ledger): whether the trial goes on. Sampler, table and metrics hear."""
        raise NotImplementedError

    def ended(self, record: TrialRecord) -> None:
        """The trial is over with this state: written, if it is not yet, and told to sampler, table and metrics."""
        raise NotImplementedError

    @property
    def stopping(self) -> bool:
        """Whether the time is over: running trials are to be left at once, as ``lost``."""
        raise NotImplementedError


def tune(
    config: Config,
    registry: Registry,
    space: Space,
    settings: Settings,
    out: Path | str,
    engines: Engines,
    *,
    resume: bool = False,
    command: str = "",
    watches: Sequence[Watch] = (),
) -> Summary:
    """Run a search, or go on with it, and write its results.

    Raises:
        ConfigError: no such engine. StreamkdError: nothing could run; the reasons are named.
    """
    raise NotImplementedError
