"""``streamkd run``: consume a finite stream once per seed, test after each task, and write the report.

    for each seed: learner ─► task ends ─► accuracy of student and served model on every task's test records
                           ─► every ``REFRESH`` records another copy of the served model answers what arrives
    all seeds ─► report.json, report.html

Test records are only ever looked at to be reported: nothing is chosen by them. Every one of them counts, and the report
says how many there are; without any, what arriving records were answered is what it has. What is compared task by task
are tasks that the stream names, and has test records of; where it names none, the end is reported over all test
records, whatever tasks the detectors saw.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.cores import compute_on
from streamkd.errors import ConfigError, SourceError
from streamkd.evaluate import efficiency, fidelity, measures, report
from streamkd.evaluate.test_sets import TestSet, listed, probabilities, probabilities_over, sets_of
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.environment import environment
from streamkd.tasks import boundary
from streamkd.teachers.served import Model
from streamkd.teachers.teacher import copy_of
from streamkd.wiring import device_of, open_source, schema_of, source_kind

Progress = Callable[[int, int | None], None]
"""Told (records trained of this seed, records in all or ``None``)."""
POINTS = 200  # of a run's history
REFRESH = 100
"""Records after which arriving ones are answered by a new copy of the served model: what a server that publishes every
two seconds has at 50 records a second. Rarer, short tasks would be over before any version knew of them, and the figure
would say more of the pace than of the learner. Copies and answers take 3 to 8 % of a run's time, and are not counted in
its throughput."""


def run(
    config: Config, registry: Registry, out: Path, seeds: Sequence[int], progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Run every seed, write ``report.json`` and ``report.html`` into ``out``, return the report.

    Raises:
        ConfigError: the stream never ends, or is pushed. SourceError: it cannot be read.
    """
    compute_on(config.threads)
    if source_kind(config, registry).push:
        raise ConfigError(
            f"the source {config.stream.source.name} is pushed and never ends",
            where="stream.source",
            fix="use `streamkd serve`, or a replay source with repeat: false",
        )
    results = [run_seed(config.model_copy(update={"seed": seed}), registry, progress) for seed in seeds]
    counts = {key: report.shared(results, key) for key in ("tasks", "classes", "refused")}
    stream = {"name": config.name, "records": results[0]["throughput"]["records"], **counts}
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
    tests = sets_of(source.tests(), schema, device)
    seen = _SeedRun(tests)
    learner = seen.learner = Learner(config, registry, source, schema, on_task_end=seen.task_ended)
    learner.observers.tell("on_start", configuration.dump(config), None)
    total = sum(end for p in source.partitions if (end := source.end(p)) is not None)
    every = max(total // POINTS, 1)
    begun, noted = time.perf_counter(), 0
    while learner.advance():
        seen.refresh()
        seen.count_refused()
        if learner.records - noted >= every:
            noted = learner.records
            seen.note()
            progress(learner.records, total)
    if not learner.started:
        raise SourceError("the stream gave no record that could be learned", where=config.name)
    learner.end_of_stream()
    progress(total, total)
    seconds = time.perf_counter() - begun - seen.test_seconds - learner.prequential.version.seconds
    source.close()
    learner.observers.tell("on_stop")
    return seen.result(seconds)


class _SeedRun:
    """What one seed's run collects."""

    learner: Learner

    def __init__(self, tests: Sequence[TestSet]) -> None:
        self.tests = tests
        self.rows: dict[str, dict[str, list[float]]] = {"student": {}, "served": {}}
        self.ended: list[str] = []
        self.taken = -REFRESH
        self.refused = 0
        self.gains: dict[str, list[dict[str, float]]] = {}
        self.weights: list[dict[str, Any]] = []
        self.test_seconds = 0.0

    def task_ended(self, task: str) -> None:
        """Test student and served model on every task; a task that recurs keeps its last row, and that comes last."""
        begun = time.perf_counter()
        self.ended = [*(name for name in self.ended if name != task), task]
        for name, model in self._models().items():
            self.rows[name][task] = [self._accuracy(model, test) for test in self.tests]
        for key, gain in self.learner.step.pool.worth.items():
            self.gains.setdefault(key, []).append({"record": self.learner.records, "marginal_gain": gain})
        self.test_seconds += time.perf_counter() - begun

    def refresh(self) -> None:
        """What answers arriving records is replaced when it is ``REFRESH`` records old."""
        if self.learner.started and self.learner.records - self.taken >= REFRESH:
            begun = time.perf_counter()
            self.learner.prequential.version.take(copy_of(self.learner.served))
            self.taken = self.learner.records
            self.test_seconds += time.perf_counter() - begun

    def count_refused(self) -> None:
        """Records that are damaged or without label are told; a run keeps none of them."""
        self.refused += sum(len(batch.rejects) for batch in self.learner.dead)
        self.learner.dead.clear()

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
        return adapter.seconds + self.learner.step.weighing_seconds if adapter else 0.0

    def result(self, seconds: float) -> dict[str, Any]:
        """The seed's part of the report."""
        learner = self.learner
        adapter = learner.adapter
        self._refuse_unlearned()
        sides = {name: self._summary(name, model) for name, model in self._models().items()}
        return {
            "seed": learner.config.seed,
            "tests": self._tested(),
            **sides,
            "fidelity": self._fidelity(),
            "gate": {
                "weights": self.weights,
                "overhead_ratio": self._upkeep_seconds() / seconds,
                "adaptations": adapter.adaptations if adapter else 0,
                "engine": adapter.engine_in_use if adapter else None,
            },
            "efficiency": efficiency.measure(learner.served, self._newest()),
            "throughput": {
                "samples_per_second": learner.records / seconds,
                "seconds": seconds,
                "records": learner.records,
            },
            "teachers": [{"name": name, "marginal_gain": gains} for name, gains in self.gains.items()],
            "boundaries": [
                {"record": b.record, "detector": b.detector, "task": b.task} for b in learner.tasks.boundaries
            ],
            "history": learner.quality.history,
            "tasks": len(learner.tasks.names),
            "classes": len(learner.labels),
            "refused": self.refused,
        }

    def _newest(self) -> Tensor:
        """Some records [n, *shape] of the last step."""
        assert self.learner.last is not None  # one was learned at least
        return self.learner.last.plan.x[:32]

    @property
    def _named(self) -> bool:
        """Whether tests are of tasks that the stream names; else there are none, or detectors made the tasks up."""
        return bool(self.tests) and not all(map(boundary.is_made, self.ended))

    def _refuse_unlearned(self) -> None:
        """A task that the stream names, has test records of and never was the learner's has no place in the matrix."""
        missing = [test.task for test in self.tests if test.task not in self.ended]
        if self._named and missing:
            raise SourceError(
                f"there are test records of {listed(missing)}, which never was the learner's task; it learned "
                f"{listed(self.ended)}: accuracies task by task would leave some records out",
                where="stream.source",
                fix="either no record of it came (leave its test records out), or only among those of another task in "
                "one batch (lower stream.batch.size); without stream.records.task the end is tested over all records",
            )

    def _tested(self) -> dict[str, Any]:
        """What was tested on, of what there is, and how it is compared."""
        tasks = {test.task for test in self.tests}
        known = set(self.learner.labels.labels)
        return {
            "records": sum(len(test.labels) for test in self.tests),
            "given": sum(test.given for test in self.tests),
            "of_labels_never_learned": sum(label not in known for test in self.tests for label in test.labels),
            "by_task": self._named,
            "untested": [task for task in self.ended if task not in tasks] if self._named else [],
            "sets": [{"task": t.task, "records": len(t.labels), "given": t.given} for t in self.tests],
        }

    def _matrix(self, name: str) -> tuple[np.ndarray, list[TestSet]]:
        """Accuracies after each task on each, in the order of their ends, and their tests; the last row is the end.

        Where the stream names no tasks, there is one row and one column: the end, over all tests.
        """
        rows, end = self.rows[name], self.rows[name][self.ended[-1]]
        if not self._named:
            sizes = [len(test.labels) for test in self.tests]
            return np.array([[np.average(end, weights=sizes)]]), list(self.tests)
        place = {test.task: index for index, test in enumerate(self.tests)}
        order = [task for task in self.ended if task in place]
        found = [rows[task] for task in order[:-1]] + [end]
        return np.array([[row[place[task]] for task in order] for row in found]), [self.tests[place[t]] for t in order]

    def _summary(self, name: str, model: Model) -> dict[str, Any]:
        """The report's object of one model: over all test records, and over all that arrived."""
        arriving = self.learner.prequential.student if name == "student" else self.learner.prequential.version.measures
        tested = self._tested_model(name, model, arriving.overall) if self.tests else report.untested(arriving.overall)
        tested["measures"]["arrival"] = arriving.figures(self.learner.labels.labels)["all"]
        if name == "served":
            tested["accuracy"] |= {"prequential_records": arriving.records, "refresh_records": REFRESH}
        return tested

    def _tested_model(self, name: str, model: Model, prequential: float | None) -> dict[str, Any]:
        """What the test records say of one model."""
        matrix, tests = self._matrix(name)
        untrained = self.learner.fresh_student(model.classes)
        baseline = np.array([self._accuracy(untrained, test) for test in tests])
        said = np.concatenate([probabilities(model, test.x) for test in tests])
        columns = np.concatenate([self._columns(test).numpy() for test in tests])
        found = report.assess(matrix, prequential, said, columns, baseline if self._named else None)
        found["measures"] = {"tests": measures.of_tests(*self._every_label(tests), said)}
        ends = self.rows[name][self.ended[-1]]
        pairs = zip(self.tests, ends, strict=True)
        found["accuracy"]["per_test"] = [{"task": test.task, "accuracy": end} for test, end in pairs]
        if not self._named and (len(self.tests) > 1 or len(self.ended) > 1):
            found["accuracy"]["anytime_average"] = None  # which records belong to the tasks so far, nobody knows
        return found

    def _every_label(self, tests: Sequence[TestSet]) -> tuple[list[Any], np.ndarray]:
        """All labels, those behind the learner's that were never learned, and the column of each test record."""
        column = {label: place for place, label in enumerate(self.learner.labels.labels)}
        columns = [column.setdefault(label, len(column)) for test in tests for label in test.labels]
        return list(column), np.array(columns)

    def _accuracy(self, model: Model, test: TestSet) -> float:
        return float((probabilities(model, test.x).argmax(1) == self._columns(test).numpy()).mean())

    def _fidelity(self) -> list[dict[str, Any]]:
        """Of each teacher that answers by itself, on all test records: the student's agreement with it, its accuracy.

        The accuracy is the mean over the tests, as the student's is at the end.
        """
        if not self.tests:
            return []
        x = torch.cat([test.x for test in self.tests])
        ours = probabilities(self.learner.student, x)
        rows = []
        for teacher in self.learner.step.pool.teachers:
            known = teacher.known()
            if teacher.role not in ("remembered", "prequential") and known.any():
                theirs, mask = probabilities_over(teacher.logits, known, x), known.cpu().numpy()
                agreement, kl = fidelity.agreement(ours, theirs, mask), fidelity.kl(ours, theirs, mask)
                right = theirs.argmax(1) == np.concatenate([self._columns(test).numpy() for test in self.tests])
                ends = np.cumsum([len(test.labels) for test in self.tests])[:-1]
                alone = float(np.mean([part.mean() for part in np.split(right, ends)]))
                rows.append({"teacher": teacher.key, "agreement": agreement, "kl": kl, "accuracy": alone})
        return rows
