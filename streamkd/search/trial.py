"""A trial: one configuration on the recordings of all its seeds, which advance together.

    Trial(config, registry, recordings) ─► advance(records) ─► Reading ─► advance ... ─► finished
                                              ▲    save(folder) ─► restore(folder), perhaps under other values

How often it is stopped on the way changes nothing of what it ends with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamkd.config import Config
from streamkd.errors import TrialFailed
from streamkd.plugins import Registry
from streamkd.search.recording import Recording

__all__ = ["Reading", "Trial", "TrialFailed"]


@dataclass(frozen=True)
class Reading:
    """What a trial says where it was stopped. Plain numbers: ``dataclasses.asdict`` of it is JSON.

    ``records``: seen by each seed. ``objectives``: means over the seeds, ``per_seed`` in the order of ``seeds``.
    ``accuracy``: of the served model on the validation tasks that have begun, now. ``curve``: (records, accuracy) at
    the marks of the stream so far, means over the seeds. ``seconds``: in all, of training and of ``validation_seconds``.
    """

    records: int
    objectives: dict[str, float]
    per_seed: dict[str, list[float]]
    seeds: list[int]
    accuracy: float
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    validation_seconds: float = 0.0


class Trial:
    """One configuration on the recordings of its seeds; ``objectives`` are names of ``OBJECTIVES``."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        recordings: Mapping[int, Recording],
        objectives: Sequence[str] = ("accuracy",),
    ) -> None:
        raise NotImplementedError

    @property
    def total(self) -> int:
        """Records of a seed, from its beginning to its end."""
        raise NotImplementedError

    @property
    def records(self) -> int:
        """Records that each seed has seen."""
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """Whether every seed is at its end."""
        raise NotImplementedError

    def advance(self, records: int) -> Reading:
        """Train every seed until it has seen so many records in all, or is at its end; measure.

        Raises:
            TrialFailed: ``nan``: a loss or an answer is not finite.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Everything that decides how it goes on, as a tree for ``streamkd.state.tree``."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the state into a folder, whole or not at all: JSON, safetensors and Arrow, no pickle."""
        raise NotImplementedError

    def restore(self, folder: Path) -> None:
        """Go on from a saved trial, of these values or of others that a running stream can take up.

        Raises:
            StateConflict: what cannot change in a running stream has changed; its path is named, and both values.
        """
        raise NotImplementedError
