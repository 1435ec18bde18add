"""Slots of this machine with real child processes, in which trials crash, hang, take too much memory and give NaN."""

import sys
from pathlib import Path

import psutil

from streamkd.tune import slot

sys.path.append(str(Path(__file__).parent))  # children look there too
import stand_ins
from stand_ins import ALL, DEEDS, tune


def test_whatever_a_trial_does_to_its_process_hurts_it_alone(tmp_path: Path) -> None:
    """A segfault, an exit, an error, NaN, a sleep and a loop without end, a kill, too much memory: each is named; the
    others finish, and no process is left.
    """
    asked = {"space": ALL, "sampler": "grid", "trials": 1 + len(DEEDS), "concurrency": 4}
    found = tune(tmp_path / "s", slot.run, **asked, hang_seconds=2.0, memory_bytes=8 << 30)
    kinds = {DEEDS[one.values[stand_ins.DEED] - 100]: one for one in found.trials[1:]}
    reasons = {
        "segfault": "crash: the process ended by SIGSEGV",
        "exit": "crash: the process ended with exit code 3",
        "raise": "error: ValueError: a stand-in's own error",
        "nan": "nan: the loss is nan",
        "sleep": "hang: learned nothing for",
        "spin": "hang: learned nothing for",
        "killed": "memory: ",
        "memory": "memory: ",
    }
    for deed, reason in reasons.items():
        assert kinds[deed].state == "failed", deed
        assert kinds[deed].reason.startswith(reason), kinds[deed].reason
        assert len(kinds[deed].readings) == 1  # what it had read before is kept
    assert found.states == {"finished": 2, "failed": 8}
    assert not [one for server in psutil.Process().children() for one in server.children()]  # what they are forked from
