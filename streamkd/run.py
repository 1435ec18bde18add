"""``streamkd run``: consume a finite stream once per seed, test after each task, and write the report.

    for each seed: learner ─► task ends ─► accuracy of student and served model on every task's test records
    all seeds ─► report.json, report.html

Test records are only ever looked at to be reported: nothing is chosen by them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.distill.ensemble import Model
from streamkd.distill.students import at_rest
from streamkd.errors import ConfigError, SourceError
from streamkd.evaluate import efficiency, fidelity, report
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.state.environment import environment
from streamkd.streams import codec
from streamkd.wiring import device_of, open_source, schema_of, source_kind

Progress = Callable[[int, int | None], None]
"""Told (records trained of this seed, records in all or ``None``)."""
BATCH = 512  # test records per forward pass
POINTS = 200  # of a run's history


@dataclass(frozen=True)
class TestSet:
    """A task's test records: x [n, *shape] on the run's device, and their labels."""

    task: str
    x: Tensor
    labels: Sequence[Any]


def run(
    config: Config, registry: Registry, out: Path, seeds: Sequence[int], progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Run every seed, write ``report.json`` and ``report.html`` into ``out``, return the report.

    Raises:
        ConfigError: the stream never ends, or is pushed. SourceError: it cannot be read.
    """
    torch.set_num_threads(config.threads)
    if source_kind(config, registry).push:
        raise ConfigError(
            f"the source {config.stream.source.name} is pushed and never ends",
            where="stream.source",
            fix="use `streamkd serve`, or a replay source with repeat: false",
        )
    results = [run_seed(config.model_copy(update={"seed": seed}), registry, progress) for seed in seeds]
    stream = {
        "name": config.name,
        "records": results[0]["throughput"]["records"],
        "tasks": results[0]["tasks"],
        "classes": results[0]["classes"],
    }
    return report.write_report(
        out, results, config=configuration.dump(config), stream=stream, environment=environment()
    )


def run_seed(config: Config, registry: Registry, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """One pass over the stream under the configuration's seed: the seed's part of the report."""
    schema = schema_of(config, registry)
    source, _ = open_source(config, registry, schema)
    if not source.finite:
        raise ConfigError("the stream never ends", where="stream.source", fix="set repeat: false")
    device = device_of(config.device)
    tests = [_test_set(task, rows, schema, device) for task, rows in source.tests().items() if rows.num_rows]
    if not tests:
        raise ConfigError("the stream has no test records", where="stream.source", fix="set test_path or test_ratio")
    trial = _Trial(tests)
    learner = trial.learner = Learner(config, registry, source, schema, on_task_end=trial.task_ended)
    total = sum(end for p in source.partitions if (end := source.end(p)) is not None)
    every = max(total // POINTS, 1)
    begun, noted = time.perf_counter(), 0
    while learner.advance():
        if learner.records - noted >= every:
            noted = learner.records
            trial.note()
            progress(learner.records, total)
    if not learner.started:
        raise SourceError("the stream gave no record that could be learned", where=config.name)
    learner.end_of_stream()
    progress(total, total)
    seconds = time.perf_counter() - begun - trial.test_seconds
    source.close()
    return trial.result(seconds)


def _test_set(task: str, rows: Any, schema: RecordSchema, device: torch.device) -> TestSet:
    records = codec.encode(rows, schema, 0)[0].labelled()
    return TestSet(task, torch.tensor(records.inputs, device=device), records.labels)


class _Trial:
    """What one seed's run collects."""

    learner: Learner

    def __init__(self, tests: Sequence[TestSet]) -> None:
        self.tests = tests
        self.rows: dict[str, dict[str, list[float]]] = {"student": {}, "served": {}}
        self.worth: dict[str, list[dict[str, float]]] = {}
        self.weights: list[dict[str, Any]] = []
        self.test_seconds = 0.0

    def task_ended(self, task: str) -> None:
        """Test student and served model on every task; a task that recurs keeps its last row."""
        begun = time.perf_counter()
        for name, model in self._models().items():
            self.rows[name][task] = [self._accuracy(model, test) for test in self.tests]
        for key, worth in self.learner.strategy.step.pool.worth.items():
            self.worth.setdefault(key, []).append({"record": self.learner.records, "worth": worth})
        self.test_seconds += time.perf_counter() - begun

    def note(self) -> None:
        """A point of the history."""
        begun = time.perf_counter()
        self.learner.measure()
        weights = self.learner.gate_weights()
        point = {"record": self.learner.records, "hard": weights.pop("hard", None), "weights": weights}
        self.weights.append(point)
        self.test_seconds += time.perf_counter() - begun

    def _models(self) -> dict[str, Model]:
        return {"student": self.learner.student, "served": self.learner.served}

    def _columns(self, test: TestSet) -> Tensor:
        """Columns of a test set's labels; -1 where a label was never learned, which no prediction equals."""
        index = {label: column for column, label in enumerate(self.learner.labels.labels)}
        return torch.tensor([index.get(label, -1) for label in test.labels])

    def _upkeep_seconds(self) -> float:
        """What the gate took: weighing each step, and being adapted."""
        adapter = self.learner.adapter
        return adapter.seconds + self.learner.strategy.step.weighing_seconds if adapter else 0.0

    def result(self, seconds: float) -> dict[str, Any]:
        """The seed's part of the report."""
        learner = self.learner
        adapter = learner.adapter
        sides = {name: self._summary(name, model) for name, model in self._models().items()}
        return {
            "seed": learner.config.seed,
            **sides,
            "fidelity": self._fidelity(),
            "gate": {
                "weights": self.weights,
                "overhead_ratio": self._upkeep_seconds() / seconds,
                "adaptations": adapter.adaptations if adapter else 0,
                "engine": adapter.engine_in_use if adapter else None,
                **({"temperature": adapter.temperature.value} if adapter and adapter.temperature else {}),
            },
            "efficiency": efficiency.measure(learner.served, self.tests[0].x[:32]),
            "throughput": {
                "samples_per_second": learner.records / seconds,
                "seconds": seconds,
                "records": learner.records,
            },
            "teachers": [{"name": name, "worth": worth} for name, worth in self.worth.items()],
            "boundaries": [
                {"record": b.record, "detector": b.detector, "task": b.task} for b in learner.tasks.boundaries
            ],
            "history": learner.quality.history,
            "tasks": len(learner.tasks.names),
            "classes": len(learner.labels),
        }

    def _summary(self, name: str, model: Model) -> dict[str, Any]:
        """The report's object of one model, over the tasks that were learned."""
        rows = self.rows[name]
        places = [index for index, test in enumerate(self.tests) if test.task in rows]
        if places:
            matrix = np.array([[rows[self.tests[i].task][j] for j in places] for i in places])
        else:  # the detectors' names are not those of the tests: the end is all that can be compared
            places = list(range(len(self.tests)))
            matrix = np.array([[np.mean(list(rows.values())[-1])]])
        tests = [self.tests[index] for index in places]
        untrained = self.learner.fresh_student(model.classes)
        baseline = np.array([self._accuracy(untrained, test) for test in tests])
        return report.assess(
            matrix,
            self.learner.prequential.overall if name == "student" else None,
            np.concatenate([_probabilities(model, test.x) for test in tests]),
            np.concatenate([self._columns(test).numpy() for test in tests]),
            baseline if len(baseline) == len(matrix) else None,
        )

    def _accuracy(self, model: Model, test: TestSet) -> float:
        return float((_probabilities(model, test.x).argmax(1) == self._columns(test).numpy()).mean())

    def _fidelity(self) -> list[dict[str, Any]]:
        """Agreement of the student with each teacher that answers by itself, on all test records."""
        x = torch.cat([test.x for test in self.tests])
        ours = _probabilities(self.learner.student, x)
        rows = []
        for teacher in self.learner.strategy.step.pool.teachers:
            known = teacher.known()
            if teacher.role != "remembered" and known.any():
                theirs, mask = _probabilities_of(teacher.logits, known, x), known.cpu().numpy()
                agreement, kl = fidelity.agreement(ours, theirs, mask), fidelity.kl(ours, theirs, mask)
                rows.append({"teacher": teacher.key, "agreement": agreement, "kl": kl})
        return rows


def _probabilities(model: Model, x: Tensor) -> np.ndarray:
    with at_rest(model):
        return _probabilities_of(model, torch.ones(model.classes, dtype=torch.bool), x)


@torch.no_grad()
def _probabilities_of(logits: Callable[[Tensor], Tensor], known: Tensor, x: Tensor) -> np.ndarray:
    """[n, classes] over the known classes, in batches."""
    unknown = ~known.to(x.device)
    parts = [torch.softmax(logits(part).masked_fill(unknown, -torch.inf), 1) for part in x.split(BATCH)]
    return torch.cat(parts).cpu().numpy()
