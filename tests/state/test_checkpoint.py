"""Checkpoints: state and offsets together, whole or not there, the newest whole one found."""

import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from streamkd.errors import CheckpointDamaged, StateConflict, StateError
from streamkd.records import Reject
from streamkd.state.checkpoint import CheckpointInfo, CheckpointStore, DeadBatch
from streamkd.state.directory import StateDirectory
from streamkd.state.environment import compare, environment
from streamkd.state.files import FORMAT
from streamkd.streams.log.dead_letters import DeadLetters

torch.set_num_threads(1)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(tmp_path / "state")
    with directory.lock():
        yield directory


@pytest.fixture
def checkpoints(directory: StateDirectory) -> Iterator[CheckpointStore]:
    checkpoints = CheckpointStore(directory, keep=3)
    yield checkpoints
    checkpoints.close()


def _save(checkpoints: CheckpointStore, records: int, tree: Any = None) -> CheckpointInfo:
    tree = {"w": torch.full((4,), float(records))} if tree is None else tree
    return checkpoints.save(tree, offsets={"main/0": records}, records=records, config={"seed": 3}, environment={})


def _names(directory: StateDirectory) -> list[str]:
    return sorted(path.name for path in directory.checkpoints.iterdir())


def test_there_is_none_at_first(checkpoints: CheckpointStore) -> None:
    """A fresh directory has no checkpoint, which is no damage."""
    assert checkpoints.latest() is None


def test_everything_comes_back_together(checkpoints: CheckpointStore) -> None:
    """Tree, tables, offsets, records, configuration and environment are those that were saved."""
    table = pa.table({"x": pa.array([[1, 2], None], pa.list_(pa.int32())), "s": ["é", ""]})
    place = {**environment(), "limit": float("inf")}
    checkpoints.save(
        {"log": table, "n": 7, "t": torch.arange(5)},
        offsets={"main/0": 41, "other/0": 2**40},
        records=99,
        config={"name": "x", "clip": float("inf")},
        environment=place,
    )
    found = checkpoints.latest()
    assert found is not None
    assert found.tree["log"].equals(table)
    assert (found.tree["n"], found.tree["t"].tolist()) == (7, [0, 1, 2, 3, 4])
    assert found.info.offsets == {"main/0": 41, "other/0": 2**40}
    assert (found.info.records, found.config, found.environment) == (
        99,
        {"name": "x", "clip": float("inf")},
        place,
    )
    assert found.skipped == {}


def test_equal_states_are_equal_files(checkpoints: CheckpointStore) -> None:
    """The same tree has the same tensor hash each time: hashes can be compared instead of weights."""
    hashes = {_save(checkpoints, 5).sha256["tensors.safetensors"] for _ in range(4)}
    assert len(hashes) == 1


def test_the_configuration_lies_beside_as_json(directory: StateDirectory, checkpoints: CheckpointStore) -> None:
    """config.json is the resolved tree, to be read by people."""
    info = _save(checkpoints, 1)
    assert json.loads((directory.checkpoints / str(info.id) / "config.json").read_text()) == {"seed": 3}


def test_retention_keeps_the_newest(directory: StateDirectory, checkpoints: CheckpointStore) -> None:
    """Rows and folders beyond the newest three are gone; the newest is read."""
    for records in range(1, 7):
        _save(checkpoints, records)
    assert [info.records for info in checkpoints.list()] == [4, 5, 6]
    assert _names(directory) == ["4", "5", "6"]
    assert checkpoints.latest().info.records == 6  # type: ignore[union-attr]


def test_the_oldest_offsets_bound_what_may_be_trimmed(checkpoints: CheckpointStore) -> None:
    """The smallest offset per partition over the kept checkpoints, so that a fall-back can be redone."""
    assert checkpoints.oldest_offsets() == {}
    for records in range(1, 7):
        _save(checkpoints, records * 10)
    assert checkpoints.oldest_offsets() == {"main/0": 40}


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "remove":
        path.unlink()
    else:
        shutil.rmtree(path.parent)


@pytest.mark.parametrize("how", ["truncate", "flip", "empty", "remove", "remove all"])
@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "config.json", "tables/0000.arrow"])
def test_damage_falls_back_and_says_so(
    directory: StateDirectory, checkpoints: CheckpointStore, caplog: pytest.LogCaptureFixture, file: str, how: str
) -> None:
    """A truncated, changed or missing file: the checkpoint before is used, named in skipped and in the log."""
    for records in (1, 2):
        _save(checkpoints, records, {"w": torch.full((64,), records), "rows": pa.table({"x": [records] * 9})})
    _damage(directory.checkpoints / "2" / file, how)
    with caplog.at_level(logging.WARNING):
        found = checkpoints.latest()
    assert found is not None
    assert (found.info.records, [*found.skipped]) == (1, [2])
    assert (f"checkpoints/2/{file}" if how != "remove all" else "checkpoints/2/") in found.skipped[2]
    assert "checkpoint 2 is passed over" in caplog.text


def test_all_damaged_is_an_error(directory: StateDirectory, checkpoints: CheckpointStore) -> None:
    """Where no checkpoint is whole the learner does not begin anew in silence."""
    for records in (1, 2):
        _save(checkpoints, records)
        _damage(directory.checkpoints / str(records) / "state.json", "flip")
    with pytest.raises(CheckpointDamaged, match=r"no checkpoint is whole: 2: .*; 1: "):
        checkpoints.latest()


def test_a_damaged_one_does_not_take_a_whole_ones_place(
    directory: StateDirectory, checkpoints: CheckpointStore
) -> None:
    """After a fall-back the next save drops the damaged one, and retention counts whole ones."""
    for records in (1, 2, 3):
        _save(checkpoints, records)
    _damage(directory.checkpoints / "3" / "state.json", "flip")
    checkpoints.latest()
    _save(checkpoints, 4)
    assert [info.id for info in checkpoints.list()] == [1, 2, 4]
    assert _names(directory) == ["1", "2", "4"]


def _dead(place: int) -> DeadBatch:
    """A chunk of two rows at ``place - 1`` and ``place``, of which the second is refused."""
    rows = pa.record_batch({"x": [1.0, float("nan")]})
    return DeadBatch([Reject(1, "not_finite", "x is NaN")], rows, "main/0", [place - 1, place])


def _places(directory: StateDirectory) -> list[int | None]:
    connection = directory.connect(read_only=True)
    found = [letter.offset for letter in DeadLetters(connection).list()]
    connection.close()
    return found


def test_dead_letters_are_committed_with_the_offsets(directory: StateDirectory, checkpoints: CheckpointStore) -> None:
    """Letters appear with the checkpoint that passes them, and not where that one fails."""
    save = partial(checkpoints.save, config={}, environment={})
    save({}, offsets={"main/0": 5}, records=4, dead_letters=[_dead(3)])
    with pytest.raises(StateError):
        save({"x": torch.zeros(1).to_sparse()}, offsets={"main/0": 9}, records=7, dead_letters=[_dead(8)])
    assert _places(directory) == [3]


def test_dead_letters_are_not_doubled_by_a_fall_back(directory: StateDirectory, checkpoints: CheckpointStore) -> None:
    """Rows that are read again after a fall-back leave their letters once."""
    save = partial(checkpoints.save, config={}, environment={})
    save({}, offsets={"main/0": 5}, records=4, dead_letters=[_dead(3)])
    for _ in range(2):
        save({}, offsets={"main/0": 9}, records=7, dead_letters=[_dead(8)])
        newest = checkpoints.list()[-1].id
        _damage(directory.checkpoints / str(newest) / "state.json", "flip")
        found = checkpoints.latest()
        assert found is not None
        assert found.info.offsets == {"main/0": 5}
    save({}, offsets={"main/0": 9}, records=7, dead_letters=[_dead(8)])
    assert _places(directory) == [3, 8]


def test_a_newer_format_is_a_conflict(directory: StateDirectory, checkpoints: CheckpointStore) -> None:
    """A checkpoint of a later streamkd is not passed over as if it were damaged."""
    info = _save(checkpoints, 1)
    path = directory.checkpoints / "1" / "state.json"
    path.write_text(path.read_text().replace(f'"format":{FORMAT}', '"format":9'))
    hashes = {**info.sha256, "state.json": hashlib.sha256(path.read_bytes()).hexdigest()}
    connection = directory.connect()
    connection.execute("UPDATE checkpoints SET sha256 = ?", (json.dumps(hashes),))
    connection.close()
    with pytest.raises(StateConflict, match=f"needed checkpoint format {FORMAT}, got 9"):
        checkpoints.latest()


def test_a_tree_that_cannot_be_stored_changes_nothing(directory: StateDirectory, checkpoints: CheckpointStore) -> None:
    """A bad leaf, or an element type that safetensors has not, leaves the checkpoint before alone."""
    _save(checkpoints, 1)
    with pytest.raises(StateError, match="got object"):
        _save(checkpoints, 2, {"x": object()})
    with pytest.raises(StateError, match=r"torch\.complex128"):
        _save(checkpoints, 2, {"x": torch.zeros(2, dtype=torch.complex128)})
    assert _names(directory) == ["1"]
    assert checkpoints.latest().info.records == 1  # type: ignore[union-attr]


def test_a_superseded_learner_cannot_save(tmp_path: Path) -> None:
    """Under an epoch that is not the newest nothing is written, and the successor's state stands."""
    old, new = StateDirectory(tmp_path), StateDirectory(tmp_path)
    with old.lock() as epoch:
        stale = CheckpointStore(old)
        _save(stale, 1)
    with new.lock():
        fresh = CheckpointStore(new)
        _save(fresh, 2)
        old.epoch = epoch  # a learner that was believed dead goes on
        with pytest.raises(StateError, match=r"needed the newest epoch 2 .* got 1: another learner has taken over"):
            _save(stale, 3)
        assert [info.records for info in fresh.list()] == [1, 2]
        assert _names(new) == ["1", "2"]
        fresh.close()
    stale.close()


def test_a_reader_neither_saves_nor_cleans(directory: StateDirectory, checkpoints: CheckpointStore) -> None:
    """Inspection beside a learner reads the newest and leaves what is being written alone."""
    _save(checkpoints, 1)
    (directory.checkpoints / ".new-1").mkdir()
    reader = CheckpointStore(StateDirectory(directory.path), read_only=True)
    assert reader.latest().info.records == 1  # type: ignore[union-attr]
    with pytest.raises(StateError, match="needed the lock"):
        _save(reader, 2)
    assert _names(directory) == [".new-1", "1"]
    reader.close()


def test_what_was_half_written_is_removed_when_the_owner_opens(
    directory: StateDirectory, checkpoints: CheckpointStore
) -> None:
    """A folder under a temporary name is nobody's checkpoint."""
    _save(checkpoints, 1)
    (directory.checkpoints / f".new-{os.getpid()}-1").mkdir()
    CheckpointStore(directory).close()
    assert _names(directory) == ["1"]


def test_a_folder_that_the_database_does_not_know_is_left_alone(
    directory: StateDirectory, checkpoints: CheckpointStore
) -> None:
    """Another database may know it: opening and saving neither remove nor replace it."""
    _save(checkpoints, 1)
    for name in ("2", "9"):
        (directory.checkpoints / name).mkdir()
        (directory.checkpoints / name / "state.json").write_text("theirs")
    again = CheckpointStore(directory)
    with pytest.raises(StateError, match=r"checkpoints/2: is there already, and this database does not know it"):
        _save(again, 2)
    again.close()
    assert _names(directory) == ["1", "2", "9"]
    assert (directory.checkpoints / "2" / "state.json").read_text() == "theirs"


KILLED = """
import os, signal, sys, torch
from streamkd.state import leftovers
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
directory = StateDirectory(sys.argv[1])

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

with directory.lock():
    checkpoints = CheckpointStore(directory, keep=2)
    save = lambda n: checkpoints.save({"n": n}, offsets={"main/0": n}, records=n, config={}, environment={})
    save(1), save(2)
    if sys.argv[2] == "before":
        leftovers.sync = die  # named, and not committed
    else:
        real, runs = leftovers.Leftovers.clean_up, []
        # the second is after the commit, and the retired one is still there
        leftovers.Leftovers.clean_up = lambda self: die() if runs.append(1) or len(runs) > 1 else real(self)
    save(3)
"""


@pytest.mark.parametrize(("moment", "left", "kept"), [("before", ["1", "2", "3"], 2), ("after", ["1", "2", "3"], 3)])
def test_what_a_killed_save_left_is_removed(tmp_path: Path, moment: str, left: list[str], kept: int) -> None:
    """kill -9 between the rename and the commit, or between the commit and the removal: the next owner clears up."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], timeout=60)
    directory = StateDirectory(tmp_path)
    assert done.returncode == -9
    assert [name for name in _names(directory) if name.isdigit()] == left
    with directory.lock():
        again = CheckpointStore(directory, keep=2)
        assert _names(directory) == [str(info.id) for info in again.list()] == [str(kept - 1), str(kept)]
        assert _save(again, 4).id == kept + 1
        again.close()


FULL = """
import resource, sys, torch
from streamkd.errors import StateError
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
directory = StateDirectory(sys.argv[1])
small, large = {"w": torch.ones(8)}, {"w": torch.ones(1 << 20)}
with directory.lock():
    checkpoints = CheckpointStore(directory)
    save = lambda tree, n: checkpoints.save(tree, offsets={"main/0": n}, records=n, config={}, environment={})
    save(small, 1)
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        save(large, 2)
    except StateError as fault:
        print(fault.message)
    print(checkpoints.latest().info.records, [p.name for p in directory.checkpoints.iterdir()])
    print(save(small, 3).records)
"""


def _run_full(path: Path, mode: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), mode], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


def test_a_file_too_large_leaves_the_one_before(tmp_path: Path) -> None:
    """Past the file size limit: StateError, the checkpoint before intact, no leftovers, and saving goes on."""
    said, state, after = _run_full(tmp_path, "limit")
    assert "the one before is intact" in said
    assert (state, after) == ("1 ['1']", "3")


def test_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    """On a real full file system (a tmpfs of 2 MiB): StateError, the one before intact, and saving goes on."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes root")
    try:
        said, state, after = _run_full(tmp_path / "state", "disk")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert "No space left on device" in said
    assert (state, after) == ("1 ['1']", "3")


ENDLESS = """
import sys, torch
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
torch.set_num_threads(1)
directory = StateDirectory(sys.argv[1])
with directory.lock():
    checkpoints = CheckpointStore(directory, keep=2)
    found = checkpoints.latest()
    records = found.info.records if found else 0
    print("open", flush=True)
    while True:
        records += 1
        tree = {"w": torch.full((200_000,), float(records)), "n": records}
        checkpoints.save(tree, offsets={"main/0": records}, records=records, config={}, environment={})
"""


def test_kill_9_at_random_moments_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """However a saving process is killed, the newest checkpoint is whole, none is damaged, and none goes back."""
    dice, before = random.Random(7), 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        time.sleep(dice.uniform(0.03, 0.2))
        child.kill()
        child.communicate()
        reader = CheckpointStore(StateDirectory(tmp_path), read_only=True)
        found = reader.latest()
        reader.close()
        if found is None:
            assert before == 0
            continue
        records = found.info.records
        assert found.skipped == {}
        assert records == found.tree["n"] == found.info.offsets["main/0"] >= before
        assert torch.equal(found.tree["w"], torch.full((200_000,), float(records)))
        before = records
    assert before > 0


def test_a_save_is_quick(checkpoints: CheckpointStore) -> None:
    """500 remembered images, a student of 0.27 M parameters, its average and Adam's state: under 100 ms."""
    net = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.Linear(256, 256), torch.nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 784)).sum().backward()
    optimizer.step()
    memory = torch.zeros(500, 784, dtype=torch.uint8)
    tree = {"student": net.state_dict(), "ema": net.state_dict(), "optimizer": optimizer.state_dict(), "x": memory}
    seconds = []
    for records in range(8):
        begun = time.perf_counter()
        _save(checkpoints, records, tree)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.1


def test_the_environment_says_what_decides_the_bits() -> None:
    """Torch build, threads and processor are named, and all of it is JSON."""
    found = environment()
    assert {"torch", "threads", "cpu", "cpu_capability", "platform"} <= set(found)
    json.dumps(found, allow_nan=False)


def test_differences_are_said_in_words() -> None:
    """Only what differs is named, old and new value both."""
    assert compare({"torch": "2.9", "threads": 1}, {"torch": "2.9", "threads": 2}) == ["threads was 1, is 2"]
    assert compare(environment(), environment()) == []
