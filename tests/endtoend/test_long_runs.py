"""Long streams: neither the learner's memory nor the time of a step grows with experiences and tasks.

Memory is the process' resident set, time is processor time, so that a busy machine changes neither. Compared are
the second tenth, when everything that is bounded is full, and the last.
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
print(json.dumps(measure(int(sys.argv[2]), Path(sys.argv[3]))))
"""


@dataclass
class Tenth:
    """What a tenth of the run took."""

    seconds: float = 0.0
    resident_bytes: list[int] = field(default_factory=list)


def measure(steps: int, folder: Path) -> dict[str, list[float]]:
    """Learn fifty tasks over and over with checkpoints and measurements in between; figures of each tenth."""
    import torch

    from streamkd import config as configuration
    from streamkd.learner import Learner
    from streamkd.plugins import Registry
    from streamkd.state.checkpoint import Checkpoints, environment
    from streamkd.state.directory import StateDirectory
    from streamkd.wiring import open_source, schema_of

    torch.set_num_threads(1)
    registry = Registry.load()
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "variations": FORMS, "repeat": True}
    tree = {"stream": {"source": source}, "student": {"name": "mlp", "hidden": [100, 100]}, "device": "cpu"}
    config = configuration.from_tree(tree, registry)
    schema = schema_of(config, registry)
    learner = Learner(config, registry, open_source(config, registry, schema)[0], schema)
    directory = StateDirectory(folder / "state")
    tenths = [Tenth() for _ in range(10)]
    with directory.lock():
        checkpoints = Checkpoints(directory, keep=3)
        for step in range(steps):
            tenth = tenths[step * 10 // steps]
            begun = time.process_time()
            assert learner.advance()
            tenth.seconds += time.process_time() - begun
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
        "resident_bytes": [sum(tenth.resident_bytes) / len(tenth.resident_bytes) for tenth in tenths],
        "tasks": [len(learner.tasks.names), learner.tasks.count],
        "records": [learner.records],
    }


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run(steps: int, folder: Path) -> dict[str, list[float]]:
    """The measurement in a process of its own."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", MAIN, str(Path(__file__).parent), str(steps), str(folder)],
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
def test_fifty_tasks(tmp_path: Path) -> None:
    """1,500 experiences: fifty tasks, memory within 5 %, step time within 25 % (short tenths are noisy)."""
    figures = run(1_500, tmp_path)
    assert figures["tasks"][0] == 50
    assert figures["resident_bytes"][-1] < figures["resident_bytes"][1] * 1.05
    assert figures["seconds"][-1] < figures["seconds"][1] * 1.25


@needs_proc
@pytest.mark.soak
def test_ten_thousand_experiences_of_fifty_tasks(tmp_path: Path) -> None:
    """10,000 experiences of fifty tasks that recur: memory within 5 %, step time within 10 %."""
    figures = run(10_000, tmp_path)
    assert figures["tasks"][0] == 50
    assert abs(figures["resident_bytes"][-1] / figures["resident_bytes"][1] - 1) < 0.05
    assert abs(figures["seconds"][-1] / figures["seconds"][1] - 1) < 0.10
