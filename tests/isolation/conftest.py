"""A teacher that learns, and gets into trouble when a file says so: as an installed distribution."""

from collections.abc import Callable
from pathlib import Path

import pytest

PATIENT = '''
"""Class means; `trouble` is a file whose word it obeys once: of such troubles nothing is in the stream."""
import math, time
from pathlib import Path
import torch
from streamkd.api import Kind, Options, hookimpl

class PatientOptions(Options):
    trouble: str = ""

class Patient:
    role, fresh = "live", True

    def __init__(self, options, context):
        self.key, self.trouble = context.key, Path(options.trouble)
        self.sums = torch.zeros(len(context.labels), math.prod(context.schema.shape))
        self.counts = torch.zeros(len(context.labels))

    def logits(self, x):
        if self.trouble.is_file():
            word = self.trouble.read_text()
            self.trouble.unlink()
            if word == "hangs":
                time.sleep(60)
            if word == "eats":
                torch.ones(1 << 28)
            if word == "raises":
                raise ValueError("no such table")
        return -torch.cdist(x.flatten(1).float(), self.sums / self.counts.clamp_min(1).unsqueeze(1)) / 10

    def known(self):
        return self.counts > 0

    def observe(self, x, y):
        self.sums.index_add_(0, y, x.flatten(1).float())
        self.counts.index_add_(0, y, torch.ones(len(y)))

    def end_task(self): ...

    def grow(self, labels):
        more = len(labels) - len(self.counts)
        self.sums = torch.nn.functional.pad(self.sums, (0, 0, 0, more))
        self.counts = torch.nn.functional.pad(self.counts, (0, more))

    def state_dict(self):
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state):
        self.sums, self.counts = state["sums"].clone(), state["counts"].clone()

@hookimpl
def streamkd_teachers():
    yield Kind("patient", Patient, PatientOptions, "class means")
'''


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Installs the teacher here and in processes; a word is its next trouble, without one the file's name is told."""
    (tmp_path / "patient.py").write_text(PATIENT)
    info = tmp_path / "patient-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: patient\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[streamkd]\npatient = patient\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(word: str = "") -> str:
        if word:
            (tmp_path / "trouble").write_text(word)
        return str(tmp_path / "trouble")

    return make
