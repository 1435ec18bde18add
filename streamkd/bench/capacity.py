"""``streamkd bench memory``: what a step and a checkpoint cost with memories of several sizes.

Our learner with its defaults goes into the second task of a stream, so that a copy of itself is among its teachers;
then its memory is filled with random records of the stream's shape, and steps are timed, by the processor's clock. A
checkpoint is written, steps go on, and the next one says how long the learner waited for it, by the clock on the wall,
and what was written that was not there before.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from streamkd.bench import book, streams
from streamkd.bench.book import Row
from streamkd.cores import compute_on
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.replay.memory import Memory
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory

STREAM = "split-fashion-mnist"  # else that of the digits, where its data is not
PER_CLASS = 300  # records: the second task is there soon
TASK, STEPS, BETWEEN = 90, 50, 50  # steps before, those that are timed, those between two checkpoints
AT_ONCE = 2_000  # random records
SIZES = (500, 5_000, 50_000, 100_000)


def measure(
    bounds: Sequence[Mapping[str, int]], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """A row for each memory, ``{"size": records}`` or ``{"bytes": bytes}``, and milliseconds by name."""
    compute_on(1)
    rows = []
    for bound in bounds:
        rows.append({**bound, **_measured(bound)})
        progress(len(rows), len(bounds))
    figures = {
        f"{name}.{row['records']}": row[name] for row in rows for name in ("step_ms", "pause_ms", "written_bytes")
    }
    return book.result("memory", rows, figures=figures)


def _measured(bound: Mapping[str, int]) -> Row:
    registry, name = Registry.load(), STREAM if streams.there(STREAM) else "digits"
    made = {**streams.tree(name), "memory": dict(bound)}
    made["stream"]["source"]["per_class"] = PER_CLASS
    learner = streams.learner_of(streams.config_of(made, registry, 0), registry)
    _steps(learner, TASK)
    _fill(learner.step.memory, learner.student.classes)
    seconds = _steps(learner, STEPS)
    memory = learner.step.memory
    row = {"records": len(memory), "held_out": len(memory.holdout), "step_ms": 1e3 * statistics.mean(seconds)}
    with TemporaryDirectory() as folder:
        return row | _checkpoints(learner, StateDirectory(folder))


def _steps(learner: Learner, count: int) -> list[float]:
    """Seconds of each."""
    seconds = []
    for _ in range(count):
        begun = time.process_time()
        learner.advance()
        seconds.append(time.process_time() - begun)
    return seconds


def _fill(memory: Memory, classes: int) -> None:
    """Random records, until there is no place left."""
    dice, like = torch.Generator().manual_seed(0), memory.replayed.x
    assert like is not None
    while any(ring.filled < ring.capacity for ring in (memory.replayed, memory.holdout)):
        x = torch.randint(0, 256, (AT_ONCE, *like.shape[1:]), generator=dice).to(like.dtype)
        y = torch.randint(classes, (AT_ONCE,), generator=dice)
        memory.insert(x, y, 0, torch.randn(AT_ONCE, classes, generator=dice))


def _checkpoints(learner: Learner, directory: StateDirectory) -> Row:
    """Of the first, and of the one that follows it: milliseconds that the learner waits, bytes that are written."""
    with directory.lock():
        store = CheckpointStore(directory)
        first = _saved(store, learner, directory)
        _steps(learner, BETWEEN)
        second = _saved(store, learner, directory)
        store.close()
    return {"first_pause_ms": first[0], "first_bytes": first[1], "pause_ms": second[0], "written_bytes": second[1]}


def _saved(store: CheckpointStore, learner: Learner, directory: StateDirectory) -> tuple[float, int]:
    begun = time.perf_counter()
    place: dict[str, Any] = {"offsets": learner.offsets, "records": learner.records}
    info = store.save(learner.state(), **place, config={}, environment={})
    pause = 1e3 * (time.perf_counter() - begun)
    files = [file.stat() for file in Path(directory.checkpoints / str(info.id)).rglob("*") if file.is_file()]
    return pause, sum(file.st_size for file in files if file.st_nlink == 1)
