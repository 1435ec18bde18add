"""A stream of few positives: the measures equal scikit-learn's of what was answered, and weights find more of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics

from streamkd import config as configuration
from streamkd.evaluate.arrival import Predict
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.serve.processes.learner_status import status_of
from streamkd.teachers.teacher import copy_of
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()


def learner(folder: Path, **publish: Any) -> Learner:
    """On 1,500 records of which one in twenty is of class 1, partly hidden among the others."""
    draw = np.random.default_rng(0)
    labels = (draw.random(1_500) < 1 / 20).astype(np.int64)
    columns = {f"c{i}": draw.normal(1.5 * labels * (i < 2), 1).astype(np.float32) for i in range(4)}
    pq.write_table(pa.table({"label": labels, **columns}), folder / "rare.parquet")
    tree = {
        "stream": {
            "source": {"name": "replay", "path": str(folder / "rare.parquet"), "order": "given"},
            "records": {"inputs": [{"name": name} for name in columns], "label_type": "int"},
        },
        "detectors": [],
        "student": {"name": "mlp", "hidden": [8]},
        "memory": {"size": 100, "replay": 20},
        "teachers": [{"name": "ema"}, {"name": "linear"}],
        "adapt": {"every": 0, "on_task_steps": 0},
        "publish": publish,
        "device": "cpu",
    }
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    return Learner(config, REGISTRY, open_source(config, REGISTRY, schema)[0], schema)


def answered(one: Learner) -> tuple[np.ndarray, np.ndarray]:
    """Run it; labels and probabilities of class 1 as users were told, by a copy that is new every two hundred."""
    said: list[torch.Tensor] = []
    labels: list[int] = []

    def heard(model: Predict) -> Predict:
        def predict(x: torch.Tensor) -> torch.Tensor:
            said.append(model(x))
            return said[-1]

        return predict

    while one.advance():
        assert one.last is not None
        labels += [one.labels.labels[column] for column in one.last.plan.y[: one.last.fresh].tolist()]
        if one.steps % 20 == 1 and len(one.labels) == 2:
            one.prequential.version.take(heard(copy_of(one.served)))
    assert one.prequential.version.measures.records == sum(map(len, said))
    rows = torch.softmax(torch.cat(said).double(), 1).numpy()
    return np.array(labels[-len(rows) :]), rows[:, one.labels.labels.index(1)]


def test_recall_f1_and_area_are_scikit_learns(tmp_path: Path) -> None:
    """As the status has them, of all records and of the newest thousand."""
    one = learner(tmp_path)
    labels, scores = answered(one)
    told = status_of(one, 0.0, 1, 1)["measures"]
    for which, part in (("all", slice(None)), ("newest", slice(-1_000, None))):
        y, p = labels[part], scores[part]
        rare = next(row for row in told[which]["classes"] if row["label"] == "1")
        assert rare["recall"] == pytest.approx(metrics.recall_score(y, p > 0.5))
        assert rare["f1"] == pytest.approx(metrics.f1_score(y, p > 0.5))
        assert rare["auc"] == pytest.approx(metrics.roc_auc_score(y, p), abs=told[which]["auc_error"] + 1e-12)
        assert told[which]["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, p > 0.5))
        assert told[which]["majority"] == {"label": "0", "share": pytest.approx((y == 0).mean())}


def test_balanced_weights_find_more_of_the_rare_class(tmp_path: Path) -> None:
    """At least half as many again, and they are told apart as well."""
    found = {}
    for weights in (None, "balanced"):
        labels, scores = answered(learner(tmp_path, class_weights=weights))
        found[weights] = metrics.recall_score(labels, scores > 0.5), metrics.roc_auc_score(labels, scores)
    assert found["balanced"][0] > max(0.6, 1.5 * found[None][0])
    assert found["balanced"][1] > found[None][1] - 0.02
