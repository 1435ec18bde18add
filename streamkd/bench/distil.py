"""``streamkd bench distil``: a student of a size, distilled from what is served, beside the same learned on the stream.

    stream × seed ─► our learner ─► what is served ─► distil ─► accuracy of each size, and of what is served
    stream × seed × size ─► our learner with that student ─► accuracy of the student

Accuracies are final averages over the tasks' test records, as in ``bench learning``; bytes are a student's weights.
"""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from streamkd.bench import book, documents, scores, streams
from streamkd.bench.book import Progress, Row
from streamkd.bench.scores import Table
from streamkd.config import Config
from streamkd.cores import compute_on
from streamkd.export import smaller
from streamkd.export.published import Published
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.replay.rows import StepRows
from streamkd.students.columns import Columns
from streamkd.teachers.teacher import module_bytes

STREAMS = ("digits", "split-mnist-5k", "split-fashion-mnist")
PARTS = (0.03, 0.1, 0.3, 1.0)  # of the bytes of the stream's own student
SERVED, DISTILLED, LEARNED = "served", "distilled", "learned on the stream"
_SHOWN = {DISTILLED: "streamkd, distilled", LEARNED: LEARNED}


@dataclass(frozen=True)
class DistilRun:
    """A stream under a seed, and the sizes of students in parts of its own."""

    stream: str
    seed: int
    parts: tuple[float, ...]
    steps: int


def measure(
    only: Sequence[str],
    seeds: Sequence[int],
    work: Path,
    *,
    steps: int = 3_000,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Every size on every stream under every seed; runs that ``work`` holds already are not done again.

    Raises:
        ConfigError: a stream that there is not. SourceError: a stream's data is not on this machine.
    """
    book.require_known("stream", only, streams.STREAMS, "bench distil")
    tasks = [DistilRun(name, seed, PARTS, steps) for name in only or STREAMS for seed in seeds]
    keyed = [(book.key_of(asdict(task)), task) for task in tasks]
    rows = book.run_all(keyed, run_one, work / "distil.jsonl", jobs, progress)
    rows = [{"stream": task.stream, "seed": task.seed, **row} for row, task in zip(rows, tasks, strict=True)]
    return book.result("distil", rows, figures=figures(rows), seeds=list(seeds))


def run_one(task: DistilRun) -> Row:
    """One run, on one thread: ``lines``, each a name, bytes and accuracy."""
    compute_on(1)
    registry = Registry.load()
    config = streams.config_of(streams.tree(task.stream), registry, task.seed)
    data = streams.arrays(config, registry)

    def accuracy(model: torch.nn.Module) -> float:
        return statistics.mean(streams.accuracy(model, part) for part in data.test)

    learner = _learned(config, registry)
    labels = [label for label in data.labels if label is not None]
    version = Published(learner.served, labels, data.schema.only(data.schema.student))
    lines = [(SERVED, module_bytes(version), accuracy(version))]
    ring = learner.step.memory.replayed
    assert ring.x is not None  # it has learned
    records = StepRows.of(Columns(data.schema, data.schema.student)(ring.x[: ring.filled]), ring.y[: ring.filled])
    own = smaller.size_of(config.student, version, registry)
    for size in (round(part * own) for part in task.parts):
        choice = smaller.fitting(config.student, size, version, registry)
        student = smaller.fresh(choice, task.seed, version, registry)
        deque(smaller.teach(student, version, records, task.steps, task.seed), maxlen=0)
        alone = _learned(config.model_copy(update={"student": choice}), registry).student
        lines += [(DISTILLED, size, accuracy(student)), (LEARNED, size, accuracy(alone))]
    return {"lines": lines}


def _learned(config: Config, registry: Registry) -> Learner:
    """Our learner at the end of its stream."""
    learner = streams.learner_of(config, registry)
    while learner.advance():
        pass
    learner.end_of_stream()
    return learner


def _cells(rows: Sequence[Row]) -> dict[str, dict[tuple[str, int], list[float]]]:
    """By stream, line and size the accuracy of each seed; what is served has no size."""
    found: dict[str, dict[tuple[str, int], list[float]]] = {}
    for row in rows:
        for name, size, accuracy in row["lines"]:
            cell = found.setdefault(row["stream"], {}).setdefault((name, 0 if name == SERVED else size), [])
            cell.append(accuracy)
    return found


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """``<stream>.<line>.<bytes>``: means over the seeds, with their deviation."""
    return scores.named(
        {
            f"{stream}.{name}" + (f".{size}" if size else ""): values
            for stream, cells in _cells(rows).items()
            for (name, size), values in cells.items()
        }
    )


def table(rows: Sequence[Row]) -> Table:
    """A line for each stream and size."""
    head = ("stream", "bytes of a student", DISTILLED, LEARNED, SERVED)
    lines = []
    for stream, cells in _cells(rows).items():
        for size in sorted({size for _, size in cells if size}):
            told = [scores.cell(cells[key]) for key in ((DISTILLED, size), (LEARNED, size), (SERVED, 0))]
            lines.append((stream, f"{size:,}", *told))
    return head, lines


def markdown(result: Mapping[str, Any]) -> str:
    """The result as it stands in docs/how-to/smaller-students.md."""
    return documents.table(*table(result["rows"]))


def points(rows: Sequence[Row]) -> dict[str, dict[str, tuple[float, ...]]]:
    """For ``scatter``, by stream and line: kilobytes, accuracy."""
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for row in rows:
        for name, size, _ in row["lines"]:
            key = (name, 0 if name == SERVED else size)
            values = _cells(rows)[row["stream"]][key]
            line = f"streamkd, {name}" if name == SERVED else f"{_SHOWN[name]}, {size:,} bytes"
            found.setdefault(row["stream"], {})[line] = (size / 1e3, statistics.mean(values))
    return found
