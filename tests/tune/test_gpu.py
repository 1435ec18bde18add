"""A search on a real GPU, where the machine has one: trials at once that share it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streamkd.tune.study import Study

TINY = """
name: tiny
device: cuda
stream: {source: {name: replay, dataset: digits, per_class: 20, classes_per_task: 5}}
"""
SPACE = "optimizer.learning_rate: {loguniform: [1e-3, 1e-2]}\n"
COMMAND = "tune tiny.yaml --space space.yaml --out found --search random --scheduler none --seeds 100 --trials 4"


@pytest.mark.timeout(300)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_trials_train_on_a_gpu_beside_each_other(tmp_path: Path) -> None:
    """Four at once, which would fail where they saw no GPU, all finish."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "space.yaml").write_text(SPACE)
    command = [sys.executable, "-m", "streamkd", *COMMAND.split(), "--concurrency", "4"]
    subprocess.run(command, cwd=tmp_path, check=True)
    trials = Study.open(tmp_path / "found").trials()
    assert [(one.state, one.reason) for one in trials] == [("finished", "")] * 4
