"""Published versions: numbered upwards for ever, whole or not there, rolled back by number."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamkd.errors import CheckpointDamaged, StateError
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(tmp_path / "state")
    with directory.lock():
        yield directory


@pytest.fixture
def versions(directory: StateDirectory) -> Iterator[VersionStore]:
    versions = VersionStore(directory, keep=3)
    yield versions
    versions.close()


def _put(versions: VersionStore, text: str, records: int = 0) -> int:
    def write(folder: Path) -> dict[str, str]:
        (folder / "model.safetensors").write_text(text)
        (folder / "model.json").write_text("{}")
        return {"note": text}

    return versions.publish(write, records=records)


def _text(versions: VersionStore) -> str:
    served = versions.served()
    assert served is not None
    return (versions.read(served.version) / "model.safetensors").read_text()


def test_nothing_is_served_before_the_first(versions: VersionStore) -> None:
    """An empty directory serves nothing."""
    assert versions.served() is None
    assert versions.list() == []


def test_the_newest_is_served(versions: VersionStore) -> None:
    """Numbers rise from 1 and the newest is served with its records."""
    assert [_put(versions, "a", 10), _put(versions, "b", 20)] == [1, 2]
    served = versions.served()
    assert served is not None
    assert (served.version, served.records, served.kind, served.pinned) == (2, 20, "learned", False)
    assert _text(versions) == "b"


def test_the_folder_says_what_it_is(versions: VersionStore) -> None:
    """version.json holds number, records, kind and what the writer returned."""
    about = json.loads((versions.read(_put(versions, "a", 7)) / "version.json").read_text())
    assert (about["version"], about["records"], about["kind"], about["meta"]) == (1, 7, "learned", {"note": "a"})


def test_numbers_rise_over_restarts(directory: StateDirectory, versions: VersionStore) -> None:
    """A new process goes on after the highest number ever given, also where that version is gone."""
    for text in "abc":
        _put(versions, text)
    connection = directory.connect()
    connection.execute("DELETE FROM versions")
    connection.close()
    again = VersionStore(directory)
    assert _put(again, "d") == 4
    again.close()


def test_a_writer_that_fails_changes_nothing(directory: StateDirectory, versions: VersionStore) -> None:
    """An exception in the writer leaves the served version, no files, and no number used."""
    _put(versions, "a")

    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        versions.publish(write, records=1)
    assert _text(versions) == "a"
    assert [p.name for p in directory.published.iterdir()] == ["1"]
    assert _put(versions, "b") == 2


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """A write past the file size limit is a StateError; the version before is served as it was."""
    script = """
import resource, sys
from streamkd.errors import StateError
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore
directory = StateDirectory(sys.argv[1])
with directory.lock():
    versions = VersionStore(directory)
    versions.publish(lambda folder: (folder / "model").write_bytes(b"a") and None, records=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        versions.publish(lambda folder: (folder / "model").write_bytes(b"b" * (2 << 20)) and None, records=2)
    except StateError as fault:
        print(fault.message)
    print(versions.read(versions.served().version).name, [p.name for p in directory.published.iterdir()])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    said, state = done.stdout.splitlines()
    assert "nothing has changed" in said
    assert state == "1 ['1']"


def test_a_superseded_learner_cannot_publish(tmp_path: Path) -> None:
    """VersionStore of an epoch that is not the newest are refused."""
    first, second = StateDirectory(tmp_path), StateDirectory(tmp_path)
    with first.lock() as old:
        versions = VersionStore(first)
        _put(versions, "a")
    with second.lock():
        first.epoch = old  # a learner that was believed dead goes on
        with pytest.raises(StateError, match="taken over"):
            _put(versions, "b")
        assert _text(versions) == "a"
    versions.close()


def test_a_reader_without_the_lock_cannot_publish(directory: StateDirectory) -> None:
    """Publishing needs the lock; a reader sees what is served."""
    reader = VersionStore(StateDirectory(directory.path), read_only=True)
    with pytest.raises(StateError, match="needed the lock"):
        _put(reader, "a")
    reader.close()


def test_rollback_serves_the_old_weights_under_a_new_number(versions: VersionStore) -> None:
    """After a rollback to 1 the served number is new, its content and hash are those of 1."""
    for text in "ab":
        _put(versions, text)
    assert versions.rollback(1) == 3
    served = versions.served()
    assert served is not None
    assert (served.version, served.kind, served.source_version, served.pinned) == (3, "rollback", 1, True)
    assert served.sha256 == versions.info(1).sha256
    assert _text(versions) == "a"


def test_a_rollback_stays_until_it_is_unpinned(versions: VersionStore) -> None:
    """Later versions are numbered on but not served before unpin, and retention spares the pinned one."""
    for text in "ab":
        _put(versions, text)
    versions.rollback(1)
    for text in "cdef":
        _put(versions, text)
    assert _text(versions) == "a"
    assert [info.version for info in versions.list()] == [3, 5, 6, 7]
    versions.unpin()
    assert _text(versions) == "f"


def test_unpin_serves_the_newest_that_was_learned(versions: VersionStore) -> None:
    """A rollback has the highest number and old weights: without its pin the newer ones are served, as before it."""
    for text in "abc":
        _put(versions, text)
    assert versions.rollback(1) == 4
    newest = versions.newest()
    assert newest is not None
    assert newest.version == 3
    versions.unpin()
    assert _text(versions) == "c"
    assert _put(versions, "d") == 5
    assert _text(versions) == "d"


def test_retention_spares_what_unpin_serves(versions: VersionStore) -> None:
    """However often somebody rolls back, the newest learned version is kept, since it is served afterwards."""
    for text in "ab":
        _put(versions, text)
    for _ in range(6):
        versions.rollback(versions.list()[0].version)
    versions.unpin()
    assert _text(versions) == "b"


def test_rollback_works_beside_a_running_learner(directory: StateDirectory, versions: VersionStore) -> None:
    """A command without the lock rolls back, and the learner goes on numbering after it."""
    _put(versions, "a")
    command = VersionStore(StateDirectory(directory.path))
    assert command.rollback(1) == 2
    command.close()
    assert _put(versions, "b") == 3
    assert _text(versions) == "a"


def test_retention_keeps_the_newest(directory: StateDirectory, versions: VersionStore) -> None:
    """Rows and files beyond the newest three are gone."""
    for text in "abcde":
        _put(versions, text)
    assert [info.version for info in versions.list()] == [3, 4, 5]
    assert sorted(p.name for p in directory.published.iterdir()) == ["3", "4", "5"]


def test_a_version_that_is_not_kept_is_refused_with_the_kept_ones(versions: VersionStore) -> None:
    """Rolling back to a number that is gone names those that are there."""
    for text in "abcde":
        _put(versions, text)
    with pytest.raises(StateError, match="kept versions: 3, 4, 5"):
        versions.rollback(1)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_changed_files_are_not_served(versions: VersionStore, damage: str) -> None:
    """A flipped byte, a truncated, a missing or an extra file is found before the model is used."""
    folder = versions.read(_put(versions, "abcdef"))
    file = folder / "model.safetensors"
    if damage == "flip":
        file.write_text("abcdeg")
    elif damage == "truncate":
        file.write_text("abc")
    elif damage == "remove":
        file.unlink()
    else:
        (folder / "extra").write_text("")
    with pytest.raises(CheckpointDamaged, match="needed sha256"):
        versions.read(1)


KILLED = """
import os, signal, sys
from streamkd.state import leftovers
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore
directory = StateDirectory(sys.argv[1])
with directory.lock():
    versions = VersionStore(directory)
    write = lambda folder: folder.joinpath("model").write_text("") and None
    versions.publish(write, records=1)
    leftovers.sync = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
    versions.publish(lambda folder: folder.joinpath("stale").write_text("") and None, records=2)
"""


def _killed(path: Path) -> StateDirectory:
    """A directory whose owner was killed when version 2 had its name and was not committed."""
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60).returncode == -9
    assert (path / "published" / "2" / "stale").exists()
    return StateDirectory(path)


def test_a_folder_left_by_a_killed_owner_goes_with_the_next(tmp_path: Path) -> None:
    """Files renamed but never committed are removed, and the number is given."""
    directory = _killed(tmp_path)
    with directory.lock():
        versions = VersionStore(directory)
        assert sorted(p.name for p in directory.published.iterdir()) == ["1"]
        assert _put(versions, "b") == 2
        versions.close()


def test_a_folder_left_by_a_killed_owner_is_replaced_by_a_rollback(tmp_path: Path) -> None:
    """Also a command beside, before there is another owner, may take the number."""
    versions = VersionStore(_killed(tmp_path))
    assert versions.rollback(1) == 2
    assert [p.name for p in versions.read(2).iterdir() if p.name != "version.json"] == ["model"]
    versions.close()


def test_a_folder_that_the_database_does_not_know_is_left_alone(
    directory: StateDirectory, versions: VersionStore
) -> None:
    """Another database may know it: publishing under its number is refused, and it stays."""
    (directory.published / "1").mkdir()
    (directory.published / "1" / "theirs").write_text("")
    with pytest.raises(StateError, match=r"published/1: is there already"):
        _put(versions, "a")
    assert [p.name for p in directory.published.rglob("*")] == ["1", "theirs"]


def test_readers_see_that_something_changed(directory: StateDirectory, versions: VersionStore) -> None:
    """The number to poll stays while nothing happens and differs after a publish."""
    reader = VersionStore(StateDirectory(directory.path), read_only=True)
    before = reader.changes()
    assert reader.changes() == before
    _put(versions, "a")
    assert reader.changes() != before
    reader.close()


def test_half_written_folders_of_killed_writers_are_removed(directory: StateDirectory) -> None:
    """The owner removes what a dead process left, also one of its own number, and spares what a living one writes."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid(), os.getppid()):
        (directory.published / f".new-{pid}-1").mkdir()
    VersionStore(directory).close()
    assert [p.name for p in directory.published.iterdir()] == [f".new-{os.getppid()}-1"]


def test_a_version_says_what_it_has_seen(directory: StateDirectory, versions: VersionStore) -> None:
    """In its row and in its folder, and a rollback what its source has."""

    def write(folder: Path) -> None:
        (folder / "model.json").write_text("{}")

    seen = {"offsets": {"main/0": 12}, "positions": {"orders/0": 40}}
    number = versions.publish(write, records=10, **seen)  # type: ignore[arg-type]
    for version in (number, versions.rollback(number)):
        info = versions.info(version)
        assert (info.offsets, info.positions) == ({"main/0": 12}, {"orders/0": 40})
        about = json.loads((directory.published / str(version) / "version.json").read_text())
        assert seen.items() <= about.items()


def test_versions_of_an_older_streamkd_are_read(directory: StateDirectory, versions: VersionStore) -> None:
    """Its table has no word of offsets: nothing is known of them, and whoever writes adds it."""
    number = _put(versions, "a", 10)
    for column in ("offsets", "positions"):
        versions._connection.execute(f"ALTER TABLE versions DROP COLUMN {column}")
    reader = VersionStore(directory, read_only=True)
    assert reader.info(number).offsets == {}
    again = VersionStore(directory)
    assert again.info(again.rollback(number)).offsets == {}
    for each in (reader, again):
        each.close()
