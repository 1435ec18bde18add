"""Every claim about numbers again, with the kernels of other processors: nothing may lean on how this one rounds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels import ByShape

ROOT = Path(__file__).parent.parent
COMPUTING = (
    "tests/students", "tests/gates", "tests/losses", "tests/replay", "tests/teachers", "tests/analytic",
    "tests/incremental",
    "tests/learning", "tests/avalanche", "tests/pretraining", "tests/meta", "tests/evaluate", "tests/tasks",
    "tests/state", "tests/bench",
    "tests/test_device.py", "tests/test_gated_learner.py", "tests/test_learner.py", "tests/test_restlessness.py",
    "tests/test_run.py", "tests/test_served.py", "tests/test_testing.py", "tests/test_unlabelled.py",
    "tests/tune/trials/test_trial.py",
    "plugins",
)  # fmt: skip
PROCESSORS = {
    "without vectors": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    "MKL avx2": {"MKL_CBWR": "AVX2"},
    "products by shape": {"STREAMKD_TEST_PRODUCTS": "by-shape"},
}


@pytest.mark.soak
@pytest.mark.parametrize("processor", PROCESSORS)
def test_what_is_claimed_holds_on_another_processor(processor: str, tmp_path: Path) -> None:
    """The tests of whatever computes pass with torch's, oneDNN's and MKL's kernels for other processors.

    "products by shape" is a processor that there is not, with all that none promises taken away (``kernels.ByShape``).
    """
    quiet = ["-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", "--basetemp", str(tmp_path / "their")]
    # torch warns of Avalanche's EWC whenever a function is looked at on its way
    warning = ["-W", "ignore:Using a non-tuple sequence:UserWarning"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, *warning, *COMPUTING],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=3_000,
        env={**os.environ, **PROCESSORS[processor]},
    )
    assert done.returncode == 0, done.stdout[-5_000:]


def test_such_a_processor_tells_a_claim_about_shapes() -> None:
    """Two products of one shape agree there bit for bit; a wider one does not agree with its part."""
    x, w = torch.randn(8, 6), torch.randn(5, 6)
    with ByShape():
        whole, again, part = (torch.nn.functional.linear(x, w[:width]) for width in (5, 5, 3))
    assert torch.equal(whole, again)
    assert not torch.equal(whole[:, :3], part)
    torch.testing.assert_close(whole[:, :3], part)
