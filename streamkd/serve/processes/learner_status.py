"""How the learner stands: as the status that the page shows, and as the metrics that follow from it.

Called by the learner process once a second; nothing here changes the learner.
"""

import math
from collections.abc import Mapping
from typing import Any

from streamkd.gates.gate import Mixing
from streamkd.learner import Learner
from streamkd.records import Repeating
from streamkd.serve.processes.messages import Json
from streamkd.teachers import guard
from streamkd.telemetry import Recorder

TASKS = 1_000  # names that are told
BOUNDARIES = 240  # the page's strip has as many points of history
MEASURES = {
    "eval_balanced_accuracy_ratio": "balanced_accuracy",
    "eval_macro_f1_ratio": "macro_f1",
    "eval_auc_ratio": "auc",
    "eval_log_loss_nats": "log_loss",
    "eval_calibration_error_ratio": "calibration_error",
}
_Series = tuple[Any, ...]  # a family, and its labels as (name, value)
_EACH = {  # a histogram of seconds, and the counter of the times: what each took on average is observed
    "teacher_duration_seconds": "teacher_requests_total",
    "gate_adaptation_duration_seconds": "gate_adaptations_total",
}


def status_of(learner: Learner, rate: float, version: int | None, answering: int | None = None) -> Json:
    """How the learner stands, for the page and for `/v1/status`; ``answering``: the version scored as records come."""
    quality, adapter = learner.quality, learner.adapter
    weights = learner.gate_weights()
    return {
        "records_trained": learner.records,
        "steps": learner.steps,
        "version": version,
        "task": learner.tasks.names[learner.tasks.current] if learner.tasks.names else None,
        "tasks": learner.tasks.names[-TASKS:],
        "classes": learner.labels.labels,
        "accuracy": {
            "served": learner.prequential.version.measures.accuracy,
            "served_version": answering,
            "student": learner.prequential.student.accuracy,
            "delayed": learner.prequential.delayed.accuracy,
            "holdout": quality.accuracy,
            "per_task": quality.per_task,
            "forgetting": quality.forgetting,
        },
        "measures": learner.prequential.version.measures.figures(learner.labels.labels),
        "repeats": _repeats(learner),
        "teachers": _teachers(learner, weights),
        "gate": {
            "hard": weights.get("hard"),
            "weights": {name: weight for name, weight in weights.items() if name != "hard"},
            "adaptations": adapter.adaptations if adapter else 0,
            "faults": adapter.faults.total() if adapter else 0,
            "engine": adapter.engine_in_use if adapter else None,
            "adaptation_seconds": adapter.seconds / adapter.adaptations if adapter and adapter.adaptations else None,
            "label_noise": learner.step.pool.noise if learner.started else None,
            "label_noise_asked": learner.started and learner.step.pool.asks_noise,
        },
        "producers": _producers(learner),
        "boundaries": [
            {"record": b.record, "detector": b.detector, "task": b.task} for b in learner.tasks.boundaries[-BOUNDARIES:]
        ],
        "samples_per_second": rate,
        "batch": {
            "records": learner.feed.pace.rows,
            "rehearsals": learner.feed.pace.gear.rehearsals,
            "pace": learner.config.stream.batch.pace,
        },
        "loss": float(learner.last.loss) if learner.last else None,
        "device": str(learner.device),
        "history": quality.history,
    }


def _producers(learner: Learner) -> list[Json]:
    """Of each producer of labels, how many were compared and what part is wrong beyond what is of all."""
    if (known := learner.producers) is None:
        return []
    records = known.records
    return [{"name": name, "records": records[name], "noise": noise} for name, noise in known.noise.items()]


def _repeats(learner: Learner) -> Json:
    """What came again: records, their part of the newest, the pass of a source that knows it.

    ``told_apart``: whether the same inputs are taken for the same record.
    """
    source = learner.source
    newest = [(partition, offset - 1) for partition, offset in learner.offsets.items() if offset]
    turns = [source.turn(*place) for place in newest] if isinstance(source, Repeating) else []
    known = learner.step.memory.duplicates if learner.started else None
    return {
        "records": known.repeats if known else 0,
        "share": known.share if known and known.records else None,
        "told_apart": known is None or known.tells_apart,
        "pass": max((turn for turn in turns if turn is not None), default=None),
    }


def _teachers(learner: Learner, weights: Mapping[str, float]) -> list[Json]:
    if not learner.started:
        return []
    pool = learner.step.pool
    kinds = {choice.key: choice.name for choice in learner.config.teachers}
    shares = learner.step.mixture.share.weights
    return [
        {
            "name": teacher.key,
            "kind": kinds[guard.group(teacher)],
            "marginal_gain": pool.worth.get(teacher.key),
            "accuracy": pool.accuracy.get(teacher.key),
            "weight": weights.get(teacher.key),
            "share": shares.get(teacher.key),
            "teaches": teacher in pool.teachers,
            "away": getattr(teacher, "away", False),
            "classes": int(teacher.known().sum()) or None,
            "bytes": pool.bytes_of(teacher),
        }
        for teacher in pool.everybody
    ]


def _totals(learner: Learner) -> dict[_Series, float]:
    """What only rises, as the learner has it: a counter's count, a histogram's seconds."""
    source = ("source", learner.config.stream.source.name)
    totals: dict[_Series, float] = {
        ("train_steps_total",): learner.steps,
        ("train_samples_total",): learner.records,
        ("train_pace_changes_total",): learner.feed.pace.changes,
        ("records_repeated_total", source): _repeats(learner)["records"],
    }
    if learner.feed.pulled:
        totals["source_records_total", source] = learner.records
        totals["plugin_seconds_total", ("plugin", source[1]), ("kind", "source")] = learner.feed.seconds
    if (adapter := learner.adapter) is not None:
        totals[("gate_adaptations_total",)] = adapter.adaptations
        totals[("gate_adaptation_duration_seconds",)] = adapter.seconds
        for reason, faults in adapter.faults.items():
            totals["gate_adaptation_faults_total", ("reason", reason)] = faults
    for key, calls in learner.step.pool.guard.tallies.items() if learner.started else ():
        teacher = ("teacher", key)
        totals["teacher_requests_total", teacher] = calls.requests
        totals["teacher_duration_seconds", teacher] = calls.seconds
        totals["teacher_cache_hits_total", teacher] = calls.cached
        for reason, count in ({"raised": 0} | calls.failures).items():
            totals["teacher_failures_total", teacher, ("reason", reason)] = count
    for each in learner.strikes:
        for (plugin, hook), count in each.errors.items():
            totals["plugin_errors_total", ("plugin", plugin), ("hook", hook)] = count
        for plugin, seconds in each.seconds.items():
            totals["plugin_seconds_total", ("plugin", plugin), ("kind", each.kind)] = seconds
    return totals


class Gauges:
    """The metrics that follow from a status, and the counters that rose since the last one."""

    def __init__(self, recorder: Recorder, learner: Learner) -> None:
        self._recorder = recorder
        self._totals = _totals(learner)  # a learner that was restored does not begin from 0
        self._teachers: set[str] = set()

    def record(self, status: Json, learner: Learner) -> None:
        """Take a status and what the learner has counted."""
        accuracy, repeats, source = status["accuracy"], status["repeats"], learner.config.stream.source.name
        for window in ("served", "student", "delayed", "holdout"):
            self._set("eval_accuracy_ratio", accuracy[window], window=window)
        for window, which in (("served", "newest"), ("served_ever", "all")):
            self._record_measures(status["measures"][which], window)
        self._set("eval_forgetting_ratio", accuracy["forgetting"], window="holdout")
        self._set("train_loss", status["loss"], loss="total")
        self._set("train_batch_records", status["batch"]["records"])
        self._set("train_rehearsals", status["batch"]["rehearsals"])
        self._set("train_last_step_timestamp_seconds", learner.last_step_at)
        for index, group in enumerate(learner.step.optimizer.param_groups if learner.started else []):
            self._recorder.set("train_learning_rate", float(group["lr"]), group=str(index))
        self._set("records_repeated_ratio", repeats["share"], source=source)
        self._set("source_pass", repeats["pass"], source=source)
        self._record_teachers(status, learner)
        for each in learner.strikes:
            for plugin in {*each.seconds, *(learner.observers.names if each is learner.observers.strikes else ())}:
                self._recorder.set("plugin_enabled", float(not each.off(plugin)), plugin=plugin)
        self._record_gate(learner, self._count(_totals(learner)))

    def _record_measures(self, found: Json, window: str) -> None:
        """Of all classes together: one for each would be a series for each label that comes."""
        if not found["records"]:
            return
        self._set("eval_majority_ratio", found["majority"]["share"], window=window)
        for family, name in MEASURES.items():
            self._set(family, found[name], window=window)
        for kappa, name in (("cohen", "kappa"), ("temporal", "kappa_temporal"), ("m", "kappa_m")):
            self._set("eval_kappa", found[name], kappa=kappa, window=window)

    def _set(self, family: str, value: float | None, **labels: str) -> None:
        """Of what is not known yet nothing is told."""
        if value is not None:
            self._recorder.set(family, value, **labels)

    def _count(self, totals: dict[_Series, float]) -> dict[_Series, float]:
        """Count what has risen since the last time; by how much. A counter is told before it has risen, too."""
        risen = {series: total - self._totals.get(series, 0) for series, total in totals.items()}
        self._totals = totals
        for (family, *labels), more in risen.items():
            if family not in _EACH:
                self._recorder.count(family, more, **dict(labels))
            elif times := risen.get((_EACH[family], *labels)):
                self._recorder.observe(family, more / times, **dict(labels))
        return risen

    def _record_teachers(self, status: Json, learner: Learner) -> None:
        recorder = self._recorder
        recorder.set("teachers", len(status["teachers"]))
        for name, weight in learner.gate_weights().items():
            recorder.set("gate_weight_ratio", weight, teacher=name)
        if status["gate"]["label_noise_asked"]:
            noise = status["gate"]["label_noise"]
            recorder.set("label_noise_ratio", math.nan if noise is None else noise)
        for producer in status["producers"]:
            recorder.set("producer_noise_ratio", producer["noise"], producer=producer["name"])
        for teacher in status["teachers"]:
            self._set("teacher_marginal_gain_ratio", teacher["marginal_gain"], teacher=teacher["name"])
        names = {teacher["name"] for teacher in status["teachers"]}
        for gone in self._teachers - names:
            recorder.remove("teacher_marginal_gain_ratio", teacher=gone)
            recorder.remove("gate_weight_ratio", teacher=gone)
        self._teachers = names

    def _record_gate(self, learner: Learner, risen: Mapping[_Series, float]) -> None:
        if (adapter := learner.adapter) is None:
            return
        self._recorder.set("gate_forward_mode", float(adapter.lacking is None))
        if not risen[("gate_adaptations_total",)]:
            return
        self._recorder.set("gate_outer_loss", adapter.outer_loss)
        if isinstance(gate := learner.step.gate, Mixing):
            for policy, trusted in gate.odds().items():
                self._recorder.set("gate_policy_ratio", trusted, policy=policy)
