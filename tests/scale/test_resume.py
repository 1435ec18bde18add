"""A search on Ray whose driver is killed, and one that is driven through another one's Ray."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import family

from streamkd.search.ledger import DONE, Ledger, TrialRecord, exists

HERE = str(Path(__file__).parent)
RATES = [0.1, 0.2, 0.3, 0.4, 0.5]


def drive(out: Path, **settings: Any) -> subprocess.Popen[bytes]:
    """The search in a process of its own; what it says goes beside its directory."""
    given = json.dumps({"rates": RATES, "concurrency": 2, **settings})
    command = [sys.executable, str(Path(HERE) / "drive.py"), str(out), given]
    path = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))
    with said(out).open("w") as file:
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=file)


def said(out: Path) -> Path:
    """Where the driver's last words are."""
    return out.with_suffix(".txt")


def over(out: Path) -> dict[int, TrialRecord]:
    """The trials that are over, as the ledger has them."""
    return {one.number: one for one in Ledger.open(out).trials() if one.state in DONE} if exists(out) else {}


def read(out: Path) -> int:
    """Milestones that all trials have read."""
    return sum(len(one.readings) for one in Ledger.open(out).trials()) if exists(out) else 0


def killed(out: Path, when: Callable[[], bool], **settings: Any) -> dict[int, TrialRecord]:
    """What was over when the driver was killed; a few seconds later its Ray is gone too."""
    process = drive(out, **settings)
    try:
        while not when() and process.poll() is None:
            time.sleep(0.05)
        processes = family(process.pid)
    finally:
        process.kill()
        process.wait()
    before = over(out)
    until = time.monotonic() + 10
    while (left := [pid for pid in processes if Path(f"/proc/{pid}/exe").exists()]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left, [processes[pid] for pid in left]
    return before


def refuse_incomplete(out: Path, before: dict[int, TrialRecord], **settings: Any) -> None:
    """Resumed, the search completes, and every trial that was over is as it was."""
    assert drive(out, **settings).wait(200) == 0, said(out).read_text()
    after = over(out)
    assert {number: after[number] for number in before} == before
    assert sorted(after) == list(range(len(RATES)))
    assert {one.state for one in after.values()} <= {"finished", "pruned"}


@pytest.mark.timeout(300)  # Ray is started twice
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed with -9 when two trials are over, then resumed: these are kept as they are, the table is complete, and no
    process of Ray was left.
    """
    out = tmp_path / "s"
    before = killed(out, lambda: len(over(out)) >= 2)
    assert 2 <= len(before) < len(RATES)
    refuse_incomplete(out, before)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scheduler", ["asha", "none", "pbt"])
@pytest.mark.parametrize("seed", range(3))
def test_a_driver_killed_again_and_again_loses_nothing(tmp_path: Path, scheduler: str, seed: int) -> None:
    """Killed at three random moments, in halving, without and in a population: no finished trial is run again."""
    dice, out = random.Random(seed), tmp_path / "s"
    before: dict[int, TrialRecord] = {}
    for turn in range(3):
        enough = dice.randrange(15 * turn, 15 * (turn + 1))
        after = killed(out, lambda enough=enough: read(out) >= enough, scheduler=scheduler)  # type: ignore[misc]
        assert {number: after[number] for number in before} == before
        before = after
    refuse_incomplete(out, before, scheduler=scheduler)


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_has_no_place_is_said(tmp_path: Path) -> None:
    """Through an address, a trial that no machine can take is waited for, since a cluster may grow; then it is said how
    long, what was needed and what there is.
    """
    import ray

    head = ray.get_runtime_context().gcs_address
    assert drive(out := tmp_path / "s", address=head, cpus_per_trial=100.0).wait(100) == 1
    fault = (
        "needed 100 CPUs and 0 GPUs on one machine for each trial, got 4 CPUs, 1 GPUs, for 2 s nothing could be begun"
    )
    assert fault in said(out).read_text()
