"""The course of one trial, the same wherever it runs: from milestone to milestone, each reading written down first.

    Job ─► configuration with its values ─► Trial ─► advance ─► ledger ─► yielded ─► advance ─► ...

Called by ``search.worker`` (a child process) and by ``scale.tune`` (an actor of Ray). Whoever takes no further
record from it has ended the trial.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamkd.config import Config
from streamkd.search.ledger import Ledger, TrialRecord
from streamkd.search.space import Space

if TYPE_CHECKING:
    from streamkd.search.recording import Recording


@dataclass(frozen=True)
class Job:
    """What is the same for all trials of a search, as a worker needs it; can be pickled."""

    config: Config
    space: Space
    ledger: Ledger
    objectives: tuple[str, ...]
    milestones: tuple[int, ...]
    threads: int
    make: Callable[..., Any]


def steps(job: Job, recordings: "Mapping[int, Recording]", record: TrialRecord) -> Iterator[TrialRecord]:
    """The trial's record after each milestone, in the ledger before it is yielded; the last one is ``finished``.

    Raises:
        TrialFailed: a loss that is not finite. Anything else: see ``reason_of``.
    """
    raise NotImplementedError


def reason_of(fault: BaseException) -> str:
    """Why a trial failed: ``nan: ...``, ``memory: ...`` or ``error: ...``."""
    raise NotImplementedError
