"""The door to Prometheus: one declared table of families, recorded anywhere, exposed by one process.

    learner, ingress: Recorder.count/set/observe ─► drain() ─► channel ─► supervisor: Exposition.apply ─► /metrics

One process owns the numbers, the others send what changed since their last message; a child that is
restarted goes on where the sums stand. Label values are closed sets or bounded by the configuration,
and ``SERIES`` is the ceiling of all families together.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from streamkd.errors import StreamkdError

FamilyType = Literal["counter", "gauge", "histogram"]
PREFIX = "streamkd_"
SERIES = 499
HELD = 4 * SERIES  # series that a recorder keeps between two drains: more than are ever exposed, and no more
VALUE = 256  # characters of a label's value
FAST = (0.0005, 0.002, 0.005, 0.02, 0.05, 0.2, 1.0)
SLOW = (0.01, 0.05, 0.2, 1.0, 5.0, 20.0)
TRIALS = (1.0, 10.0, 60.0, 600.0, 3600.0)
ROWS = (1, 4, 16, 64, 256, 1024)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """One metric family: its type, what it means, and the names of its labels."""

    type: FamilyType
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(help: str, *labels: str) -> Family:
    return Family("counter", help, labels)


def _gauge(help: str, *labels: str) -> Family:
    return Family("gauge", help, labels)


def _histogram(help: str, buckets: tuple[float, ...], *labels: str) -> Family:
    return Family("histogram", help, labels, buckets)


FAMILIES: Mapping[str, Family] = {
    "build_info": _gauge("Always 1; the labels say what runs.", "version", "python", "torch", "platform"),
    "ready": _gauge("1 when every endpoint of the configuration accepts connections."),
    "process_up": _gauge("1 while the child process runs.", "process"),
    "process_restarts_total": _counter("Child processes started again after they died.", "process"),
    "process_hangs_total": _counter("Child processes killed because they were silent for too long.", "process"),
    "process_heartbeat_age_seconds": _gauge("Time since the child's main loop was last known to go on.", "process"),
    "telemetry_dropped_total": _counter("Statuses and metrics that could not be told; nothing else is lost.", "kind"),
    "source_records_total": _counter("Records accepted from the source.", "source"),
    "source_bytes_total": _counter("Bytes accepted from the source.", "source"),
    "source_errors_total": _counter("Failures to read the source or to take a batch.", "source", "reason"),
    "source_lag_records": _gauge("Records that are there and not yet trained.", "source"),
    "source_paused": _gauge("1 while the source is held back.", "source"),
    "source_watermark_timestamp_seconds": _gauge("Event time of the newest record.", "source"),
    "records_rejected_total": _counter("Records refused, by reason.", "source", "reason"),
    "records_unlabelled_total": _counter("Records that came without label, and were not refused for it.", "source"),
    "dead_letter_records_total": _counter("Records written to the dead letters.", "source", "reason"),
    "records_duplicate_total": _counter("Records that a producer sent again.", "source"),
    "records_repeated_total": _counter("Records whose inputs had come before, as far as that is remembered.", "source"),
    "records_repeated_ratio": _gauge("Part of the newest records whose inputs had come before.", "source"),
    "source_pass": _gauge("Pass (epoch) over its records of a source that repeats them, from 1 on.", "source"),
    "queue_records": _gauge("Records waiting in the queue.", "queue"),
    "queue_capacity_records": _gauge("Records that the queue can hold.", "queue"),
    "train_steps_total": _counter("Optimiser steps."),
    "train_samples_total": _counter("Records taken in steps, held-out ones among them; replay not counted."),
    "train_steps_skipped_total": _counter("Steps that were left out.", "reason"),
    "train_step_duration_seconds": _histogram("Duration of a step.", FAST),
    "train_loss": _gauge("Loss of the last step.", "loss"),
    "train_learning_rate": _gauge("Learning rate in use.", "group"),
    "train_last_step_timestamp_seconds": _gauge("When the last step ended."),
    "tasks_total": _counter("Tasks begun."),
    "task_boundaries_total": _counter("Boundaries between tasks, by detector.", "detector"),
    "eval_accuracy_ratio": _gauge(
        "Of the newest records, each before it was learned: by the version served then (served), by the network in "
        "training (student). Of the newest model on records never learned: mean over the tasks (holdout).",
        "window",
    ),
    "eval_forgetting_ratio": _gauge("What each task had at best on held-out records minus now, mean.", "window"),
    "avalanche_metric": _gauge("Last value of an Avalanche metric, by Avalanche's name for it.", "metric"),
    "gate_weight_ratio": _gauge(
        "Mean gate weight over the rows of the last step, by teacher; `hard` is the label's own.", "teacher"
    ),
    "gate_policy_ratio": _gauge(
        "Weight of a policy in a gate that mixes several: the posterior of the hedge.", "policy"
    ),
    "label_noise_ratio": _gauge(
        "Estimated label noise: part of the labels that are wrong; NaN where it cannot be told, ignored below 0.05."
    ),
    "gate_adaptations_total": _counter("Meta-adaptations of the gate."),
    "gate_adaptation_faults_total": _counter(
        "Meta-adaptations that were left out (memory, not_finite) or taken by finite differences for once (forward).",
        "reason",
    ),
    "gate_forward_mode": _gauge("1, or 0 where an operator has no forward mode and finite differences are taken."),
    "gate_adaptation_duration_seconds": _histogram("Duration of a meta-adaptation.", SLOW),
    "gate_outer_loss": _gauge("Outer loss of the last meta-adaptation."),
    "teachers": _gauge("Teachers in the pool."),
    "teacher_marginal_gain_ratio": _gauge(
        "Held-out probability of the label that the pool would lose without the teacher.", "teacher"
    ),
    "teacher_requests_total": _counter("Batches that the teacher was asked about.", "teacher"),
    "teacher_failures_total": _counter("Batches that the teacher failed on.", "teacher", "reason"),
    "teacher_duration_seconds": _histogram(
        "Mean duration of a teacher's answers between two reports.", SLOW, "teacher"
    ),
    "teacher_cache_hits_total": _counter("Samples answered by logits that are kept in the memory.", "teacher"),
    "predict_requests_total": _counter("Prediction requests.", "protocol"),
    "predict_failures_total": _counter("Prediction requests without a prediction.", "protocol", "reason"),
    "predict_duration_seconds": _histogram("Duration of a prediction request.", FAST, "protocol"),
    "predict_queue_duration_seconds": _histogram("Wait before the forward pass.", FAST),
    "predict_batch_size": _histogram("Rows of a forward pass.", ROWS),
    "predict_in_flight": _gauge("Prediction requests being answered.", "protocol"),
    "model_version": _gauge("Version that answers."),
    "model_pinned": _gauge("1 while a rollback is pinned, so that newer versions are not served."),
    "model_lag_records": _gauge("Records trained since the served version was cut."),
    "model_published_timestamp_seconds": _gauge("When the served version was published."),
    "model_swaps_total": _counter("Versions swapped in."),
    "model_swaps_rejected_total": _counter("Versions not published or not swapped in.", "reason"),
    "model_swap_duration_seconds": _histogram("Time to load and swap a version.", SLOW),
    "checkpoints_total": _counter("Checkpoints committed."),
    "checkpoint_failures_total": _counter("Checkpoints that failed.", "reason"),
    "checkpoint_duration_seconds": _histogram("Duration of a checkpoint.", SLOW),
    "checkpoint_size_bytes": _gauge("Bytes of the last checkpoint."),
    "checkpoint_last_success_timestamp_seconds": _gauge("When the last checkpoint was committed."),
    "plugin_enabled": _gauge("1 for a plugin that is on, 0 for one that failed.", "plugin"),
    "plugin_errors_total": _counter("Errors of a plugin.", "plugin", "hook"),
    "auth_failures_total": _counter("Requests refused for their token.", "protocol"),
    "tune_trials": _gauge("Trials of a search, by state.", "state"),
    "tune_best_objective": _gauge("Best figure of a finished trial.", "objective"),
    "tune_trial_seconds": _histogram("Duration of a trial that is over.", TRIALS),
}


_Series = tuple[str, tuple[str, ...]]  # a family and the values of its labels
_DROPPED: _Series = ("telemetry_dropped_total", ("series",))


class Recorder:
    """What happened since the last ``drain``; cheap, thread safe, and without Prometheus."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[_Series, Any] = {}

    def count(self, family: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        if amount < 0:
            raise StreamkdError(f"a counter only rises, got {amount}", where=f"metric {family}")
        key = _key(family, "counter", labels)
        with self._lock:
            if self._has_room(key):
                self._values[key] = self._values.get(key, 0.0) + amount

    def set(self, family: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        key = _key(family, "gauge", labels)
        with self._lock:
            if self._has_room(key):
                self._values[key] = float(value)

    def remove(self, family: str, **labels: str) -> None:
        """Take a gauge's series away: a teacher left the pool, and its last worth is no worth."""
        key = _key(family, "gauge", labels)
        with self._lock:
            if self._has_room(key):
                self._values[key] = None

    def observe(self, family: str, value: float, **labels: str) -> None:
        """Add one value to a histogram."""
        key = _key(family, "histogram", labels)
        buckets = FAMILIES[family].buckets
        place = next((i for i, bound in enumerate(buckets) if value <= bound), len(buckets))
        with self._lock:
            if self._has_room(key):
                counts = self._values.setdefault(key, [0.0] + [0] * (len(buckets) + 1))
                counts[0] += float(value)
                counts[1 + place] += 1

    def _has_room(self, key: _Series) -> bool:
        """Whether a series may be kept; one that may not is counted."""
        if key in self._values or len(self._values) < HELD:
            return True
        self._values[_DROPPED] = self._values.get(_DROPPED, 0.0) + 1
        return False

    def drain(self) -> list[list[Any]]:
        """The changes since the last call, as JSON: [family, [label values], amount | value | [sum, *counts]]."""
        with self._lock:
            values, self._values = self._values, {}
        return [[family, list(labels), value] for (family, labels), value in values.items()]


class Exposition:
    """The sums of all processes, and the text that Prometheus reads. Owned by the supervisor."""

    def __init__(self, series: int = SERIES) -> None:
        self._lock = threading.Lock()
        # families without labels always have their place: no flood of labels may push out what alerts are made of
        self._room = series - sum(_cost(family) for family in FAMILIES.values() if not family.labels)
        self._refused: set[str] = set()
        self._values: dict[str, dict[tuple[str, ...], Any]] = {}
        self.apply([[name, [], _empty(family)] for name, family in FAMILIES.items() if _from_start(family)])

    def apply(self, deltas: Iterable[Any]) -> None:
        """Add what a recorder drained. A delta that is no delta of the table is refused whole.

        Raises:
            StreamkdError: an unknown family, other labels, or a value of another type.
        """
        checked = [_checked(delta) for delta in deltas]
        with self._lock:
            for name, labels, value in checked:
                self._add(name, labels, value)

    def _add(self, name: str, labels: tuple[str, ...], value: Any) -> None:
        family, series = FAMILIES[name], self._values.setdefault(name, {})
        if value is None:
            self._room += _cost(family) if labels and series.pop(labels, None) is not None else 0
            return
        if labels not in series:
            if labels and self._room < _cost(family):
                self._refuse(name, labels)
                return
            self._room -= _cost(family) if labels else 0
            series[labels] = _empty(family)
        if family.type == "gauge":
            series[labels] = value
        elif family.type == "counter":
            series[labels] += value
        else:
            series[labels] = [a + b for a, b in zip(series[labels], value, strict=True)]

    def _refuse(self, name: str, labels: tuple[str, ...]) -> None:
        if name not in self._refused:
            self._refused.add(name)
            logger.warning("no room for another series of %s%s %s: it is not exposed", PREFIX, name, labels)

    def forget(self, label: str) -> None:
        """Take away every gauge with such a label: who told them is gone, and will tell again what still is."""
        with self._lock:
            for name, family in FAMILIES.items():
                if family.type == "gauge" and label in family.labels:
                    self._room += len(self._values.pop(name, {}))

    def value(self, family: str, **labels: str) -> float | None:
        """A counter's or gauge's value as it stands; ``None`` where nothing was recorded."""
        with self._lock:
            return self._values.get(family, {}).get(_key(family, FAMILIES[family].type, labels)[1])

    def total(self, family: str) -> float:
        """A counter over all its labels."""
        with self._lock:
            return sum(self._values.get(family, {}).values())

    def expose(self) -> tuple[bytes, str]:
        """The text and its content type."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterable[Any]:
        """The families as prometheus_client wants them."""
        with self._lock:
            snapshot = {name: dict(series) for name, series in self._values.items() if series}
        return [_metric(name, FAMILIES[name], snapshot[name]) for name in FAMILIES if name in snapshot]


@contextmanager
def served(exposition: Exposition, port: int) -> Iterator[int]:
    """The exposition on ``http://127.0.0.1:PORT/metrics`` until the end of the block; 0 picks a port. Yields the port.

    Raises:
        StreamkdError: the port is taken.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(exposition)
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as fault:
        said = fault.strerror or fault
        raise StreamkdError(f"needed a free port, got: {said}", where=f"127.0.0.1:{port}", fix="name another") from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _metric(name: str, family: Family, series: Mapping[tuple[str, ...], Any]) -> Any:
    from prometheus_client import core

    if family.type == "histogram":
        histogram = core.HistogramMetricFamily(PREFIX + name, family.help, labels=family.labels)
        for labels, (total, *counts) in series.items():
            histogram.add_metric(labels, _cumulative(family.buckets, counts), total)
        return histogram
    kind = core.CounterMetricFamily if family.type == "counter" else core.GaugeMetricFamily
    metric = kind(PREFIX + name, family.help, labels=family.labels)
    for labels, value in series.items():
        metric.add_metric(labels, value)
    return metric


def _cumulative(buckets: tuple[float, ...], counts: list[float]) -> list[tuple[str, float]]:
    bounds = [*(str(float(bound)) for bound in buckets), "+Inf"]
    return [(bound, sum(counts[: i + 1])) for i, bound in enumerate(bounds)]


def _key(family: str, type: FamilyType, labels: Mapping[str, str]) -> _Series:
    """The place of a series; refused where the table does not declare it."""
    declared = FAMILIES.get(family)
    if declared is None:
        raise StreamkdError("no such metric family", where=f"metric {family}", fix="declare it in FAMILIES")
    if declared.type != type:
        raise StreamkdError(f"is a {declared.type}, used as a {type}", where=f"metric {family}")
    if set(labels) != set(declared.labels):
        needed, got = ", ".join(declared.labels) or "none", ", ".join(labels) or "none"
        raise StreamkdError(f"needed the labels {needed}, got {got}", where=f"metric {family}")
    return family, tuple(str(labels[label])[:VALUE] for label in declared.labels)


def _checked(delta: Any) -> tuple[str, tuple[str, ...], Any]:
    name, labels, value = delta
    family = FAMILIES.get(name)
    if family is None or len(labels) != len(family.labels):
        raise StreamkdError(f"needed a declared family with its labels, got {delta!r}", where="metrics")
    if family.type == "histogram":
        if not isinstance(value, list) or len(value) != len(family.buckets) + 2:
            raise StreamkdError(f"needed a sum and {len(family.buckets) + 1} counts, got {value!r}", where=name)
    elif not isinstance(value, int | float) and not (value is None and family.type == "gauge"):
        raise StreamkdError(f"needed a number, got {value!r}", where=name)
    return name, tuple(map(str, labels)), value


def _cost(family: Family) -> int:
    """Series of one set of label values: a histogram has its buckets, +Inf, a sum and a count."""
    return len(family.buckets) + 3 if family.type == "histogram" else 1


def _empty(family: Family) -> Any:
    return [0.0] + [0] * (len(family.buckets) + 1) if family.type == "histogram" else 0.0


def _from_start(family: Family) -> bool:
    """Counters without labels are there from the start, so that their first rise is a rise."""
    return family.type == "counter" and not family.labels
