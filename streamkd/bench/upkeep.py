"""What the gate costs: a part of whole runs with all defaults, and the seconds of a new task's adaptations.

    overhead_ratio        (seconds with the default gate - seconds with a fixed one) / seconds with the default gate
    adaptation_seconds    all adaptations of the burst that a new task sets off

Everything runs in this process on one thread. The two whole runs of a turn follow one another, so that a machine that
slows down slows both; figures are medians.
"""

import statistics
import time
from collections.abc import Callable, Iterator

from streamkd.bench import streams
from streamkd.bench.book import Row
from streamkd.config import Config
from streamkd.cores import compute_on
from streamkd.plugins import Registry

TURNS = 3
SIZES = "split-fashion-mnist"  # whose network and memory the bursts are timed with, where its data is
PER_CLASS = 100  # records: enough to fill the memory, and for every burst to end


def measure(
    stream: str, turns: int = TURNS, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, float], list[Row]]:
    """The two figures, and what each turn and each burst gave; ``stream`` is that of the whole runs."""
    compute_on(1)
    registry = Registry.load()
    rows: list[Row] = []
    for turn in range(turns):
        gated, fixed = (_whole_run(config, registry) for config in _pair(stream, registry))
        rows.append({"turn": turn, "stream": stream, "gated": gated, "fixed": fixed, "ratio": (gated - fixed) / gated})
        progress(turn + 1, turns + 1)
    sizes = SIZES if streams.there(SIZES) else stream
    bursts = list(_bursts(_short(sizes, registry), registry))
    rows += [{"burst": number, "stream": sizes, "seconds": seconds} for number, seconds in enumerate(bursts, 1)]
    progress(turns + 1, turns + 1)
    return {
        "gate.overhead_ratio": statistics.median(row["ratio"] for row in rows[:turns]),
        "gate.adaptation_seconds": statistics.median(bursts),
    }, rows


def _pair(stream: str, registry: Registry) -> tuple[Config, Config]:
    made = streams.tree(stream)
    fixed = {**made, "gate": {"name": "fixed"}}
    return streams.config_of(made, registry, 0), streams.config_of(fixed, registry, 0)


def _short(stream: str, registry: Registry) -> Config:
    made = streams.tree(stream)
    made["stream"]["source"]["per_class"] = PER_CLASS
    return streams.config_of(made, registry, 0)


def _whole_run(config: Config, registry: Registry) -> float:
    """Seconds of a stream from its first record to its last task's end, opening and testing left out."""
    learner = streams.learner_of(config, registry)
    begun = time.perf_counter()
    while learner.advance():
        pass
    learner.end_of_stream()
    return time.perf_counter() - begun


def _bursts(config: Config, registry: Registry) -> Iterator[float]:
    """Seconds that the adapter took in the burst of each task but the first, which has nothing held out yet."""
    learner = streams.learner_of(config, registry)
    learner.advance()
    begun: float | None = None
    adapter = learner.adapter
    assert adapter is not None
    seconds, boundaries = adapter.seconds, len(learner.tasks.boundaries)
    while learner.advance():
        if len(learner.tasks.boundaries) > boundaries:
            begun = seconds
        seconds, boundaries = adapter.seconds, len(learner.tasks.boundaries)
        if begun is not None and not adapter.burst:
            yield seconds - begun
            begun = None
