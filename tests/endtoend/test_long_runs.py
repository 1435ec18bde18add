"""Long streams: neither the learner's memory nor the time of a step grows with experiences and tasks.

Memory is the process' resident set. Time is processor time over that of a plain loop beside it: whatever slows the
processor slows both. Compared are the second tenth, when everything that is bounded is full, and the last.

The claim about time has one side, for steps become quicker. The analytic teacher is solved anew when it has a
sixteenth more: 32 times in the third 500 steps, 17 times in any later ones. And once the student errs no more than its
teachers no rows are drawn for them to teach: a step then has 110 rows in place of 230 and takes 7 ms in place of 12.
Where none are drawn at all, every step after those has the same to do.
"""

import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

FORMS = ["plain", "invert", "rotate-90", "rotate-180", "rotate-270", *(f"permute-{n}" for n in range(5))]
MAIN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_long_runs import measure
print(json.dumps(measure(int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
"""


@dataclass
class Tenth:
    """What a tenth of the run took."""

    seconds: float = 0.0
    reference_seconds: float = 0.0
    resident_bytes: list[int] = field(default_factory=list)


def measure(steps: int, folder: Path, drawn: int) -> dict[str, list[float]]:
    """Learn fifty tasks over and over with checkpoints and measurements in between; figures of each tenth.

    ``drawn``: how many rows from the vicinity a step may have.
    """
    import torch

    from streamkd import config as configuration
    from streamkd.learner import Learner
    from streamkd.plugins import Registry
    from streamkd.state.checkpoint import CheckpointStore
    from streamkd.state.directory import StateDirectory
    from streamkd.state.environment import environment
    from streamkd.wiring import open_source, schema_of

    torch.set_num_threads(1)
    registry = Registry.load()
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "variations": FORMS, "repeat": True}
    tree = {"stream": {"source": source}, "student": {"name": "mlp", "hidden": [100, 100]}, "device": "cpu"}
    config = configuration.from_tree({**tree, "vicinal": {"rows": drawn}}, registry)
    schema = schema_of(config, registry)
    learner = Learner(config, registry, open_source(config, registry, schema)[0], schema)
    directory = StateDirectory(folder / "state")
    tenths = [Tenth() for _ in range(10)]
    with directory.lock():
        checkpoints = CheckpointStore(directory, keep=3)
        for step in range(steps):
            tenth = tenths[step * 10 // steps]
            begun = time.process_time()
            assert learner.advance()
            tenth.seconds += time.process_time() - begun
            if step % 5 == 4:
                tenth.reference_seconds += _reference_seconds()
            if step % 100 == 99:
                learner.measure()
                learner.recorder.drain()
                tenth.resident_bytes.append(_resident_bytes())
            if step % 500 == 499:
                offsets = dict(learner.offsets)
                place = {"config": configuration.dump(config), "environment": environment()}
                checkpoints.save(learner.state(), offsets=offsets, records=learner.records, **place)
    return {
        "seconds": [tenth.seconds for tenth in tenths],
        "relative": [tenth.seconds / tenth.reference_seconds for tenth in tenths],
        "resident_bytes": [sum(tenth.resident_bytes) / len(tenth.resident_bytes) for tenth in tenths],
        "tasks": [len(learner.tasks.names), learner.tasks.count],
        "records": [learner.records],
    }


def _reference_seconds() -> float:
    """Processor time of five steps of a plain loop over a network of the student's size."""
    import torch
    from torch import nn

    network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    x, y = torch.ones(110, 64), torch.zeros(110, dtype=torch.int64)
    begun = time.process_time()
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return time.process_time() - begun


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run(steps: int, folder: Path, drawn: int = 120) -> dict[str, list[float]]:
    """The measurement in a process of its own."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", MAIN, str(Path(__file__).parent), str(steps), str(folder), str(drawn)],
        capture_output=True,
        text=True,
        timeout=1_800,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    print({name: [round(value, 3) for value in values] for name, values in figures.items()})
    return dict(figures)


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.soak
def test_fifty_tasks(tmp_path: Path) -> None:
    """1,500 experiences: fifty tasks, memory within 5 %, a step at most 25 % slower (short tenths are noisy)."""
    figures = run(1_500, tmp_path)
    assert figures["tasks"][0] == 50
    assert figures["resident_bytes"][-1] < figures["resident_bytes"][1] * 1.05
    assert figures["relative"][-1] < figures["relative"][1] * 1.25


@needs_proc
@pytest.mark.soak
@pytest.mark.parametrize("drawn", [120, 0])
def test_ten_thousand_experiences_of_fifty_tasks(tmp_path: Path, drawn: int) -> None:
    """10,000 experiences of fifty tasks: memory within 5 %, a step at most 10 % slower, with drawn rows or without."""
    figures = run(10_000, tmp_path, drawn)
    assert figures["tasks"][0] == 50
    assert abs(figures["resident_bytes"][-1] / figures["resident_bytes"][1] - 1) < 0.05
    assert figures["relative"][-1] < figures["relative"][1] * 1.10
