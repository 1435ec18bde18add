"""How many cores a process computes on: torch's operators, and the products of numpy and scipy."""

import torch
from threadpoolctl import threadpool_limits


def compute_on(threads: int) -> None:
    """Compute on so many threads from now on, in this process and with the libraries that it has loaded.

    numpy's OpenBLAS knows nothing of torch's setting: it takes every core, for products of a learner's size too, whose
    threads then wait for each other at work: twice the processor's time, and hardly sooner (decision 57).
    """
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")
