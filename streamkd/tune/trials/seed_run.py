"""One seed's pass over its recording: trains to where it is told, and measures at the stream's own marks.

    recording ─► learner.advance ... ─► mark? ─► accuracy on the validation tasks that have begun ─► Curve

A mark lies where a task gives way to the next, and is measured where ``streamkd run`` measures a task's end: after the
last batch that lies before it wholly, and after the task is closed. One batch later the new task would count with next
to nothing, which no learner can help.

Measuring draws nothing and moves nothing: a pass that is measured more often learns the same.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from streamkd.config import Config
from streamkd.errors import SourceError, TrialFailed
from streamkd.evaluate import efficiency
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.streams.encoding import codec
from streamkd.students.networks import at_rest
from streamkd.teachers.served import Model
from streamkd.tune.trials.objective import Curve, Objective, Point
from streamkd.tune.trials.recording import Recording, ValidationTask

BATCH = 512  # validation records per forward pass
FINE = 50  # points of a pass, about, where an objective needs them within the tasks
TIMED_STEPS = 1_000
TIMED_SECONDS = 0.1


class SeedRun:
    """One learner on one recording, with what was measured so far; ``seconds`` include ``validation_seconds``.

    ``beat`` is called after each batch.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        recording: Recording,
        wanted: Iterable[Objective],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.recording = recording
        self._wanted = tuple(wanted)
        self._beat = beat
        self._learner = Learner(config, registry, recording.source(), recording.schema, on_batch=self._passed)
        self._tests = [(task, *_tensors(task, recording)) for task in recording.tasks]
        self._stops = _stops(recording.marks, any(one.fine for one in self._wanted))
        self._points: list[Point] = []
        self._ended = False
        self._asked = 0
        self._step_seconds: deque[float] = deque(maxlen=TIMED_STEPS)
        self.seconds = self.validation_seconds = 0.0

    @property
    def records(self) -> int:
        """The offset: records that were read, good or not."""
        return sum(self._learner.offsets.values())

    def advance(self, records: int) -> None:
        """Train until so many records have been seen, or to the end; marks on the way are measured.

        Raises:
            TrialFailed: ``nan``: a loss or an answer is not finite. SourceError: no record could be learned.
        """
        begun, self._asked = time.perf_counter(), records
        while self.records < records and not self._ended:
            self._step()
            if self.records == self.recording.total:
                self._end()
        self.seconds += time.perf_counter() - begun

    def _step(self) -> None:
        begun, validated = time.perf_counter(), self.validation_seconds
        self._learner.advance()
        self._beat()
        validated = self.validation_seconds - validated
        self._step_seconds.append(time.perf_counter() - begun - validated)
        report = self._learner.last
        if report is not None and report.skipped:
            raise TrialFailed("nan", f"the loss after {self.records} records is {report.loss}", where=self._where)

    def _passed(self) -> None:
        """Measure, where a batch that is about to be learned goes beyond a stop."""
        passed = [stop for stop in self._stops if self._measured_to < stop < self.records]
        marks = [stop for stop in passed if stop in self.recording.marks]
        if marks:
            self._points.append(self._measured(marks[-1]))
        elif passed:
            self._points.append(self._measured(passed[-1], within=True))

    @property
    def _measured_to(self) -> int:
        return self._points[-1].records if self._points else 0

    def _end(self) -> None:
        if not self._learner.started:
            raise SourceError("the stream gave no record that could be learned", where=self._where)
        self._learner.end_of_stream()
        self._ended = True
        self._points.append(self._measured(self.recording.total))

    @property
    def _where(self) -> str:
        return f"seed {self.recording.seed}"

    def curve(self) -> Curve:
        """What was measured at the marks, and here: at the mark itself, where the pass was asked to stop at one."""
        points = list(self._points)
        begun = time.perf_counter()
        at_mark = points and points[-1].place == "mark" and points[-1].records >= self._asked
        if self._learner.started and not self._ended and not at_mark:
            points.append(replace(self._measured(self.records), place="stop"))
        predicted = self._prediction_seconds() if any(one.timed for one in self._wanted) else 0.0
        self.seconds += time.perf_counter() - begun
        spans = {task.name: (task.begins, task.ends) for task in self.recording.tasks}
        stepped = efficiency.percentiles(self._step_seconds)[1] if self._step_seconds else 0.0
        return Curve(tuple(points), spans, stepped, predicted)

    def _measured(self, at: int, within: bool = False) -> Point:
        """Accuracy now on the tasks that have begun at a record; ``within``: on those of them that are not over."""
        begun = time.perf_counter()
        tests = [test for test in self._tests if test[0].begins < at]
        if within:
            tests = [test for test in tests if at <= test[0].ends]
        served = self._accuracies(self._learner.served, tests)
        wanted = any(one.student for one in self._wanted) and not within
        student = self._accuracies(self._learner.student, tests) if wanted else {}
        self.validation_seconds += time.perf_counter() - begun
        return Point(at, served, student, "within" if within else "mark")

    @torch.no_grad()
    def _accuracies(self, model: Model, tests: list[tuple[ValidationTask, Tensor, list[Any]]]) -> dict[str, float]:
        if not tests:
            return {}
        index = {label: column for column, label in enumerate(self._learner.labels.labels)}
        columns = torch.tensor([index.get(label, -1) for _, _, labels in tests for label in labels])
        x = torch.cat([x for _, x, _ in tests]).to(self._learner.device)
        with at_rest(model):
            logits = torch.cat([model(part) for part in x.split(BATCH)]).cpu()
        if not bool(torch.isfinite(logits.logsumexp(1)).all()):
            raise TrialFailed("nan", f"an answer after {self.records} records is not finite", where=self._where)
        right = (logits.argmax(1) == columns).split([len(labels) for _, _, labels in tests])
        return {task.name: float(part.float().mean()) for (task, _, _), part in zip(tests, right, strict=True)}

    def _prediction_seconds(self) -> float:
        x = self._tests[0][1][:1].to(self._learner.device)
        with torch.inference_mode(), at_rest(self._learner.served) as served:
            return efficiency.latency(served, x, seconds=TIMED_SECONDS)[1]


def _tensors(task: ValidationTask, recording: Recording) -> tuple[Tensor, list[Any]]:
    records = codec.encode(task.rows, recording.schema, 0)[0].labelled()
    return torch.tensor(records.inputs), list(records.labels)


def _stops(marks: tuple[int, ...], fine: bool) -> tuple[int, ...]:
    """The marks, and even places between them where there is need of such."""
    if not fine:
        return marks
    parts = max(round(FINE / len(marks)), 1)
    between = [
        begins + (ends - begins) * part // parts
        for begins, ends in zip((0, *marks[:-1]), marks, strict=True)
        for part in range(1, parts)
    ]
    return tuple(sorted({*marks, *between} - {0}))
