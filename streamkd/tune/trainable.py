"""A stream as Ray Tune's trainable: Ray Tune's own searchers and schedulers over trials that are measured as here.

    tune.Tuner(trainable(config, registry), param_space={"optimizer.learning_rate": tune.loguniform(1e-4, 1e-2)}, ...)

Values go by the dotted paths of the configuration, as in a space's file. `streamkd tune` needs none of it: this is for
whoever wants another searcher or scheduler than Optuna's. A trial cannot be paused, so schedulers may end trials (ASHA,
median stopping) and not copy them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune

from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.tune.settings import Settings
from streamkd.tune.space.places import Places
from streamkd.tune.trials import recording
from streamkd.tune.trials.recording import Recording
from streamkd.tune.trials.trial import Trial


class StreamTrial(tune.Trainable):
    """One trial: a step trains every seed to the next milestone, and reports the objectives and the records so far."""

    def setup(
        self,
        config: dict[str, Any],
        stream: Config | None = None,
        recordings: Mapping[int, Recording] | None = None,
        objectives: Sequence[str] = (),
        milestones: Sequence[int] = (),
    ) -> None:
        """Begin a trial; ``config`` has values by path, the rest is what all trials share."""
        assert stream is not None
        assert recordings is not None
        registry = Registry.load()
        values = {path: getattr(value, "item", lambda value=value: value)() for path, value in config.items()}
        self._trial = Trial(Places(stream, registry).changed(values), registry, recordings, objectives)
        self._milestones = list(milestones)

    def step(self) -> dict[str, Any]:
        """On to the next milestone."""
        reading = self._trial.advance(self._milestones.pop(0))
        return {**reading.objectives, "records": reading.records, "done": not self._milestones}


def trainable(
    config: Config,
    registry: Registry,
    *,
    seeds: Sequence[int] = (100, 101),
    objectives: Sequence[str] = ("accuracy",),
) -> Any:
    """What ``ray.tune.Tuner`` takes: trials of this configuration's stream, which is recorded now, once for all.

    Raises:
        ConfigError: the stream is pushed or never ends, or a seed is a report's. SourceError: it cannot be read.
    """
    recordings = {seed: recording.record(config, registry, seed) for seed in seeds}
    total = max(one.total for one in recordings.values())
    milestones = Settings(objectives=tuple(objectives), seeds=tuple(seeds)).milestones(total)
    return tune.with_parameters(
        StreamTrial, stream=config, recordings=recordings, objectives=tuple(objectives), milestones=milestones
    )
