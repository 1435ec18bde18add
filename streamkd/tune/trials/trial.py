"""A trial: one configuration on the recordings of all its seeds, which advance together.

    Trial(config, registry, recordings) ─► advance(records) ─► TrialReading ─► advance ... ─► finished

How often it is stopped on the way changes nothing of what it ends with. Whatever is measured comes from validation
records. Records are counted per seed: those that were read, good or not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.tune.trials.objective import Curve, mean, objective
from streamkd.tune.trials.recording import Recording
from streamkd.tune.trials.seed_run import SeedRun


@dataclass(frozen=True)
class TrialReading:
    """What a trial says where it was stopped. Plain numbers: ``dataclasses.asdict`` of it is JSON.

    ``records``: seen by each seed. ``objectives``: means over the seeds, ``per_seed`` in their order. ``curve``:
    (records, accuracy) at the marks of the stream so far and here, means over the seeds. ``seconds``: in all.
    """

    records: int
    objectives: dict[str, float]
    per_seed: dict[str, list[float]]
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0


class Trial:
    """One configuration on the recordings of its seeds; ``objectives`` are names of ``objective.OBJECTIVES``.

    ``beat`` is called after each batch of any seed: it is heard as long as the trial learns.

    Raises:
        ConfigError: an objective that there is not.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        recordings: Mapping[int, Recording],
        objectives: Sequence[str] = ("accuracy",),
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._objectives = [objective(name) for name in objectives]
        quiet = config.model_copy(update={"observers": ()})  # they are told of streams, not of experiments
        self._runs = {
            seed: SeedRun(quiet.model_copy(update={"seed": seed}), registry, one, self._objectives, beat)
            for seed, one in recordings.items()
        }

    @property
    def records(self) -> int:
        """Records that each seed has seen."""
        return max(run.records for run in self._runs.values())

    def advance(self, records: int) -> TrialReading:
        """Train every seed until it has seen so many records in all, or is at its end; measure.

        Raises:
            TrialFailed: ``nan``: a loss or an answer is not finite.
        """
        for run in self._runs.values():
            run.advance(records)
        return self._reading([run.curve() for run in self._runs.values()])

    def _reading(self, curves: Sequence[Curve]) -> TrialReading:
        per_seed = {one.name: [one.of(curve) for curve in curves] for one in self._objectives}
        drawn = [[(point.records, mean([*point.served.values()])) for point in curve.whole()] for curve in curves]
        shared = zip(*drawn, strict=False)
        return TrialReading(
            self.records,
            {name: mean(values) for name, values in per_seed.items()},
            per_seed,
            [(max(at for at, _ in points), mean([accuracy for _, accuracy in points])) for points in shared],
            sum(run.seconds for run in self._runs.values()),
        )
