"""The state directory: one owner at a time, and nothing written by one that was superseded."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from streamkd.errors import StateConflict, StateError, StateInUse
from streamkd.state.directory import StateDirectory, fence
from streamkd.streams.log.database import transaction

HOLD = """
import sys
from streamkd.state.directory import StateDirectory
with StateDirectory(sys.argv[1]).lock() as epoch:
    print(epoch, flush=True)
    sys.stdin.read()
"""


def _holder(path: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "1\n"
    return child


def test_a_second_owner_is_told_the_process_id(tmp_path: Path) -> None:
    """While one process holds the lock, another gets StateInUse with the holder's process id."""
    child = _holder(tmp_path / "state")
    with pytest.raises(StateInUse, match=f"process {child.pid} owns"), StateDirectory(tmp_path / "state").lock():
        pass
    child.communicate("")


def test_a_killed_owner_leaves_the_lock_free(tmp_path: Path) -> None:
    """After kill -9 of the owner the next one enters at once, with a higher epoch."""
    child = _holder(tmp_path / "state")
    child.kill()
    child.communicate()
    with StateDirectory(tmp_path / "state").lock() as epoch:
        assert epoch == 2


def test_each_lock_takes_a_new_epoch(tmp_path: Path) -> None:
    """Epochs rise by one with each lock, and belong to the object only inside the block."""
    directory = StateDirectory(tmp_path)
    for expected in (1, 2, 3):
        with directory.lock() as epoch:
            assert epoch == directory.epoch == expected
        assert directory.epoch is None


def test_an_old_epoch_is_fenced(tmp_path: Path) -> None:
    """A transaction under an epoch that is not the newest is refused, as is one without a lock."""
    directory = StateDirectory(tmp_path)
    with directory.lock() as old:
        pass
    with directory.lock():
        connection = directory.connect()
        with pytest.raises(StateError, match="another learner has taken over"), transaction(connection):
            fence(connection, old, tmp_path)
        with pytest.raises(StateError, match="needed the lock"):
            fence(connection, None, tmp_path)
        connection.close()


def test_a_failed_block_is_rolled_back(tmp_path: Path) -> None:
    """What a failing transaction has written is gone."""
    directory = StateDirectory(tmp_path)
    directory.create()
    connection = directory.connect()

    def fail() -> None:
        with transaction(connection):
            connection.execute("UPDATE owner SET epoch = 77")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert connection.execute("SELECT epoch FROM owner").fetchone() == (0,)
    connection.close()


def test_commits_are_fully_synced(tmp_path: Path) -> None:
    """The database is in WAL mode with synchronous=FULL (2): a commit survives a power cut."""
    directory = StateDirectory(tmp_path)
    directory.create()
    connection = directory.connect()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.close()


def test_others_find_it_whole_or_not_at_all(tmp_path: Path) -> None:
    """Who follows published versions looks for it while it is being made."""

    def look(directory: StateDirectory) -> str:
        while not directory.exists():
            pass
        with closing(directory.connect(read_only=True)) as connection:
            return str(connection.execute("SELECT value FROM about WHERE key = 'identity'").fetchone()[0])

    with ThreadPoolExecutor(1) as other:
        for number in range(20):
            directory = StateDirectory(tmp_path / str(number))
            found = other.submit(look, directory)
            directory.create()
            assert len(found.result(10)) == 32
            assert not [*directory.path.glob(".state*")]


def test_what_a_killed_beginning_has_left_is_made_anew(tmp_path: Path) -> None:
    """And an empty file in the database's place is none."""
    directory = StateDirectory(tmp_path)
    directory.database.touch()
    with closing(sqlite3.connect(tmp_path / ".state.sqlite.new")) as half:
        half.execute("PRAGMA journal_mode = WAL")
        half.execute("CREATE TABLE owner (half)")
        directory.create()
    with closing(directory.connect()) as connection:
        assert connection.execute("SELECT epoch FROM owner").fetchone() == (0,)


@pytest.mark.parametrize("left", ["nothing", "an empty file"])
def test_a_write_ahead_log_without_its_database_is_left_alone(tmp_path: Path, left: str) -> None:
    """It has commits that nothing else has: no new database is put in that one's place."""
    directory = StateDirectory(tmp_path)
    directory.create()
    file = tmp_path / "state.sqlite-wal"
    with closing(directory.connect()) as connection:
        connection.execute("UPDATE owner SET epoch = 7")
        held = file.read_bytes()
    directory.database.unlink()
    if left == "an empty file":
        directory.database.touch()
    file.write_bytes(held)
    with pytest.raises(StateError, match=r"needed state\.sqlite, to which state\.sqlite-wal belongs, got none"):
        directory.create()
    assert file.read_bytes() == held


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A foreign SQLite file named state.sqlite is refused and gets no table of ours."""
    foreign = sqlite3.connect(tmp_path / "state.sqlite")
    foreign.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StateError, match="another program's"):
        StateDirectory(tmp_path).create()
    assert foreign.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    foreign.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Garbage in place of the database is an error of ours that names the file."""
    (tmp_path / "state.sqlite").write_bytes(os.urandom(4096))
    with pytest.raises(StateError, match=r"state\.sqlite"):
        StateDirectory(tmp_path).create()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """A directory of a later streamkd is refused with both formats."""
    directory = StateDirectory(tmp_path)
    directory.create()
    connection = directory.connect()
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StateConflict, match="format 1 or older, got 9"):
        directory.connect()


def test_reading_a_place_without_state_says_so(tmp_path: Path) -> None:
    """A read-only connection never makes a directory."""
    with pytest.raises(StateError, match="needed a state directory"):
        StateDirectory(tmp_path / "nowhere").connect(read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in the way of the directory is an error of ours with that path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file/state"):
        StateDirectory(tmp_path / "file" / "state").create()


def test_directory_and_versions_need_no_torch() -> None:
    """Processes without torch can look at a state directory and at what is published."""
    script = "import sys, streamkd.state.directory, streamkd.state.versions; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
