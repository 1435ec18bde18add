"""``streamkd bench drift``: our learner beside stream learners, on tables whose world changes.

    streams × seeds × delays × (our learner | a peer) ─► a prediction for every record, before its label is known
        ─► accuracy, kappa against no-change, CPU seconds a record, recovery ─► figures, table, plots

Everybody has the same records in the same order and no other knowledge; a record's label is learned when ``delay`` more
have come. Ours learns a batch at once: its rows are predicted before the batch is learned. Peers learn record by
record, in a Python of their own (``online_peers.py``), which need not have streamkd.
"""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd import config as configuration
from streamkd.bench import book, documents, drifting, gears, online_peers, prequential
from streamkd.bench.book import Progress, Row
from streamkd.cores import compute_on
from streamkd.errors import ConfigError
from streamkd.learner import Learner
from streamkd.learning import mixture
from streamkd.plugins import Registry
from streamkd.run import REFRESH
from streamkd.state.environment import environment
from streamkd.students.networks import at_rest
from streamkd.teachers.served import Model
from streamkd.teachers.teacher import copy_of
from streamkd.wiring import open_source, schema_of

OURS = "streamkd"
LATE = {"electricity": (0, 48)}
"""Label delays by stream; all others have none. 48 half-hours are a day."""
TIMED = 200  # batches of which an answer's seconds are the mean

Said = dict[str, Tensor]
"""By name (``served``, ``student``, a teacher's key), probabilities [rows, classes]."""


@dataclass(frozen=True)
class DriftRun:
    """One run: our learner at a gear, or a peer, on a stream under a seed, labels known ``delay`` records late."""

    stream: str
    method: str
    seed: int
    delay: int
    data: Path | None
    limit: int | None
    python: str | None = None
    gear: str = ""


def measure(
    only: Sequence[str],
    seeds: Sequence[int],
    work: Path,
    *,
    data: Path | None = None,
    python: str | None = None,
    methods: Sequence[str] | None = None,
    limit: int | None = None,
    geared: bool = False,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Everybody on every stream under every seed; runs that ``work`` holds already are not done again.

    ``data``: the folder of the streams that are files; ``python``: who runs the peers; ``methods``: only these;
    ``geared``: ours at other gears too.

    Raises:
        ConfigError: a stream or a method that there is not. SourceError: a stream's file is not there.
    """
    book.require_known("stream", only, drifting.NAMES, "bench drift")
    peers = peers_of(python)
    known = (OURS, *peers)
    book.require_known("method", methods or (), known, "bench drift")
    tasks = [
        DriftRun(stream, method, seed, delay, data, limit, None if method == OURS else python)
        for stream in only
        for delay in LATE.get(stream, (0,))
        for seed in seeds
        for method in methods or known
    ]
    more = gears.DRIFTING[1:] if geared else ()
    tasks += [replace(task, gear=gear) for task in tasks if task.method == OURS for gear in more]
    registry = Registry.load()
    keyed = [(_key(task, peers.get(task.method), registry), task) for task in tasks]
    parts = book.run_all(keyed, run_one, work / "drift.jsonl", jobs, progress)
    rows = [_named(task) | scores for task, part in zip(tasks, parts, strict=True) for scores in part["scores"]]
    return {
        "schema": 1,
        "suite": "drift",
        "figures": figures(rows),
        "rows": rows,
        "seeds": list(seeds),
        "peers": peers,
        "environment": environment(),
    }


def peers_of(python: str | None) -> dict[str, str]:
    """The peers that ``python`` can run, each with its package and version; without one, there are none.

    Raises:
        ConfigError: it is no Python that can.
    """
    if python is None:
        return {}
    try:
        told = subprocess.run(
            [python, "-I", online_peers.__file__, "--list"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as fault:
        said = getattr(fault, "stderr", "") or str(fault)
        raise ConfigError(
            f"cannot run the peers: {said.strip().splitlines()[-1]}", where="--peers", fix="name a Python with numpy"
        ) from None
    return json.loads(told.stdout)


def run_one(task: DriftRun) -> Row:
    """One run, on one thread: the scores of everybody who answered in it, by name."""
    compute_on(1)
    registry = Registry.load()
    config = _config(task, registry)
    stream = drifting.drifting(task.stream, config, registry)
    found = ours(config, registry, stream, task.delay) if task.method == OURS else _peer(task, stream)
    if task.gear:
        found = [replace(one, name=one.name + task.gear) for one in found if one.name == "served"]
    return {"scores": [_scores(one, stream, task.delay) for one in found]}


def _config(task: DriftRun, registry: Registry) -> configuration.Config:
    changes = gears.GEARS[task.gear]
    return drifting.checked(task.stream, task.data, task.limit, registry, task.seed, changes)


@dataclass(frozen=True)
class Predictions:
    """Who, its class for every record [n] (-1: none), and CPU seconds of the whole run and of the answers alone."""

    name: str
    predicted: np.ndarray
    seconds: float
    answer_seconds: float | None


def _scores(one: Predictions, stream: drifting.Drifting, delay: int) -> Row:
    found: Row = {
        "name": one.name,
        "records": len(stream.y),
        "accuracy": prequential.accuracy(one.predicted, stream.y),
        "kappa": prequential.temporal_kappa(one.predicted, stream.y, delay),
        "seconds_a_record": one.seconds / len(stream.y),
        "answer_seconds_a_record": None if one.answer_seconds is None else one.answer_seconds / len(stream.y),
    }
    if stream.concept is not None:
        found["recovery"] = [asdict(r) for r in prequential.recoveries(one.predicted, stream.y, stream.concept)]
    return found


def _peer(task: DriftRun, stream: drifting.Drifting) -> list[Predictions]:
    """A peer in its own Python."""
    assert task.python is not None  # there are no peers without
    with tempfile.TemporaryDirectory() as folder:
        records, out = Path(folder) / "stream.npz", Path(folder) / "out.npz"
        np.savez(records, x=stream.x, y=stream.y)
        command = [task.python, "-I", online_peers.__file__, records, task.method, task.delay, task.seed, out]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            raise ConfigError(f"the peer {task.method} failed: {done.stderr.strip()[-500:]}", where="--peers")
        with np.load(out) as told:
            spent = float(told["seconds"]), float(told["answer_seconds"])
            return [Predictions(task.method, told["predicted"], *spent)]


def ours(config: configuration.Config, registry: Registry, stream: drifting.Drifting, delay: int) -> list[Predictions]:
    """Our learner: what is served, the student, and each teacher that answers.

    A batch is learned when the label of its last record is known; its records were answered when they came.
    """
    schema = schema_of(config, registry)
    source, _ = open_source(config, registry, schema)
    learner = Learner(config, registry, drifting.Delayed(source, delay) if delay else source, schema)
    panel = Panel(learner, len(stream.y))
    x, size, answered = torch.from_numpy(stream.x), config.stream.batch.size, 0
    begun = time.process_time()
    while True:
        learned, come = learner.records, min(learner.records + size + delay, len(stream.y))
        panel.serve(answered, x[answered:come])
        if not learner.advance():
            break
        panel.write(learned, told(learner.step.mixture.last))
        answered = come
    seconds = time.process_time() - begun
    source.close()
    batch, keys = x[-size:], {choice.key for choice in config.teachers}
    spent = {"student": _seconds(learner.student, batch), "published": _seconds(learner.served, batch)}
    return [
        Predictions(name, predicted, seconds, spent[name] * len(x) / len(batch) if name in spent else None)
        for name, predicted in panel.predicted.items()
        if name.rpartition("-")[0] not in keys  # copies of teachers are there for a while only
    ]


def told(said: mixture.Testimony | None) -> Said:
    """By name what everybody said, and what was answered (``served``)."""
    if said is None:
        return {}
    found = {name: torch.from_numpy(said.probabilities[:, place]) for place, name in enumerate(said.names)}
    return {**found, "served": torch.from_numpy(said.mixed)}


class Panel:
    """Everybody's predictions; what is served is a copy that is at most ``REFRESH`` records old."""

    def __init__(self, learner: Learner, records: int) -> None:
        self._learner, self._records = learner, records
        self.predicted: dict[str, np.ndarray] = {}
        self._served: Model | None = None
        self._taken = -REFRESH

    def write(self, start: int, said: Said) -> None:
        """Note what was said of the records from ``start`` on."""
        for name, probabilities in said.items():
            lines = self.predicted.setdefault(name, np.full(self._records, -1))
            chosen = probabilities.argmax(1).numpy()
            lines[start : start + len(chosen)] = np.where(probabilities.sum(1).numpy() > 0, chosen, -1)

    def serve(self, start: int, x: Tensor) -> None:
        """Answer records by the served model."""
        if not self._learner.started or not len(x):
            return
        if self._learner.records - self._taken >= REFRESH:
            self._served, self._taken = copy_of(self._learner.served), self._learner.records
        assert self._served is not None  # taken with the first records that are served
        with at_rest(self._served) as served, torch.no_grad():
            self.write(start, {"published": torch.softmax(served(x), 1)})


def _seconds(model: Model, batch: Tensor) -> float:
    """CPU seconds of an answer to a batch."""
    with at_rest(model) as ready, torch.no_grad():
        begun = time.process_time()
        for _ in range(TIMED):
            ready(batch)
    return (time.process_time() - begun) / TIMED


def _named(task: DriftRun) -> Row:
    return {"stream": task.stream, "method": task.method, "seed": task.seed, "delay": task.delay}


def line_of(row: Row) -> str:
    """By what name a row's line goes: ours are ``streamkd, served`` and so on."""
    return f"{OURS}, {row['name']}" if row["method"] == OURS else row["method"]


def column_of(row: Row) -> str:
    """The stream, with its label delay where there is one."""
    return f"{row['stream']}@{row['delay']}" if row["delay"] else row["stream"]


Reading = Callable[[Row], float | None]
MEASURES: dict[str, tuple[Reading, str]] = {
    "prequential accuracy": (lambda row: row["accuracy"], ".3f"),
    "kappa against no-change": (lambda row: row["kappa"], ".3f"),
    "CPU microseconds a record, learning and answering": (lambda row: 1e6 * row["seconds_a_record"], ".0f"),
    "CPU microseconds a record, answering": (lambda row: _micro(row["answer_seconds_a_record"]), ".1f"),
    "records until 95 % is back": (lambda row: recovery(row, again=False), ".0f"),
    "the same, where a concept comes again": (lambda row: recovery(row, again=True), ".0f"),
}
KEYS = ("accuracy", "kappa", "us", "answer_us", "recovery", "recovery_again")


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else 1e6 * seconds


def recovery(row: Row, again: bool) -> float | None:
    """Mean records to recover from changes to concepts that had (not) been there; ``None``: there is no such change."""
    return prequential.mean_recovery([prequential.Recovery(**one) for one in row.get("recovery", ())], again)


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """``<stream>.<line>.<measure>``, means over the seeds; accuracies have their deviation beside them."""
    named: dict[str, float] = {}
    for column, line, part in _cells(rows):
        for key, (read, _) in zip(KEYS, MEASURES.values(), strict=True):
            values = [value for row in part if (value := read(row)) is not None]
            if len(values) == len(part):
                named[f"{column}.{line}.{key}"] = statistics.mean(values)
            if key == "accuracy":
                named[f"{column}.{line}.{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return named


def _cells(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """Rows of one stream and one line, over the seeds."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((column_of(row), line_of(row)), []).append(row)
    return [(column, line, part) for (column, line), part in found.items()]


def table(rows: Sequence[Row], measure: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and lines: a stream across, a method down, the mean over the seeds; ``-`` where it cannot be said."""
    read, form = MEASURES[measure]
    cells = {(column, line): part for column, line, part in _cells(rows)}
    across = list(dict.fromkeys(column for column, _ in cells))
    lines = []
    for line in dict.fromkeys(line for _, line in cells):
        shown = [_cell(cells.get((column, line), ()), read, form) for column in across]
        if any(cell != "-" for cell in shown):
            lines.append((line, *shown))
    return (measure, *across), lines


def _cell(part: Sequence[Row], read: Reading, form: str) -> str:
    values = [value for row in part if (value := read(row)) is not None]
    return f"{statistics.mean(values):{form}}" if values and len(values) == len(part) else "-"


def markdown(result: Mapping[str, Any]) -> str:
    """The result as it stands in docs/explanation/drift.md: a table for each measure that anybody has."""
    tables = [table(result["rows"], measure) for measure in MEASURES]
    return "\n\n".join(documents.table(*one) for one in tables if one[1])


def panels(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Accuracies for ``plots``, by stream and line."""
    found: dict[str, dict[str, list[float]]] = {}
    for column, line, part in _cells(rows):
        found.setdefault(column, {})[line] = [row["accuracy"] for row in part]
    return found


def points(rows: Sequence[Row]) -> dict[str, dict[str, tuple[float, ...]]]:
    """For ``scatter``, by stream and line: microseconds a record, accuracy; ours as a whole and the student alone."""
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    bought = [row for row in rows if row["method"] != OURS or row["name"].startswith(("served", "student"))]
    for column, line, part in _cells(bought):
        spent, accuracy = (statistics.mean(row[key] for row in part) for key in ("seconds_a_record", "accuracy"))
        found.setdefault(f"{column}.price", {})[line] = (1e6 * spent, accuracy)
    return found


def _key(task: DriftRun, version: str | None, registry: Registry) -> str:
    """A run by everything that decides it but the code: other defaults of ours make another run of ours alone."""
    made = configuration.dump(_config(task, registry))
    if task.method == OURS:
        return book.key_of(made, task.delay)
    return book.key_of(made["stream"], _named(task), version)
