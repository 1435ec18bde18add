"""Parts of a state directory that are not of one time: refused with a line for each, and nothing touched."""

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from streamkd.errors import StateConflict
from streamkd.records import InputColumn, RecordSchema
from streamkd.state import coherence
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore
from streamkd.streams.log.log import Log

SCHEMA = RecordSchema(inputs=(InputColumn(name="x"),))


def grow(log: Log, rows: int) -> None:
    """Append rows of one number each."""
    x = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * rows, pa.float32()), 1)
    log.append(pa.RecordBatch.from_arrays([x, pa.array(range(rows))], schema=log.arrow_schema))


@contextmanager
def owned(path: Path) -> Iterator[tuple[Log, CheckpointStore, VersionStore]]:
    """The directory as a learner opens it: looked at, claimed, with its log."""
    directory = StateDirectory(path)
    with directory.lock(lambda: coherence.refuse_misfits(directory, pushed=True)):
        log, checkpoints, versions = Log(directory.log, SCHEMA), CheckpointStore(directory), VersionStore(directory)
        coherence.claim(directory, log)
        try:
            yield log, checkpoints, versions
        finally:
            for part in (log, checkpoints, versions):
                part.close()


def go_on(path: Path, times: int = 1) -> None:
    """Ten records more, all learned: a checkpoint and a version, each time."""
    with owned(path) as (log, checkpoints, versions):
        for _ in range(times):
            grow(log, 10)
            end = log.end()
            marks = {log.partition: str(log.mark(end))}
            checkpoints.save({}, offsets={"main/0": end}, records=end, config={}, environment={}, marks=marks)
            versions.publish(lambda folder: (folder / "model").write_text("m") and None, records=end)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Three checkpoints, the newest at record 30, three versions, and a log of 30; ``old`` is a copy at record 20."""
    go_on(tmp_path / "state", 2)
    shutil.copytree(tmp_path / "state", tmp_path / "old")
    go_on(tmp_path / "state")
    return tmp_path / "state"


def contents(path: Path) -> dict[str, str]:
    """A hash for each file, but for the lock and what SQLite makes of itself to look into a file."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != "lock" and file.stat().st_size]
    hashes = {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    return {name: value for name, value in hashes.items() if not name.endswith("-shm")}


def replace(state: Path, name: str, source: Path | None) -> None:
    """Put another copy of a part in its place, or none."""
    for part in state.glob(f"{name}*"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    if source is not None:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, state / name)


def test_a_whole_directory_goes_on(state: Path) -> None:
    """Nothing is refused where nothing was done, nor in an empty place."""
    go_on(state)
    go_on(state.with_name("elsewhere"))


def other_log(state: Path) -> None:
    """The log of another directory, of as many records."""
    go_on(state.with_name("other"), 3)
    replace(state, "log.sqlite", state.with_name("other"))


def grown_log(state: Path) -> None:
    """An older copy of the log that took other records meanwhile, up to where the checkpoint is and on."""
    replace(state, "log.sqlite", state.with_name("old"))
    log = Log(state / "log.sqlite", SCHEMA)
    grow(log, 20)
    log.close()


def trimmed_log(state: Path) -> None:
    """The database and its folders as they were at record 20, beside a log that has forgotten those up to 30."""
    go_on(state, 1)
    for name in ("state.sqlite", "checkpoints", "published"):
        replace(state, name, state.with_name("old"))
    log = Log(state / "log.sqlite", SCHEMA)
    assert log.trim(35) == 30
    log.close()


def gap_in_log(state: Path) -> None:
    """A batch in the middle is not there."""
    connection = sqlite3.connect(state / "log.sqlite", isolation_level=None)
    connection.execute("DELETE FROM batches WHERE first = 10")
    connection.close()


def cut_short(name: str) -> Callable[[Path], None]:
    """The file's last three quarters are gone."""

    def cut(state: Path) -> None:
        content = (state / name).read_bytes()
        (state / name).write_bytes(content[: len(content) // 4])

    return cut


def old(*names: str) -> Callable[[Path], None]:
    return lambda state: [replace(state, name, state.with_name("old")) for name in names] and None


def gone(*names: str) -> Callable[[Path], None]:
    return lambda state: [replace(state, name, None) for name in names] and None


def empty(name: str) -> Callable[[Path], None]:
    def cut(state: Path) -> None:
        replace(state, name, None)
        (state / name).mkdir() if "." not in name else (state / name).write_bytes(b"")

    return cut


MISFITS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no database": (gone("state.sqlite"), ("state.sqlite .*is missing", "checkpoints/ .*has 1, 2, 3, which")),
    "empty database": (empty("state.sqlite"), ("state.sqlite .*is empty", "published/ .*has 1, 2, 3, which")),
    "damaged database": (cut_short("state.sqlite"), ("state.sqlite .*NOT FIT: (is damaged|cannot be read)",)),
    "older database": (old("state.sqlite"), ("checkpoints/ .*has 3, which .*up to 2", "published/ .*has 3, which")),
    "no checkpoints": (gone("checkpoints"), ("checkpoints/ .*needed 1, 2, 3, has none",)),
    "empty checkpoints": (empty("checkpoints"), ("checkpoints/ .*needed 1, 2, 3, has none",)),
    "no versions": (gone("published"), ("published/ .*needed 1, 2, 3, has none",)),
    "only folders and log": (
        gone("state.sqlite", "published"),
        (
            "state.sqlite .*is missing",
            "checkpoints/ .*it knows none",
            "published/ +has none",
            "log.sqlite +holds the records from 0",
        ),
    ),
    "no log": (gone("log.sqlite"), ("log.sqlite .*is missing; 30 of its records are learned",)),
    "empty log": (empty("log.sqlite"), ("log.sqlite .*is empty; 30 of its records are learned",)),
    "damaged log": (cut_short("log.sqlite"), ("log.sqlite .*NOT FIT: (is damaged|cannot be)",)),
    "older log": (old("log.sqlite"), ("log.sqlite .*ends at record 20, and those up to 30 are learned",)),
    "older log, grown": (grown_log, ("log.sqlite .*has another record before 30",)),
    "another's log": (other_log, ("log.sqlite .*another state directory",)),
    "log trimmed": (trimmed_log, ("log.sqlite .*begins at record 30, and the newest checkpoint goes on from 20",)),
    "log with a gap": (gap_in_log, ("log.sqlite .*records from 10 to 20 are not in it",)),
}


@pytest.mark.parametrize("name", MISFITS)
def test_parts_that_do_not_fit_are_refused_in_words(state: Path, name: str) -> None:
    """A line for each part says what is there, the misfits are marked, the ways out named, and no byte has changed."""
    spoil, words = MISFITS[name]
    spoil(state)
    before = contents(state)
    with pytest.raises(StateConflict) as caught, owned(state):
        pass
    for word in words:
        assert caught.match(word)
    for part in ("state.sqlite", "checkpoints/", "published/", "log.sqlite"):
        assert caught.match(rf"\n  {part} ")
    assert "--state" in caught.value.fix
    assert caught.value.exit_code == 3
    assert contents(state) == before


@pytest.mark.parametrize(
    "fitting",
    [old("state.sqlite", "checkpoints", "published"), gone("state.sqlite", "checkpoints", "published"), gone("lock")],
    ids=["older learner", "log alone", "no lock"],
)
def test_what_can_be_learned_again_goes_on(state: Path, fitting: Callable[[Path], None]) -> None:
    """An older learner beside the log, or a whole log alone: every record is there to be learned."""
    fitting(state)
    with owned(state) as (log, _, _):
        assert (log.begin(), log.end()) == (0, 30)


def test_some_missing_folders_are_no_half_restore(state: Path) -> None:
    """A checkpoint whose folder is gone is passed over for one before it, as a damaged one is."""
    shutil.rmtree(state / "checkpoints" / "3")
    with owned(state) as (_, checkpoints, _):
        found = checkpoints.latest()
    assert found is not None
    assert (found.info.records, [*found.skipped]) == (20, [3])


def test_a_directory_of_before_goes_on(state: Path) -> None:
    """A state without identity and marks, as older versions wrote it, is taken over and has them then."""
    for name, statements in {
        "state.sqlite": ("DROP TABLE about", "ALTER TABLE checkpoints DROP COLUMN marks"),
        "log.sqlite": ("DELETE FROM about WHERE key = 'owner'",),
    }.items():
        connection = sqlite3.connect(state / name, isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        connection.close()
    go_on(state)
    gone("log.sqlite")(state)
    with pytest.raises(StateConflict, match="40 of its records are learned"), owned(state):
        pass


def test_the_ingress_takes_nothing_into_another_log(state: Path) -> None:
    """It looks for itself, as it may be started again while nobody else looks."""
    directory = StateDirectory(state)
    coherence.refuse_other_log(directory)
    old("log.sqlite")(state)
    with pytest.raises(StateConflict, match="ends at record 20"):
        coherence.refuse_other_log(directory)
    with pytest.raises(StateConflict, match=r"state\.sqlite .*is missing"):
        coherence.refuse_other_log(StateDirectory(state.with_name("nowhere")))


def test_a_rollback_meanwhile_is_no_misfit(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor rolls back while a learner that was killed is started again and looks at the parts."""
    directory = StateDirectory(state)
    look = coherence._database

    def look_and_roll_back(where: StateDirectory) -> object:
        found = look(where)
        with closing(VersionStore(directory)) as versions:
            assert versions.rollback(1) == 4
        return found

    monkeypatch.setattr(coherence, "_database", look_and_roll_back)
    coherence.refuse_misfits(directory, pushed=True)
