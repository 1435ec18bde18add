"""A trial: one configuration on the recordings of all its seeds, which advance together.

    Trial(config, registry, recordings) ─► advance(records) ─► Reading ─► advance ... ─► finished
                                              ▲    save(folder) ─► restore(folder), perhaps under other values

How often it is stopped on the way changes nothing of what it ends with. Whatever is measured comes from validation
records. Records are counted per seed: those that were read, good or not.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import CheckpointDamaged, ConfigError, StateConflict, StateError
from streamkd.plugins import Registry
from streamkd.search import recording as recordings_of
from streamkd.search import running
from streamkd.search.course import Reading
from streamkd.search.objective import Curve, mean, objective
from streamkd.search.passage import Passage
from streamkd.search.recording import Recording
from streamkd.state import files
from streamkd.state.tree import pack, unpack

MANIFEST = "trial.json"


class Trial:
    """One configuration on the recordings of its seeds; ``objectives`` are names of ``objective.OBJECTIVES``.

    Raises:
        ConfigError: an objective that there is not, or a configuration of another stream than was recorded.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        recordings: Mapping[int, Recording],
        objectives: Sequence[str] = ("accuracy",),
    ) -> None:
        if not recordings:
            raise ConfigError("needed the recording of one seed at least, got none", where="seeds")
        self.config = config.model_copy(update={"observers": ()})  # they are told of streams, not of experiments
        self._registry, self._recordings = registry, dict(recordings)
        self._objectives = [objective(name) for name in objectives]
        for one in recordings.values():
            recordings_of.refuse_other(config, one)
        self._passages = self._begin()
        self._seconds = self._validation_seconds = 0.0  # before it was restored

    def _begin(self) -> dict[int, Passage]:
        return {seed: self._passage(seed) for seed in self._recordings}

    def _passage(self, seed: int) -> Passage:
        seeded = self.config.model_copy(update={"seed": seed})
        return Passage(seeded, self._registry, self._recordings[seed], self._objectives)

    @property
    def total(self) -> int:
        """Records of a seed, from its beginning to its end; of the longest, where they differ."""
        return max(one.total for one in self._recordings.values())

    @property
    def records(self) -> int:
        """Records that each seed has seen."""
        return max(passage.records for passage in self._passages.values())

    @property
    def seen(self) -> int:
        """Records that the seeds have seen together; it rises whichever of them has its turn."""
        return sum(passage.records for passage in self._passages.values())

    @property
    def finished(self) -> bool:
        """Whether every seed is at its end."""
        return all(passage.ended for passage in self._passages.values())

    def advance(self, records: int) -> Reading:
        """Train every seed until it has seen so many records in all, or is at its end; measure.

        Raises:
            TrialFailed: ``nan``: a loss or an answer is not finite.
        """
        for passage in self._passages.values():
            passage.advance(records)
        return self._reading([passage.curve() for passage in self._passages.values()])

    def _reading(self, curves: Sequence[Curve]) -> Reading:
        per_seed = {one.name: [one.of(curve) for curve in curves] for one in self._objectives}
        drawn = [[(point.records, mean([*point.served.values()])) for point in curve.whole()] for curve in curves]
        shared = zip(*drawn, strict=False)
        passages = self._passages.values()
        return Reading(
            self.records,
            {name: mean(values) for name, values in per_seed.items()},
            per_seed,
            [*self._passages],
            mean([points[-1][1] for points in drawn if points]),
            [(max(at for at, _ in points), mean([accuracy for _, accuracy in points])) for points in shared],
            self._seconds + sum(passage.seconds for passage in passages),
            self._validation_seconds + sum(passage.validation_seconds for passage in passages),
        )

    def state(self) -> dict[str, Any]:
        """Everything that decides how it goes on and ends, as a tree for ``streamkd.state.tree``."""
        return {str(seed): passage.state() for seed, passage in self._passages.items()}

    def save(self, folder: Path) -> None:
        """Write the state into a folder, which it replaces: whole or not at all, no pickle."""
        beside = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        spent = [sum(getattr(p, name) for p in self._passages.values()) for name in ("seconds", "validation_seconds")]
        about = {
            "format": files.FORMAT,
            "objectives": [one.name for one in self._objectives],
            "seconds": self._seconds + spent[0],
            "validation_seconds": self._validation_seconds + spent[1],
        }
        hashes = files.write(beside, pack(self.state()), about, configuration.dump(self.config))
        (beside / MANIFEST).write_text(json.dumps(hashes), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)

    def restore(self, folder: Path) -> None:
        """Go on from a saved trial, of these values or of others that a running stream can take up.

        Raises:
            StateConflict: what cannot change in a running stream has changed; its path is named, and both values.
            StateError: there is no whole saved trial in the folder.
        """
        try:
            parts, about, saved = files.read(folder, json.loads((folder / MANIFEST).read_text("utf-8")))
        except (OSError, ValueError, CheckpointDamaged) as fault:
            raise StateError(f"is no saved trial, or a damaged one: {fault}", where=str(folder)) from fault
        tree, before = unpack(parts), configuration.from_tree(saved, self._registry)
        running.refuse_structural(before, self.config, self._registry)
        self._refuse_others(list(map(int, tree)), about["objectives"])
        self._passages = self._begin()
        for seed, passage in self._passages.items():
            passage.restore(tree[str(seed)], before.model_copy(update={"seed": seed}))
        self._seconds, self._validation_seconds = about["seconds"], about["validation_seconds"]

    def _refuse_others(self, seeds: Sequence[int], objectives: Sequence[str]) -> None:
        mine = [str(seed) for seed in self._recordings], [one.name for one in self._objectives]
        theirs = [str(seed) for seed in seeds], [*objectives]
        for what, before, now in zip(("seeds", "objectives"), theirs, mine, strict=True):
            if sorted(before) != sorted(now):
                raise StateConflict(f"the trial was begun with {before}, and cannot go on with {now}", where=what)
