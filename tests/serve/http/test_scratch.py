"""Folders that outlive nobody."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from streamkd.serve.http import scratch

PREFIX = "streamkd-test-"


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that nobody holds goes with the next run; one that is held, young or not ours stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / f"{PREFIX}notes"
    other.mkdir()
    code = (
        "import os, tempfile; tempfile.tempdir = os.sys.argv[1]\n"
        "from streamkd.serve.http import scratch\n"
        "with scratch.folder('streamkd-test-') as made: print(made, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    for old in (theirs, other):
        os.utime(old, (0, 0))  # as if it had been there for long
    with scratch.folder(PREFIX):
        assert theirs.exists()
    process.kill()
    process.communicate()
    with scratch.folder(PREFIX) as ours:
        assert not theirs.exists()
        assert ours.exists()
    assert not ours.exists()
    assert other.exists()
