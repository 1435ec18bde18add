"""Cores: a process computes on as many as it was told, whoever's product it is."""

import os
import subprocess
import sys

PROGRAM = """
import sklearn.linear_model  # which brings scipy's BLAS beside numpy's
import torch
from threadpoolctl import threadpool_info
from streamkd.cores import compute_on
compute_on(3)
before = {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}
compute_on(1)
after = {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}
print(before, after, torch.get_num_threads())
"""


def test_numpy_computes_on_as_many_cores_as_torch() -> None:
    """Both BLAS libraries, from three threads to one; nothing in the environment says how many."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in counts}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "{3} {1} 1\n"
