"""The course of one trial, the same wherever it runs: from milestone to milestone, each reading written down first.

    Job ─► configuration with its values ─► trial ─► advance ─► ledger ─► yielded ─► advance ─► ... ─► finished

Called by ``search.worker`` (a child process) and by ``scale.tune`` (an actor of Ray). Whoever takes no further
record has ended the trial.
"""

import errno
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from streamkd.config import Config
from streamkd.errors import StreamkdError, TrialFailed
from streamkd.evaluate.seeds import plain
from streamkd.plugins import Registry
from streamkd.search.ledger import Ledger, TrialRecord
from streamkd.search.space import Space

if TYPE_CHECKING:
    from streamkd.search.recording import Recording


@dataclass(frozen=True)
class Reading:
    """What a trial says where it was stopped. Plain numbers: ``dataclasses.asdict`` of it is JSON.

    ``records``: seen by each seed. ``objectives``: means over the seeds, ``per_seed`` in the order of ``seeds``.
    ``accuracy``: of the served model on the validation tasks that have begun, now. ``curve``: (records, accuracy) at
    the marks of the stream so far and here, means over the seeds. ``seconds``: in all; ``validation_seconds`` of them.
    """

    records: int
    objectives: dict[str, float]
    per_seed: dict[str, list[float]]
    seeds: list[int]
    accuracy: float
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    validation_seconds: float = 0.0


class Running(Protocol):
    """A trial that can be advanced: ``search.trial.Trial``."""

    @property
    def records(self) -> int:
        """Records that each seed has seen."""

    @property
    def seen(self) -> int:
        """Records of all seeds together; it rises as long as the trial learns."""

    @property
    def finished(self) -> bool:
        """Whether it is at its end."""

    def advance(self, records: int) -> Reading:
        """Train until every seed has seen so many records."""


Make = Callable[[Config, Registry, "Mapping[int, Recording]", Sequence[str]], Running]
"""Makes a trial; a class or function of a module, so that other processes find it."""


@dataclass(frozen=True)
class Job:
    """What all trials of a search have in common, as a worker needs it; can be pickled."""

    config: Config
    space: Space
    ledger: Ledger
    objectives: tuple[str, ...]
    milestones: tuple[int, ...]
    threads: int
    make: Make


def steps(
    job: Job,
    recordings: "Mapping[int, Recording]",
    record: TrialRecord,
    begun: Callable[[Running], None] = lambda trial: None,
) -> Iterator[TrialRecord]:
    """The trial's record after each milestone, in the ledger before it is yielded; the last one is ``finished``.

    ``begun`` is told the trial when it is made. What is raised on the way says why it failed: ``reason_of``.
    """
    import torch

    torch.set_num_threads(job.threads)
    start = time.perf_counter()
    registry = Registry.load()
    trial = job.make(job.space.apply(job.config, record.latest, registry), registry, recordings, job.objectives)
    begun(trial)
    for milestone in job.milestones:
        if milestone <= trial.records:  # it was restored
            continue
        reading = trial.advance(milestone)
        record = replace(
            record,
            state="finished" if trial.finished else "running",
            readings=(*record.readings, plain(asdict(reading))),
            seconds=record.seconds + time.perf_counter() - start,
        )
        job.ledger.write(record)
        yield record
        start = time.perf_counter()
        if trial.finished:
            return


def sound(reason: str) -> bool:
    """Whether a process in which a trial failed like this is fit for another trial."""
    return reason.startswith("nan")


def reason_of(fault: BaseException) -> str:
    """Why a trial failed, its kind first: ``nan: ...``, ``memory: ...`` or ``error: ...``."""
    if isinstance(fault, TrialFailed):
        return fault.reason if fault.message == fault.reason else f"{fault.reason}: {fault.message}"
    said = " ".join(str(fault).split())[:300]
    if isinstance(fault, MemoryError) or _is_torchs_memory(fault) or getattr(fault, "errno", 0) == errno.ENOMEM:
        return f"memory: {said or type(fault).__name__}"
    return f"error: {said}" if isinstance(fault, StreamkdError) else f"error: {type(fault).__name__}: {said}"


def _is_torchs_memory(fault: BaseException) -> bool:
    """torch has a class of its own on a GPU, and none on a CPU."""
    return type(fault).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(fault)
