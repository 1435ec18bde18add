"""What a process of the local engine holds itself to."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from streamkd.search import sharing


def test_memory_is_bounded_beside_what_the_process_has() -> None:
    """With 256 MB to allocate an array of 128 MB is made, and one of 512 MB is a MemoryError, whatever is there."""
    code = (
        "import numpy as np; from streamkd.search.worker import bound_memory\n"
        "there = np.empty(1 << 30, np.uint8); bound_memory(256 << 20)\n"
        "kept = np.ones(128 << 20, np.uint8)\n"
        "try: np.ones(512 << 20, np.uint8)\n"
        "except MemoryError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "refused", done.stderr


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that nobody holds goes with the next run; one that is held, young or not ours stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sharing, "YOUNG_SECONDS", 0.5)
    other = tmp_path / f"{sharing.PREFIX}notes"
    other.mkdir()
    code = (
        "import os, tempfile; tempfile.tempdir = os.sys.argv[1]\n"
        "from streamkd.search import sharing\n"
        "with sharing.folder() as made: print(made, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    time.sleep(0.6)
    with sharing.folder():
        assert theirs.exists()
    process.kill()
    process.communicate()
    with sharing.folder() as ours:
        assert not theirs.exists()
        assert ours.exists()
    assert not ours.exists()
    assert other.exists()
