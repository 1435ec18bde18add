"""A stream as Ray Tune's trainable: `streamkd tune` on a Ray cluster, and whoever has another searcher or scheduler.

    tune.Tuner(trainable(config, registry), param_space={"optimizer.learning_rate": tune.loguniform(1e-4, 1e-2)}, ...)

Values go by the dotted paths of the configuration, as in a space's file. A trial runs in a child process of its actor:
whatever becomes of it is told as on one machine. It cannot be paused, so schedulers may end trials (ASHA, median
stopping) and not copy them.
"""

from collections.abc import Sequence
from typing import Any

import ray
from ray import tune

from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.tune.settings import Settings
from streamkd.tune.slot import Slot
from streamkd.tune.space.space import Space
from streamkd.tune.worker import Job, Packed


class StreamTrial(tune.Trainable):
    """One trial: a step trains every seed to the next milestone, and reports the objectives and the records so far."""

    def setup(self, config: dict[str, Any], packed: Packed | None = None) -> None:
        """Begin a trial; ``config`` has values by path, the rest is what all trials share."""
        assert packed is not None
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        self._packed, self._slot = packed, Slot(packed, ",".join(gpus))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same actor."""
        self._slot.end()
        self._slot.begin({path: getattr(value, "item", lambda v=value: v)() for path, value in new_config.items()})
        self._steps = 0
        return True

    def step(self) -> dict[str, Any]:
        """On to the next milestone."""
        milestones = self._packed.milestones
        reading = self._slot.advance(milestones[self._steps])
        self._steps += 1
        whole = {"records": reading["records"], "step": self._steps, "reading": [reading]}
        return {**reading["objectives"], **whole, "done": self._steps == len(milestones)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: Ray Tune asks for one at the end, and nobody can begin with it."""

    def cleanup(self) -> None:
        """The trial is over."""
        self._slot.end()


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
    from streamkd.tune.trials import recording  # an actor, which imports this module, needs neither
    from streamkd.tune.trials.trial import Trial

    recordings = {seed: recording.record(config, registry, seed) for seed in seeds}
    settings = Settings(objectives=tuple(objectives), seeds=tuple(seeds))
    return of(Job(config, Space(()), recordings, settings, Trial))


def of(job: Job) -> Any:
    """Ray Tune's trainable for a job, which goes into Ray's object store once."""
    return tune.with_parameters(StreamTrial, packed=job.packed())
