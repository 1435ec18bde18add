"""A search on a real GPU, where the machine has one: as a program of its own, on a Ray that counts what there is."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streamkd.search.ledger import Ledger

TINY = """
name: tiny
device: cuda
stream: {source: {name: replay, dataset: digits, per_class: 20, classes_per_task: 5}}
"""
SPACE = "optimizer.learning_rate: {loguniform: [1e-3, 1e-2]}\n"
COMMAND = "tune tiny.yaml --space space.yaml --out found --search random --scheduler none --seeds 100 --trials 4"


@pytest.mark.timeout(300)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_four_trials_train_on_a_gpu(tmp_path: Path) -> None:
    """Trials of a quarter of it each, which would fail where they saw none, all finish."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "space.yaml").write_text(SPACE)
    shares = ["--engine", "ray", "--gpus-per-trial", "0.25", "--cpus-per-trial", "0.25"]
    subprocess.run([sys.executable, "-m", "streamkd", *COMMAND.split(), *shares], cwd=tmp_path, check=True)
    trials = Ledger.open(tmp_path / "found").trials()
    assert [(one.state, one.reason) for one in trials] == [("finished", "")] * 4
