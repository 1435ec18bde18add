"""Going back: to the newest state that has not seen it, all or nothing, and said where there is none."""

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from streamkd.errors import StateError, StateInUse
from streamkd.records import Reject
from streamkd.state import leftovers, rollback
from streamkd.state.checkpoint import CheckpointStore, DeadBatch
from streamkd.state.directory import StateDirectory
from streamkd.state.rollback import roll_back
from streamkd.state.versions import VersionStore
from streamkd.streams.log.dead_letters import DeadLetters
from streamkd.streams.log.log import Log
from streamkd.streams.skips import Skip

from ..streams.conftest import SCHEMA, make_pictures


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    """Checkpoints after 20, 40, 60 and 80 records of a log of a hundred, a version and a dead letter with each."""
    directory = StateDirectory(tmp_path / "state")
    with (
        directory.lock(),
        closing(Log(directory.log, SCHEMA)) as log,
        closing(CheckpointStore(directory, keep=9)) as checkpoints,
        closing(VersionStore(directory)) as versions,
    ):
        for first in range(0, 100, 20):
            log.append(make_pictures(20, first=first))
        for records in (20, 40, 60, 80):
            place = {"offsets": {"main/0": records}, "records": records}
            bad = DeadBatch([Reject(0, "not_finite", "NaN")], make_pictures(1), "main/0", [records - 1])
            tree = {"w": torch.full((3,), float(records))}
            checkpoints.save(tree, **place, config={}, environment={}, dead_letters=[bad])  # type: ignore[arg-type]
            versions.publish(lambda folder: (folder / "model.json").write_text("{}") and None, **place)  # type: ignore[arg-type]
    return directory


def looked_at(directory: StateDirectory) -> tuple[list[int], list[int], list[int], list[Skip]]:
    """Offsets of checkpoints, versions, offsets of dead letters, skips."""
    with (
        closing(CheckpointStore(directory, read_only=True)) as checkpoints,
        closing(VersionStore(directory, read_only=True)) as versions,
        closing(directory.connect(read_only=True)) as connection,
    ):
        return (
            [info.offsets["main/0"] for info in checkpoints.list()],
            [info.version for info in versions.list()],
            [letter.offset or 0 for letter in DeadLetters(connection).list()],
            list(rollback.skips(connection)),
        )


def test_it_goes_back_to_the_newest_that_has_not_seen_it(directory: StateDirectory) -> None:
    """Record 60 is not seen by the checkpoint up to 60; what came after is gone, its dead letters and versions too."""
    done = roll_back(directory, 60)
    assert done.checkpoint is not None
    assert (done.checkpoint.records, done.dropped, done.withdrawn, done.skip) == (60, [4], [4], None)
    assert looked_at(directory) == ([20, 40, 60], [1, 2, 3], [19, 39, 59], [])
    assert roll_back(directory, 59, skip_to=70).withdrawn == [3]
    assert looked_at(directory) == ([20, 40], [1, 2], [19, 39], [Skip("main/0", 59, 70)])
    for folder in (directory.checkpoints, directory.published):
        assert sorted(entry.name for entry in folder.iterdir()) == ["1", "2"]


def test_numbers_go_on_and_the_history_by_the_line_that_led_there(directory: StateDirectory) -> None:
    """A checkpoint after a rollback has a new number, and is one further from the one that was gone back to."""
    roll_back(directory, 40)
    with directory.lock(), closing(CheckpointStore(directory, keep=9)) as store:
        info = store.save({}, offsets={"main/0": 50}, records=50, config={}, environment={})
    with closing(directory.connect(read_only=True)) as connection:
        assert connection.execute("SELECT id, serial FROM checkpoints").fetchall() == [(1, 1), (2, 2), (info.id, 3)]
    assert info.id == 5


def test_a_damaged_one_is_passed_over(directory: StateDirectory) -> None:
    """The newest whole one before it is gone on from."""
    (directory.checkpoints / "3" / "state.json").write_text("{}")
    assert roll_back(directory, 60).dropped == [3, 4]
    assert looked_at(directory)[0] == [20, 40]


def test_a_pinned_version_that_had_seen_it_is_withdrawn(directory: StateDirectory) -> None:
    """A rollback of a version has seen what its source has."""
    with closing(VersionStore(directory)) as versions:
        versions.rollback(3)
    assert roll_back(directory, 40).withdrawn == [3, 4, 5]
    with closing(VersionStore(directory)) as versions:
        served = versions.served()
    assert served is not None
    assert (served.version, served.pinned) == (2, False)


def test_a_version_of_an_older_streamkd_goes_by_its_records(directory: StateDirectory) -> None:
    """It does not say which offsets it has seen."""
    with closing(directory.connect()) as connection:
        connection.execute("UPDATE versions SET offsets = NULL")
    assert roll_back(directory, 60).withdrawn == [4]


def test_where_none_is_old_enough_the_beginning_is_gone_back_to(directory: StateDirectory) -> None:
    """The log still has its first record."""
    assert roll_back(directory, 5).checkpoint is None
    assert looked_at(directory) == ([], [], [], [])
    with pytest.raises(StateError, match="holds no checkpoint yet"):
        roll_back(directory, 5)


def test_where_the_log_has_forgotten_the_nearest_is_named(directory: StateDirectory) -> None:
    """Nothing has changed; the nearest from which the log goes on can be gone back to."""
    with closing(Log(directory.log)) as log:
        log.trim(60)
    before = looked_at(directory)
    for offset in (5, 45):
        with pytest.raises(StateError, match=f"not seen record {offset}, .* log begins at 60") as told:
            roll_back(directory, offset)
        assert "go back to that with --before 60" in str(told.value)
    assert looked_at(directory) == before
    assert roll_back(directory, 60).withdrawn == [4]


@pytest.mark.parametrize(
    ("skip_to", "words"), [(40, "after 40, at most 100"), (101, "at most 100, where the log ends")]
)
def test_a_skip_is_of_records_that_are_there(directory: StateDirectory, skip_to: int, words: str) -> None:
    """Behind the first, and no further than the log."""
    before = looked_at(directory)
    with pytest.raises(StateError, match=words):
        roll_back(directory, 40, skip_to)
    assert looked_at(directory) == before


def test_it_is_for_a_server_that_has_stopped(directory: StateDirectory) -> None:
    """While a learner owns the directory it is refused, with its process."""
    with directory.lock(), pytest.raises(StateInUse, match=f"process {os.getpid()}"):
        roll_back(StateDirectory(directory.path), 40)


def killed_at(line: int, act: Callable[[], Any]) -> bool:
    """Whether a process that does it dies at its n-th line of these modules; else it has come to its end."""
    if not (child := os.fork()):
        left, files = line, (rollback.__file__, leftovers.__file__)

        def count(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename in files and event == "line":
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
            return count

        sys.settrace(count)
        act()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_leaves_the_state_before_or_after(directory: StateDirectory, tmp_path: Path) -> None:
    """Wherever in the work: everything is as it was, or as it will be; once more, it is done."""
    old, new = looked_at(directory), ([20, 40], [1, 2], [19, 39], [Skip("main/0", 45, 70)])
    seen = set()
    for line in itertools.count(1, 7):
        copy = StateDirectory(shutil.copytree(directory.path, tmp_path / str(line)))
        died = killed_at(line, lambda: roll_back(copy, 45, 70))  # noqa: B023
        with copy.lock(), closing(CheckpointStore(copy, 9)) as checkpoints, closing(VersionStore(copy)) as versions:
            there = looked_at(copy)
            assert there in (old, new)
            assert checkpoints.latest() is not None
            for folder, kept in ((copy.checkpoints, checkpoints.list()), (copy.published, versions.list())):
                assert len(list(folder.iterdir())) == len(kept)
        seen.add(there == new)
        shutil.rmtree(copy.path)
        if not died:
            break
    assert seen == {True, False}
    assert there == new
