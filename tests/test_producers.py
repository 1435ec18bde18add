"""Records that name who labelled them, through the learner: a liar costs little, and is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import toys
from baselines import REGISTRY

from streamkd import config as configuration
from streamkd.learner import Learner
from streamkd.serve.processes.learner_status import Gauges, status_of
from streamkd.state.tree import pack, unpack
from streamkd.telemetry import Exposition
from streamkd.wiring import open_source, schema_of

CENTRES = 2.5 * np.random.default_rng(1).normal(size=(4, 6))


def _rows(count: int, seed: int, lies: float) -> pa.Table:
    """Four clouds of six numbers, labelled by five producers, of whom the first lies so often."""
    draw = np.random.default_rng(seed)
    y, who = draw.integers(0, 4, count), draw.integers(0, 5, count)
    x = (CENTRES[y] + draw.normal(size=(count, 6))).astype(np.float32)
    wrong = (draw.uniform(size=count) < lies) & (who == 0)
    said = np.where(wrong, (y + draw.integers(1, 4, count)) % 4, y)
    names = ["liar" if number == 0 else f"honest-{number}" for number in who]
    return pa.table({"x": list(x), "label": said, "who": names})


def _learner(folder: Path, *, told: bool = True, **settings: Any) -> Learner:
    file = folder / "stream.parquet"
    if not file.exists():
        pq.write_table(_rows(900, 0, 0.4), file)
    records = {"inputs": [{"name": "x", "shape": [6]}], **({"producer": "who"} if told else {})}
    tree = {
        "device": "cpu",
        "stream": {"source": {"name": "replay", "path": str(file), "test_ratio": 0.0}, "records": records},
        "student": {"name": "mlp", "hidden": [16]},
        "memory": {"size": 100, "replay": 20},
        "teachers": toys.TEACHERS,
        "vicinal": {"rows": 0},
        **settings,
    }
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    return Learner(config, REGISTRY, open_source(config, REGISTRY, schema)[0], schema)


def _run(one: Learner, batches: int | None = None) -> Learner:
    while (batches is None or one.steps < batches) and one.advance():
        pass
    return one


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, Path]:
    """The whole stream, its producers told."""
    folder = tmp_path_factory.mktemp("producers")
    return _run(_learner(folder)), folder


def test_the_liar_stands_in_status_and_metrics(learned: tuple[Learner, Path]) -> None:
    """Most of his 0.4 is said, of nobody else more than a little."""
    learner, _ = learned
    status = status_of(learner, 0.0, None)
    noise = {producer["name"]: producer["noise"] for producer in status["producers"]}
    assert len(noise) == 5
    assert noise["liar"] > 0.2
    assert max(value for name, value in noise.items() if name != "liar") < 0.05
    exposition = Exposition()
    Gauges(learner.recorder, learner).record(status, learner)
    exposition.apply(learner.recorder.drain())
    assert exposition.value("producer_noise_ratio", producer="liar") == noise["liar"]


def test_his_wrong_labels_are_not_remembered(learned: tuple[Learner, Path]) -> None:
    """Of the remembered labels fewer are wrong than where nobody knows who gave them."""
    learner, folder = learned
    wrong = []
    for one in (learner, _run(_learner(folder, told=False))):
        ring = one.step.memory.replayed
        x, labels = ring.x[: ring.filled].numpy(), np.array(one.labels.labels)[ring.y[: ring.filled].numpy()]
        wrong.append(float((((x[:, None] - CENTRES) ** 2).sum(2).argmin(1) != labels).mean()))
    assert wrong[0] < wrong[1] - 0.03


def test_stopping_and_resuming_ends_in_the_same_bits(learned: tuple[Learner, Path]) -> None:
    """What is known of producers is part of the checkpoint, and so is which labels are withheld."""
    whole, folder = learned
    half = _run(_learner(folder), 45)
    again = _learner(folder)
    again.restore(unpack(pack(half.state())), half.offsets, half.config)
    _run(again)
    assert all(map(torch.equal, again.student.parameters(), whole.student.parameters()))
    assert status_of(again, 0.0, None)["producers"] == status_of(whole, 0.0, None)["producers"]
