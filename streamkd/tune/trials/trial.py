"""A trial: one configuration on the recordings of all its seeds, which advance together.

    Trial(config, registry, recordings) ─► advance(records) ─► Reading ─► advance ... ─► finished

How often it is stopped on the way changes nothing of what it ends with. Whatever is measured comes from validation
records. Records are counted per seed: those that were read, good or not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.tune.trials.objective import Curve, mean, objective
from streamkd.tune.trials.passage import Passage
from streamkd.tune.trials.recording import Recording


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
        self._passages = {
            seed: Passage(quiet.model_copy(update={"seed": seed}), registry, one, self._objectives, beat)
            for seed, one in recordings.items()
        }

    @property
    def records(self) -> int:
        """Records that each seed has seen."""
        return max(passage.records for passage in self._passages.values())

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
            sum(passage.seconds for passage in passages),
            sum(passage.validation_seconds for passage in passages),
        )
