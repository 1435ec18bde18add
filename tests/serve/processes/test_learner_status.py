"""How the learner stands, in metrics."""

import math
from typing import Any

import torch
from baselines import REGISTRY

from streamkd import config as configuration
from streamkd.learner import Learner
from streamkd.serve.processes.learner_status import Gauges, status_of
from streamkd.teachers.teacher import copy_of
from streamkd.telemetry import Exposition
from streamkd.wiring import open_source, schema_of


def gauges_of(gate: dict[str, Any], **source: Any) -> Exposition:
    """What is told once a short stream has been learned."""
    learner = learner_of(gate, **source)
    gauges, exposition = Gauges(learner.recorder, learner), Exposition()
    while learner.advance():
        pass
    gauges.record(status_of(learner, 0.0, None), learner)
    exposition.apply(learner.recorder.drain())
    return exposition


def learner_of(gate: dict[str, Any], **source: Any) -> Learner:
    config = configuration.from_tree(
        {
            "stream": {"source": {"name": "replay", "dataset": "digits", **source}},
            "student": {"name": "mlp", "hidden": [8]},
            "memory": {"size": 60, "replay": 10},
            "adapt": {"every": 2},
            "gate": gate,
            "device": "cpu",
        },
        REGISTRY,
    )
    schema = schema_of(config, REGISTRY)
    return Learner(config, REGISTRY, open_source(config, REGISTRY, schema)[0], schema)


def test_the_label_noise_is_told_by_gates_that_measure_it() -> None:
    """Of a third of wrong labels most is found. Of few records nothing can be told, and a fixed gate asks nobody."""
    noisy = gauges_of({"name": "per-sample"}, label_noise=0.33)
    assert (noisy.value("label_noise_ratio") or 0.0) > 0.15
    assert math.isnan(gauges_of({"name": "per-sample"}, label_noise=0.33, limit=100).value("label_noise_ratio") or 0.0)
    assert gauges_of({"name": "fixed"}, limit=100).value("label_noise_ratio") is None


def test_the_hedges_policies_are_told() -> None:
    """Once it was adapted, how far each policy is trusted stands in a gauge; the five sum to 1."""
    exposition = gauges_of({"name": "hedge", "gate": {"name": "scalar"}}, limit=200)
    policies = ("adapted", "frozen", "likelihood", "uniform", "hard-only")
    told = [exposition.value("gate_policy_ratio", policy=policy) for policy in policies]
    assert None not in told
    assert abs(sum(filter(None, told)) - 1) < 1e-5


def test_what_each_plugin_takes_is_told() -> None:
    """Seconds in gate, loss, detector, source and source of rows, each on; no error where there was none."""
    exposition = gauges_of({"name": "fixed"}, limit=100)
    for kind, plugin in {"gate": "fixed", "loss": "match-gate", "detector": "task-column", "source": "replay"}.items():
        assert (exposition.value("plugin_seconds_total", plugin=plugin, kind=kind) or 0.0) > 0
    assert exposition.value("plugin_enabled", plugin="match-gate") == 1
    assert exposition.value("plugin_errors_total", plugin="match-gate", hook="loss") is None


def test_what_comes_again_is_counted() -> None:
    """Three passes over a hundred records: two hundred came again, all of the newest did, and the pass is told."""
    exposition = gauges_of({"name": "fixed"}, per_class=10, repeat=3)
    assert exposition.value("records_repeated_total", source="replay") == 200
    assert (exposition.value("records_repeated_ratio", source="replay") or 0.0) > 0.9
    assert exposition.value("source_pass", source="replay") == 3


def test_before_the_first_record_nothing_is_a_number() -> None:
    """No accuracy, no share of repeats, and none of them as a metric."""
    learner = learner_of({"name": "fixed"}, limit=50)
    status = status_of(learner, 0.0, None)
    assert [status["accuracy"][name] for name in ("served", "student", "holdout", "forgetting")] == [None] * 4
    assert status["repeats"] == {"records": 0, "share": None, "told_apart": True, "pass": None}
    exposition = Exposition()
    Gauges(learner.recorder, learner).record(status, learner)
    exposition.apply(learner.recorder.drain())
    for window in ("served", "student", "holdout"):
        assert exposition.value("eval_accuracy_ratio", window=window) is None


def test_measures_of_all_classes_together_are_metrics() -> None:
    """Of the newest records and of all, as the status has them; no label of a metric is a label of the stream."""
    learner = learner_of({"name": "fixed"}, per_class=20)
    learner.advance()
    learner.prequential.version.take(copy_of(learner.served))
    while learner.advance():
        pass
    status = status_of(learner, 0.0, 7, 5)
    Gauges(learner.recorder, learner).record(status, learner)
    told = {(name, *labels): value for name, labels, value in learner.recorder.drain() if name.startswith("eval_")}
    for window, which in (("served", "newest"), ("served_ever", "all")):
        found = status["measures"][which]
        assert told["eval_balanced_accuracy_ratio", window] == found["balanced_accuracy"]
        assert told["eval_macro_f1_ratio", window] == found["macro_f1"]
        assert told["eval_auc_ratio", window] == found["auc"] > 0.5
        assert told["eval_majority_ratio", window] == found["majority"]["share"]
        assert [told["eval_kappa", name, window] for name in ("cohen", "m")] == [found["kappa"], found["kappa_m"]]
    assert len(told) < 30


def test_the_served_versions_figure_is_not_the_students() -> None:
    """A model that is always wrong answers: that is told as the served one's, and the student's beside it."""
    learner = learner_of({"name": "fixed"}, per_class=20)
    learner.advance()
    learner.prequential.version.take(lambda x: torch.zeros(len(x), 1))
    while learner.advance():
        pass
    accuracy = status_of(learner, 0.0, 7, 5)["accuracy"]
    assert accuracy["served"] < 0.2 < accuracy["student"]
    assert accuracy["served_version"] == 5
