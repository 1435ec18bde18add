"""What decides whether the same arithmetic gives the same bits: kept with checkpoints and reports.

``compare`` says in words how the place of a checkpoint and this one differ; resuming is exact only where
it says nothing.
"""

import platform
from collections.abc import Mapping
from pathlib import Path

import streamkd


def environment() -> dict[str, str | int | None]:
    """The versions, the threads and the processor of this process."""
    import numpy
    import torch

    return {
        "streamkd": streamkd.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "cpu": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def compare(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """One sentence for each thing that differs, in the order of ``old``."""
    differing = (name for name in {**old, **new} if old.get(name) != new.get(name))
    return [f"{name.replace('_', ' ')} was {old.get(name)}, is {new.get(name)}" for name in differing]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
