"""``streamkd bench frontier``: final accuracy over what it costs, processor seconds a record and bytes of all state.

    streams × lines × seeds ─► run_one, each kept in a file as soon as it is there ─► table, plots

A line is a method at one of its gears: ours with its defaults and with parts left out or more memory, plain loops of
replay methods at 10, 30 and 100 replayed rows with our number of remembered records and with our bytes, and the teacher
in closed form alone. Bytes are those of everything kept between two records: memory, networks, moments, optimiser.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamkd import config as configuration
from streamkd.bench import baselines, book, documents, gears, plain_replay, scores, streams, unordered
from streamkd.bench.book import Progress, Row
from streamkd.bench.scores import Table
from streamkd.cores import compute_on
from streamkd.plugins import Registry
from streamkd.state.tree import Parts, pack
from streamkd.students.networks import Student
from streamkd.teachers.teacher import TeacherContext
from streamkd.wiring import student_of

OURS, CLOSED_FORM = "streamkd", "closed form"
TEACHER = "analytic"  # the latter by its name
METHODS = {"": "lda", ", ridge": "ridge"}
"""Of the closed form: as RanDumb (Prabhu et al. 2024) has it, and as RanPAC (McDonnell et al. 2023)."""
REPLAYED = (10, 30, 100)  # rows a step


@dataclass(frozen=True)
class FrontierRun:
    """A line on a stream under a seed; ``memory`` of the others in records."""

    stream: str
    method: str
    gear: str
    replay: int
    memory: int
    seed: int

    @property
    def line(self) -> str:
        """As the table calls it."""
        return f"{self.method}{self.gear}" if self.method in (OURS, CLOSED_FORM) else f"{self.method}, {self.gear}"


def measure(
    only: Sequence[str],
    seeds: Sequence[int],
    work: Path,
    *,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Every line on every stream under every seed; ours first, for the others are given its bytes.

    Raises:
        ConfigError: a stream that there is not. SourceError: a stream's data is not on this machine.
    """
    book.require_known("stream", only, streams.STREAMS, "bench frontier")
    rows = _run(_ours(only, seeds), work, jobs, progress)
    spent = {row["stream"]: row["bytes"] for row in rows if row["line"] == OURS}
    rows += _run(_others(only, seeds, spent), work, jobs, progress)
    return book.result("frontier", rows, figures=figures(rows), seeds=list(seeds))


def _ours(only: Sequence[str], seeds: Sequence[int]) -> list[FrontierRun]:
    return [FrontierRun(name, OURS, gear, 0, 0, seed) for name in only for gear in gears.GEARS for seed in seeds]


def _others(only: Sequence[str], seeds: Sequence[int], spent: Mapping[str, int]) -> list[FrontierRun]:
    runs = []
    for name in only:
        registry = Registry.load()
        data = streams.arrays(streams.config_of(streams.tree(name), registry, 0), registry)
        x = data.train[0].x
        row = x[0].numel() * x.element_size() + 8
        size, records = streams.STREAMS[name]["memory"]["size"], sum(len(part.y) for part in data.train)
        equal = min(spent[name] // row, records)
        for seed in seeds:
            runs += [FrontierRun(name, CLOSED_FORM, gear, 0, 0, seed) for gear in METHODS]
            runs += [
                FrontierRun(name, method, f"{replay} replayed, {told}", replay, memory, seed)
                for method in plain_replay.NAMES
                for told, memory in (("our records", size), ("our bytes", equal))
                for replay in REPLAYED
            ]
    return runs


def _run(tasks: Sequence[FrontierRun], work: Path, jobs: int, progress: Progress) -> list[Row]:
    keyed = [(book.key_of(asdict(task), gears.GEARS.get(task.gear, {})), task) for task in tasks]
    rows = book.run_all(keyed, run_one, work / "frontier.jsonl", jobs, progress)
    return [row | asdict(task) | {"line": task.line} for row, task in zip(rows, tasks, strict=True)]


def run_one(task: FrontierRun) -> Row:
    """One run, on one thread: final average accuracy, processor seconds a record, bytes of all state."""
    compute_on(1)
    registry = Registry.load()
    made = streams.tree(task.stream)
    if task.method == OURS:
        return learned(streams.config_of(streams.merged(made, gears.GEARS[task.gear]), registry, task.seed), registry)
    config = streams.config_of(made, registry, task.seed)
    data = streams.arrays(config, registry)
    x, y = torch.cat([part.x for part in data.train]), torch.cat([part.y for part in data.train])
    network = student_of(config, registry, data.schema, len(data.labels))
    if task.method == CLOSED_FORM:
        return _closed_form(config, registry, data, network, (x, y), METHODS[task.gear])
    how = {"batch": config.stream.batch.size, "replay": task.replay, "memory": task.memory, "seed": task.seed}
    chosen = unordered.optimizer(network, baselines.CHOSEN[task.method])
    cost = plain_replay.train(task.method, x, y, network, chosen, **how)
    return {"accuracy": _final(network, data), "seconds_a_record": cost.seconds / len(y), "bytes": cost.bytes}


def learned(config: configuration.Config, registry: Registry) -> Row:
    """Ours: what is served, and the student beside it."""
    data = streams.arrays(config, registry)
    learner = streams.learner_of(config, registry)
    begun = time.process_time()
    while learner.advance():
        pass
    learner.end_of_stream()
    seconds = time.process_time() - begun
    return {
        "accuracy": _final(learner.served, data),
        "student": _final(learner.student, data),
        "seconds_a_record": seconds / learner.records,
        "bytes": _size(pack(learner.state())),
    }


def _closed_form(
    config: configuration.Config,
    registry: Registry,
    data: streams.Arrays,
    student: Student,
    records: tuple[Tensor, Tensor],
    method: str,
) -> Row:
    """The teacher ``analytic``, alone: streaming LDA, or ridge regression, on random features."""
    x, y = records
    kind = registry.kind("teachers", TEACHER)
    labels = [label for label in data.labels if label is not None]
    context = TeacherContext(TEACHER, student, data.schema, labels, torch.device("cpu"))
    teacher: Any = kind.make(kind.options.model_validate({"method": method}), context)
    begun = time.process_time()
    for rows, columns in zip(x.split(config.stream.batch.size), y.split(config.stream.batch.size), strict=True):
        teacher.observe(rows, columns)
    teacher.end_task()
    seconds = time.process_time() - begun
    return {
        "accuracy": _final(teacher.network, data),
        "seconds_a_record": seconds / len(y),
        "bytes": _size(pack(teacher.state_dict())),
    }


def _size(parts: Parts) -> int:
    """Bytes of a state as a checkpoint would hold it."""
    rows = [column for table in parts.rows.values() for column in table.columns.values()]
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in (*parts.tensors.values(), *rows))
    return tensors + sum(table.nbytes for table in parts.tables.values()) + len(json.dumps(parts.document))


def _final(model: nn.Module, data: streams.Arrays) -> float:
    return statistics.mean(streams.accuracy(model, part) for part in data.test)


def _cells(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """By stream and line, a row for each seed; our student stands in a line of its own, at our gear's price."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        lines = found.setdefault(row["stream"], {})
        lines.setdefault(row["line"], []).append(row)
        if row["method"] == OURS:
            lines.setdefault(f"{row['line']}: student", []).append(row | {"accuracy": row["student"]})
    return found


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Means over the seeds by stream and line: accuracy with its deviation, microseconds a record, megabytes."""
    named: dict[str, float] = {}
    for stream, lines in _cells(rows).items():
        for line, each in lines.items():
            name = f"{stream}.{line}"
            named |= scores.named({name: [row["accuracy"] for row in each]})
            named[f"{name}.us"] = 1e6 * statistics.mean(row["seconds_a_record"] for row in each)
            named[f"{name}.mb"] = statistics.mean(row["bytes"] for row in each) / 1e6
    return named


def ahead_of(line: str, lines: Mapping[str, Sequence[Row]]) -> list[str]:
    """Who is better than a line in all three: more accuracy beyond the standard error, less time, fewer bytes."""
    mine = _mean(lines[line])
    better = []
    for other, rows in lines.items():
        theirs = _mean(rows)
        error = sum(_variance(each) / len(each) for each in (lines[line], rows)) ** 0.5
        if theirs[0] > mine[0] + error and theirs[1] <= mine[1] and theirs[2] <= mine[2]:
            better.append(other)
    return better


def _mean(rows: Sequence[Row]) -> tuple[float, float, float]:
    accuracy, seconds, size = (
        statistics.mean(row[key] for row in rows) for key in ("accuracy", "seconds_a_record", "bytes")
    )
    return accuracy, seconds, size


def _variance(rows: Sequence[Row]) -> float:
    return statistics.variance(row["accuracy"] for row in rows) if len(rows) > 1 else 0.0


def tables(rows: Sequence[Row]) -> dict[str, Table]:
    """A table for each stream: a line's accuracy, what it costs, and how many are better in all three."""
    found: dict[str, Table] = {}
    for stream, lines in _cells(rows).items():
        ranked = sorted(lines, key=lambda line: -_mean(lines[line])[0])
        found[stream] = (
            (stream, "accuracy", "µs a record", "MB", "better in all three"),
            [_told(line, lines) for line in ranked],
        )
    return found


def _told(line: str, lines: Mapping[str, Sequence[Row]]) -> tuple[str, ...]:
    values = [row["accuracy"] for row in lines[line]]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    _, seconds, size = _mean(lines[line])
    return (
        line,
        f"{statistics.mean(values):.3f}{spread}",
        f"{1e6 * seconds:.0f}",
        f"{size / 1e6:.1f}",
        str(len(ahead_of(line, lines)) or "-"),
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The result as it stands in docs/explanation/frontier.md."""
    return "\n\n".join(documents.table(*table) for table in tables(result["rows"]).values())


def points(rows: Sequence[Row]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By stream and line: microseconds a record, megabytes, accuracy."""
    return {
        stream: {line: ((m := _mean(each))[1] * 1e6, m[2] / 1e6, m[0]) for line, each in lines.items()}
        for stream, lines in _cells(rows).items()
    }
