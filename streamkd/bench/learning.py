"""``streamkd bench learning``: our learner with its defaults beside the baselines, on the same streams.

    streams × methods × seeds ─► run_one, each kept in a file as soon as it is there ─► figures, table, plots

Everybody has the same records in the same tasks, one pass in the same batches, the same network with the same first
weights, and the same number of remembered records (ours counts its held-out part in). Figures are final average
accuracies, means over the seeds: ``<stream>.student`` and ``<stream>.served`` are ours, ``<stream>.forgetting`` is
the served model's, ``<stream>.<baseline>`` any other's; ``..._std`` beside each.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from streamkd import config as configuration
from streamkd.bench import baselines, book, documents, peers, scores, streams, unordered
from streamkd.bench.book import Progress, Row
from streamkd.bench.scores import Scores, Table
from streamkd.cores import compute_on
from streamkd.errors import ConfigError
from streamkd.evaluate import accuracy
from streamkd.plugins import Registry
from streamkd.run import run_seed
from streamkd.wiring import student_of

METHODS = (baselines.OURS, *baselines.BASELINES)


@dataclass(frozen=True)
class LearningRun:
    """One run: a method with its settings on a stream under a seed; ``chosen_on``: to choose settings by."""

    stream: str
    method: str
    seed: int
    settings: baselines.Settings
    chosen_on: bool = False


def measure(
    only: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    work: Path,
    *,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Every method on every stream under every seed; runs that ``work`` holds already are not done again.

    Raises:
        ConfigError: a stream or a method that there is not. SourceError: a stream's data is not on this machine.
    """
    book.require_known("stream", only, streams.STREAMS, "bench learning")
    book.require_known("method", methods, METHODS, "bench learning")
    runs = product(only, methods, seeds)
    tasks = [LearningRun(stream, name, seed, baselines.CHOSEN.get(name, {})) for stream, name, seed in runs]
    rows = run_all(tasks, work, jobs, progress)
    return book.result("learning", rows, figures=figures(rows), seeds=list(seeds))


def choose(
    only: Sequence[str], methods: Sequence[str], work: Path, *, jobs: int = 1, progress: Progress = lambda d, t: None
) -> dict[str, Any]:
    """Every baseline's whole grid on seeds and records of their own: its best settings on average over the streams."""
    book.require_known("stream", only, streams.STREAMS, "bench learning")
    asked = [name for name in methods if name != baselines.OURS and len(baselines.grid(name)) > 1]
    tasks = [
        LearningRun(stream, method, seed, settings, chosen_on=True)
        for method in asked
        for settings in baselines.grid(method)
        for stream in only
        for seed in baselines.CHOSEN_ON
    ]
    rows = run_all(tasks, work, jobs, progress)
    chosen, scored = {}, []
    for method in asked:
        tried = [
            (
                statistics.mean(r["student"] for r in rows if r["method"] == method and r["settings"] == settings),
                settings,
            )
            for settings in baselines.grid(method)
        ]
        scored += [{"method": method, "settings": s, "student": score} for score, s in tried]
        chosen[method] = max(tried, key=lambda pair: pair[0])[1]
    return book.result("learning-choice", scored, chosen=chosen)


def run_all(tasks: Sequence[LearningRun], work: Path, jobs: int, progress: Progress) -> list[Row]:
    """The rows of the tasks, in their order; new ones are appended to ``work``/learning.jsonl one by one.

    Two names of one configuration (the best fixed gate may be that of one average) share a run.
    """
    registry = Registry.load()
    keyed = [(_key(task, registry), task) for task in tasks]
    rows = book.run_all(keyed, run_one, work / "learning.jsonl", jobs, progress)
    return [row | asdict(task) for row, task in zip(rows, tasks, strict=True)]


def run_one(task: LearningRun) -> Row:
    """One run, on one thread: what came out, by name."""
    compute_on(1)
    registry = Registry.load()
    made = _tree(task)
    config = streams.config_of(made, registry, task.seed)
    begun = time.perf_counter()
    found = _in_memory(task, config, registry) if _in_tensors(task.method) else _summary(run_seed(config, registry))
    return {**asdict(task), **found, "seconds": time.perf_counter() - begun}


def _tree(task: LearningRun) -> streams.Tree:
    made = streams.tree(task.stream, task.chosen_on)
    return baselines.gated(made, task.method, task.settings) if task.method in baselines.GATES else made


def _summary(report: dict[str, Any]) -> Row:
    """Of our own learner: student, served model, and the teacher in closed form alone."""
    found: Row = {}
    for side, prefix in (("student", ""), ("served", "served_")):
        reached = report[side]["accuracy"]
        found[side] = reached["final_average"]
        found[f"{prefix}anytime"] = reached["anytime_average"]
        found[f"{prefix}forgetting"] = report[side]["forgetting"]["average"]
    alone = {row["teacher"]: row["accuracy"] for row in report["fidelity"]}
    return found | ({CLOSED_FORM: alone[CLOSED_FORM]} if CLOSED_FORM in alone else {})


def _in_memory(task: LearningRun, config: configuration.Config, registry: Registry) -> Row:
    """Of a peer or a bound, which read tensors: the same network as ours, its head wide enough from the start."""
    data = streams.arrays(config, registry)
    network = student_of(config, registry, data.schema, len(data.labels))
    matrix: list[list[float]] = []

    def after(model: nn.Module) -> None:
        matrix.append([streams.accuracy(model, part) for part in data.test])

    if task.method in baselines.EPOCHS:
        x, y = torch.cat([p.x for p in data.train]), torch.cat([p.y for p in data.train])
        epochs = baselines.EPOCHS[task.method]
        unordered.train(x, y, network, config.stream.batch.size, epochs, task.settings, task.seed)
        after(network)
        return {"student": float(np.mean(matrix[-1]))}
    if config.memory.size is None:
        raise ConfigError("baselines count records, got memory.bytes", where="memory", fix="give memory.size")
    budget = peers.RunBudget(config.stream.batch.size, config.memory.size)
    pairs = [(part.x, part.y) for part in data.train]
    peers.train(task.method, pairs, network, budget, task.settings, task.seed, after)
    found = np.array(matrix)
    return {
        "student": accuracy.final_average(found),
        "anytime": accuracy.anytime_average(found),
        "forgetting": accuracy.forgetting(found),
    }


ACCURACY, FORGETTING = "accuracy", "forgetting"
CLOSED_FORM = "analytic"
SERVED, STUDENT, ALONE = (f"{baselines.OURS}, {name}" for name in ("served", "student", CLOSED_FORM))


def by_stream(rows: Sequence[Row], what: str = ACCURACY) -> Scores:
    """Final ``accuracy`` or ``forgetting`` by stream and method; ours stands in three lines.

    Whoever sees no order of tasks forgets nothing and is left out of forgetting.
    """
    student, served = ("student", "served") if what == ACCURACY else ("forgetting", "served_forgetting")
    found: dict[str, dict[str, list[float]]] = {}
    lines = ((student, STUDENT), (served, SERVED), *([(CLOSED_FORM, ALONE)] if what == ACCURACY else []))
    for row in rows:
        for key, ours in lines:
            mine = row["method"] == baselines.OURS  # others that serve, our gates among them, are told by their student
            if key in row and (mine or key == student):
                line = ours if mine else row["method"]
                found.setdefault(row["stream"], {}).setdefault(line, []).append(row[key])
    return found


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Means over the seeds under the names that documents quote, sample deviations beside them."""
    return scores.named(
        {
            f"{stream}.{name}": values
            for what in (ACCURACY, FORGETTING)
            for stream, lines in by_stream(rows, what).items()
            for line, values in lines.items()
            if (name := _quoted(what, line))
        }
    )


def _quoted(what: str, line: str) -> str:
    """The name of a figure after its stream; empty where it has none."""
    if line == STUDENT:
        return "student" if what == ACCURACY else ""
    if line == ALONE:
        return CLOSED_FORM
    if line == SERVED:
        return "served" if what == ACCURACY else FORGETTING
    return line if what == ACCURACY else f"{line}.{FORGETTING}"


def table(rows: Sequence[Row], what: str = ACCURACY) -> Table:
    """A stream across, a method down; ours come first."""
    return scores.table(
        f"final average {what}", by_stream(rows, what), (SERVED, STUDENT, ALONE, *baselines.BASELINES), "-"
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The result as it stands in docs/explanation/learning.md: final accuracy, then forgetting."""
    return "\n\n".join(documents.table(*table(result["rows"], what)) for what in (ACCURACY, FORGETTING))


def _key(task: LearningRun, registry: Registry) -> str:
    """A run by everything that decides it but the code: other defaults of ours make another run of ours alone."""
    made = configuration.dump(streams.config_of(_tree(task), registry, task.seed))
    if not _in_tensors(task.method):
        return book.key_of(made)
    seen = {part: made[part] for part in ("stream", "student", "seed", "device")}
    return book.key_of(asdict(task), seen | {"memory": {"size": made["memory"]["size"]}})


def _in_tensors(method: str) -> bool:
    """Whether a method reads tensors, and of our configuration the stream, the network and the memory's size alone."""
    return method in peers.STRATEGIES or method in baselines.EPOCHS
