"""A clock that jumps by hours and by years, forward and back: nothing is lost, counted twice, or waited for.

What waits or comes due is measured by a clock that only goes on; the time of day is written down, and decides one
thing alone: what the log retains beyond need. Here it jumps at every look, in this process or in all of a server's.
"""

import random
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkd.inspection import weights_sha256
from streamkd.records import InputColumn, RecordSchema
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore
from streamkd.streams.log.log import Log

from ..endtoend.conftest import Serve, Server, merged, records, serve, streamkd, until
from ..endtoend.test_kills import DISTURBED
from .test_bytes import CUT
from .test_processes import check_learned
from .test_restores import learn, rows, started, undisturbed

__all__ = ["serve"]
HOUR, YEAR = 3_600.0, 365 * 86_400.0
JUMPS = [HOUR, -HOUR, 40 * 24 * HOUR, YEAR, -YEAR, 30 * YEAR, -30 * YEAR]
SCHEMA = RecordSchema(inputs=(InputColumn(name="x", shape=(4,)),))
JUMPING = f"""
import random, time
now, dice, at = time.time, random.Random(), [0.0, 0.0]

def jumping():
    if time.monotonic() >= at[1]:
        at[:] = [dice.choice({JUMPS}), time.monotonic() + dice.uniform(0.0, 0.5)]
    return now() + at[0]

time.time = jumping
"""


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock so many seconds off; without a call it jumps at every look."""
    now, dice = time.time, random.Random(14)
    off: list[float] = []
    monkeypatch.setattr(time, "time", lambda: now() + (off[-1] if off else dice.choice(JUMPS)))
    return off.append


def test_a_learner_has_the_same_bits_and_goes_on_from_its_last_checkpoint(
    tmp_path: Path, jump: Callable[[float], None]
) -> None:
    """However checkpoints and versions are dated, the last ones are the newest, after each of three starts."""
    directory = StateDirectory(tmp_path / "state")
    dates: list[float] = []
    for upto in (60, 105, 150):
        with started(directory.path, CUT) as process:
            learn(process, upto, 15)
        with closing(CheckpointStore(directory, read_only=True)) as checkpoints:
            snapshot = checkpoints.latest()
            dates += [info.created for info in checkpoints.list()]
        with closing(VersionStore(directory, read_only=True)) as versions:
            served = versions.served()
        assert snapshot is not None
        assert served is not None
        assert (snapshot.info.records, served.records) == (upto, upto)
    assert any(one > other for one, other in pairwise(dates)), "the clock did not jump"
    weights = undisturbed(directory.log, CUT)
    with started(directory.path, CUT) as process:
        assert weights_sha256(process.learner.student.state_dict()) == weights[150]


def test_a_log_keeps_what_is_needed_and_knows_what_it_has(tmp_path: Path, jump: Callable[[float], None]) -> None:
    """Trimmed by age at every jump: nothing that a checkpoint needs goes, and each batch that comes again is known."""
    dice = random.Random(1)
    needed, sent = 0, 0
    with closing(Log(tmp_path / "log.sqlite", SCHEMA)) as log:
        for _ in range(60):
            assert not log.append(rows(sent, 10), "p", sent).duplicate
            sent += 10
            needed = dice.randrange(needed, sent, 10)
            log.trim(needed, retain_bytes=1 << 30, retain_age_seconds=HOUR)
            assert log.begin() <= needed
            assert log.read(needed, sent).rows.num_rows == sent - needed
            again = dice.randrange(0, sent, 10)
            assert log.append(rows(again, 10), "p", again).duplicate
        assert log.end() == sent


def test_a_clock_set_back_retains_no_more_than_it_may(tmp_path: Path, jump: Callable[[float], None]) -> None:
    """Batches from the future are young for long; the bound in bytes holds for them too, and then by their age."""
    with closing(Log(tmp_path / "log.sqlite", SCHEMA)) as log:
        jump(YEAR)
        for first in range(0, 100, 10):
            log.append(rows(first, 10))
        jump(0.0)
        log.trim(90, retain_bytes=log.bytes_between(0, 30), retain_age_seconds=HOUR)
        assert log.begin() == 60
        jump(YEAR + 2 * HOUR)
        log.trim(90, retain_bytes=1 << 30, retain_age_seconds=HOUR)
        assert log.begin() == 90


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_server_whose_clocks_jump_learns_every_record_once(serve: Serve, tmp_path: Path) -> None:
    """Supervisor, learner, ingress and producers, each with a clock of its own: acknowledged = logged = trained."""
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    environment = {"PYTHONPATH": str(tmp_path)}
    aged = merged(DISTURBED, {"stream": {"retain": {"age_seconds": 1e11}}})
    server = serve(aged, environment=environment)
    count = 3_000
    pq.write_table(pa.Table.from_batches([records(count)]), tmp_path / "rows.parquet")
    for url in (server.flight, server.url, server.flight):  # the third is what the first has sent
        push = ["push", tmp_path / "rows.parquet", "--to", url, "--batch", 7, "--producer", url[:4], "--rate", 600]
        done = streamkd(*push, timeout=120, **environment)
        assert f"{count} records sent" in done.stdout + done.stderr, done.stderr
    server.trained(2 * count, 120)
    until(lambda: _jumps(server), 30, "a server whose clock jumps")
    assert server.stop() == 0
    assert "Traceback" not in server.err
    check_learned(server, tmp_path / "undisturbed", 2 * count)


def _jumps(server: Server) -> bool:
    """Whether the server's time of day is not ours."""
    return abs(server.status()["server"]["timestamp_seconds"] - time.time()) > HOUR / 2
