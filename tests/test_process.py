"""What a process of ours holds itself to."""

import subprocess
import sys


def test_memory_is_bounded_beside_what_the_process_has() -> None:
    """With 256 MB to allocate an array of 128 MB is made, and one of 512 MB is a MemoryError, whatever is there."""
    code = (
        "import numpy as np; from streamkd.process import bound_memory\n"
        "there = np.empty(1 << 30, np.uint8); bound_memory(256 << 20)\n"
        "kept = np.ones(128 << 20, np.uint8)\n"
        "try: np.ones(512 << 20, np.uint8)\n"
        "except MemoryError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "refused", done.stderr
