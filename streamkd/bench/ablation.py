"""``streamkd bench ablation``: what each mechanism gives, and what it costs: the defaults beside the same without it.

    streams × (defaults | a mechanism left out | other batches) × seeds ─► run_one ─► differences to the defaults
    a stream of each world, the defaults and a variant in turns         ─► prices, in microseconds a record

Streams of two kinds: where tasks add classes, by the accuracy on all of them at the end, and where the world changes,
by the accuracy on every record before its label is known. A mechanism is worth its seconds where the same seconds spent
on smaller batches, which is more replay, give less: the lines of other batches are the rate of exchange.
"""

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamkd.bench import book, documents, drift, drifting, frontier, gears, streams
from streamkd.bench.book import Progress, Row
from streamkd.bench.scores import Table
from streamkd.config import Config
from streamkd.cores import compute_on
from streamkd.plugins import Registry

ADDING = ("digits", "split-mnist-5k")
CHANGING = ("agrawal-recurring", "hyperplane", "interchanging-clusters")
WORLDS = {"adding": ADDING, "changing": CHANGING}
DEFAULTS = "defaults"
TEACHERS = ("ema", "memory", "analytic", "snapshot", "last-label", "linear", "crossed", "forgetting", "former")
"""Of the defaults."""
SECTIONS: dict[str, streams.Tree] = {
    "vicinal rows": {"vicinal": {"rows": 0}},
    "adaptation of the gate": {"adapt": {"every": 0, "on_task_steps": 0}},
    "per-sample gate (fixed instead)": {"gate": {"name": "fixed"}, "adapt": {"every": 0, "on_task_steps": 0}},
    "followers of the present, all": {"teachers": gears.WITHOUT_PRESENT},
}
BATCHES = (5, 20, 40, 160)
TIMED = {"adding": "digits", "changing": "hyperplane"}
WARM, RECORDS = 300, 1_300  # records after which a price begins to be taken, and ends
MEASURES = {"answer": "served", "student": "student"}
"""Whose accuracy is told: of what is answered, and of the network alone."""


def variants() -> dict[str, streams.Tree]:
    """By name, what is changed of a configuration; nothing of the defaults."""
    teachers = {f"teacher {name}": {"teachers": [{"name": t} for t in TEACHERS if t != name]} for name in TEACHERS}
    batches = {f"batches of {rows}": {"stream": {"batch": {"size": rows}}} for rows in BATCHES}
    return {DEFAULTS: {}, **teachers, **SECTIONS, **batches}


@dataclass(frozen=True)
class AblationRun:
    """The defaults, or one mechanism left out, on a stream under a seed."""

    stream: str
    variant: str
    seed: int
    limit: int


def measure(
    only: Sequence[str],
    seeds: Sequence[int],
    work: Path,
    *,
    names: Sequence[str] = (),
    limit: int = 10_000,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """The variants ``names`` on the streams ``only``, or all, under every seed; ``limit`` records of a changing one.

    Raises:
        ConfigError: a stream or a variant that there is not. SourceError: a stream's data is not on this machine.
    """
    known = variants()
    book.require_known("stream", only, ADDING + CHANGING, "bench ablation")
    book.require_known("variant", names, known, "bench ablation")
    chosen = [DEFAULTS, *(name for name in names or known if name != DEFAULTS)]
    tasks = [
        AblationRun(stream, name, seed, limit)
        for name in chosen
        for stream in only or ADDING + CHANGING
        for seed in seeds
    ]
    keyed = [(book.key_of(asdict(task), known[task.variant]), task) for task in tasks]
    rows = book.run_all(keyed, run_one, work / "ablation.jsonl", jobs, progress)
    rows = [row | asdict(task) for row, task in zip(rows, tasks, strict=True)]
    return book.result("ablation", rows, figures=figures(rows), seeds=list(seeds))


def run_one(task: AblationRun) -> Row:
    """One run, on one thread: accuracy of what is answered, and of the student."""
    compute_on(1)
    registry = Registry.load()
    config = _config(task, registry)
    if task.stream in ADDING:
        row = frontier.learned(config, registry)
        return {"answer": row["accuracy"], "student": row["student"]}
    stream = drifting.drifting(task.stream, config, registry)
    found = {one.name: one.predicted for one in drift.ours(config, registry, stream, 0)}
    return {key: float((found[name] == stream.y).mean()) for key, name in MEASURES.items()}


def _config(task: AblationRun, registry: Registry) -> Config:
    adding = task.stream in ADDING
    tree = streams.tree(task.stream) if adding else drifting.tree(task.stream, None, task.limit)
    return streams.config_of(streams.merged(tree, variants()[task.variant]), registry, task.seed)


def priced(result: Mapping[str, Any], progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """The same with prices: what each variant saves, timed in turns with the defaults, on a machine left alone."""
    names = [name for name in dict.fromkeys(row["variant"] for row in result["rows"]) if name != DEFAULTS]
    there = {row["stream"] for row in result["rows"]}
    worlds = [world for world, streams in WORLDS.items() if there & set(streams)]
    prices: dict[str, dict[str, float]] = {name: {} for name in names}
    for done, (world, name) in enumerate(itertools.product(worlds, names)):
        progress(done, len(worlds) * len(names))
        with_it, without = (_microseconds(TIMED[world], variant) for variant in (DEFAULTS, name))
        prices[name][world] = with_it - without
    figured = {f"{name}.{world}.us": us for name, each in prices.items() for world, us in each.items()}
    return {**result, "prices": prices, "figures": {**result["figures"], **figured}}


def _microseconds(stream: str, variant: str) -> float:
    """Of the processor for a record, on one thread, once the learner is warm."""
    compute_on(1)
    registry = Registry.load()
    learner = streams.learner_of(_config(AblationRun(stream, variant, 0, RECORDS), registry), registry)
    begun, start = time.process_time(), 0
    while learner.records < RECORDS and learner.advance():
        if not start and learner.records >= WARM:
            begun, start = time.process_time(), learner.records
    return 1e6 * (time.process_time() - begun) / max(1, learner.records - start)


def _cells(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By variant, world and measure, a number for each stream and seed: what the defaults have more of it."""
    base = {(row["stream"], row["seed"]): row for row in rows if row["variant"] == DEFAULTS}
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        if row["variant"] == DEFAULTS:
            continue
        with_it = base[row["stream"], row["seed"]]
        world = next(name for name, names in WORLDS.items() if row["stream"] in names)
        cell = found.setdefault(row["variant"], {}).setdefault(world, {name: [] for name in MEASURES})
        for name in MEASURES:
            cell[name].append(100 * (with_it[name] - row[name]))
    return found


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """``<variant>.<world>.<measure>``: means over streams and seeds, in points of accuracy."""
    return {
        f"{variant}.{world}.{name}": statistics.mean(values)
        for variant, worlds in _cells(rows).items()
        for world, cell in worlds.items()
        for name, values in cell.items()
    }


def table(result: Mapping[str, Any]) -> Table:
    """A line for each mechanism: what it gives in each world, in points with their standard error, and costs."""
    rows, prices = result["rows"], result.get("prices", {})
    there = [world for world, names in WORLDS.items() if any(row["stream"] in names for row in rows)]
    head = ("with it", *(f"{what}, {world}" for world in there for what in ("answer", "student", "µs a record")))
    lines = []
    for variant, worlds in _cells(rows).items():
        told = [
            (_points(worlds[world]["answer"]), _points(worlds[world]["student"]), _price(prices, variant, world))
            for world in there
        ]
        lines.append((variant, *itertools.chain(*told)))
    return head, lines


def _price(prices: Mapping[str, Mapping[str, float]], variant: str, world: str) -> str:
    us = prices.get(variant, {}).get(world)
    return "-" if us is None else f"{us:+.0f}"


def _points(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):+.1f} ± {error:.1f}"


def markdown(result: Mapping[str, Any]) -> str:
    """The result as it stands in docs/explanation/price.md."""
    return documents.table(*table(result))
