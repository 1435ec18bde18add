"""Damaged bytes at seeded places of a state directory: it goes on with the right bits, or is refused in words.

One small directory is learned for real, with cuts that only the journal knows; it is copied as a kill leaves it and
as an ordered end does. In a copy one file is damaged, and the learner starts over it as a server starts it.
"""

import contextlib
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streamkd import config as configuration
from streamkd.inspection import weights_sha256
from streamkd.serve.processes import reports as telling
from streamkd.serve.processes.channel import Channel, pair
from streamkd.serve.processes.learner import live
from streamkd.serve.processes.messages import Begin, Stop
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore
from streamkd.streams.log.log import Log

from .test_restores import CONFIG, REGISTRY, hashes, in_folders, learn, rows, started, undisturbed

TREE = configuration.dump(CONFIG)
TREE["stream"]["batch"]["flush_seconds"] = 1e-9  # what has come is a batch: 10, 5, 10, 5 ...
CUT = configuration.from_tree(TREE, REGISTRY)
LEARNED, MORE = 150, 15  # records in the copies, and those that come after
SHORT, LONG = 32, 1_500
SILENT_SECONDS = 60.0  # on a machine that is busy with other tests
NAMES = ("state.sqlite", "checkpoints", "published", "log.sqlite")


@dataclass(frozen=True)
class Learned:
    """The copies, ``killed`` and ``ended``, and an undisturbed learner's weights after so many records."""

    folder: Path
    weights: dict[int, str]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    folder = tmp_path_factory.mktemp("bytes")
    with started(folder / "state", CUT) as process:
        learn(process, LEARNED, 15)
        shutil.copytree(folder / "state", folder / "killed")
        log = process._log
        assert log is not None
        log.close()
    shutil.copytree(folder / "state", folder / "ended")
    with contextlib.closing(Log(folder / "state" / "log.sqlite", CUT.stream.schema_of())) as log:
        log.append(rows(LEARNED, MORE), "p", LEARNED)
    return Learned(folder, undisturbed(folder / "state" / "log.sqlite", CUT))


@dataclass(frozen=True)
class Blow:
    """What happens to which file."""

    form: str
    file: str
    how: str
    place: int


def _flip(data: bytearray, place: int, dice: random.Random) -> None:
    data[place] ^= 1 << dice.randrange(8)


def _scramble(data: bytearray, place: int, dice: random.Random) -> None:
    data[place : place + 16] = dice.randbytes(len(data[place : place + 16]))


def _zero(data: bytearray, place: int, dice: random.Random) -> None:
    start = place - place % 512
    data[start : start + 512] = bytes(len(data[start : start + 512]))


def _truncate(data: bytearray, place: int, dice: random.Random) -> None:
    del data[place:]


HOW: dict[str, Callable[[bytearray, int, random.Random], None]] = {
    "flip": _flip,
    "scramble": _scramble,
    "zero": _zero,
    "truncate": _truncate,
}


def damage(learned: Learned, state: Path, dice: random.Random) -> Blow:
    """Lay a copy down and damage one of its files at a place that holds something."""
    form = dice.choice(["killed", "ended"])
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(learned.folder / form, state)
    kept = [each for each in sorted(state.rglob("*")) if each.is_file() and each.stat().st_size and each.name != "lock"]
    by_part: dict[str, list[Path]] = {}
    for each in kept:
        by_part.setdefault(each.relative_to(state).parts[0], []).append(each)
    file = dice.choice(by_part[dice.choice([part for part in by_part if not part.endswith("-shm")])])
    data = bytearray(file.read_bytes())
    place = dice.choice([place for place, value in enumerate(data) if value])
    how = dice.choice([*HOW, "flip"])
    HOW[how](data, place, dice)
    file.write_bytes(data)
    return Blow(form, str(file.relative_to(state)), how, place)


def lived(state: Path) -> tuple[int, str]:
    """The exit code of a learner that learns all there is and is then stopped, and what it called fatal."""
    ours, theirs = pair()
    said: list[dict[str, Any]] = []
    channel = Channel(theirs)
    supervisor = threading.Thread(target=_supervise, args=[ours, said])
    supervisor.start()
    try:
        code = live(Begin(configuration.dump(CUT), str(state)), channel)
    finally:
        theirs.close()
        supervisor.join()
    return code, "".join(str(message["message"]) for message in said if message["kind"] == "fatal")


def _supervise(channel: Channel, said: list[dict[str, Any]]) -> None:
    """Say stop when all that there is is learned; of a learner that says nothing any more, let go."""
    with contextlib.suppress(EOFError), contextlib.closing(channel):
        while (message := channel.receive(SILENT_SECONDS)) is not None:
            said.append(message)
            if message["kind"] == "beat" and message["ends"] and message["ends"] == message["offsets"]:
                with contextlib.suppress(EOFError):
                    channel.try_to_say(Stop())
        said.append({"kind": "fatal", "message": f"nothing was heard for {SILENT_SECONDS:g} seconds"})


def outcome(learned: Learned, state: Path, blow: Blow) -> str:
    """``refused``, ``fell back`` or ``went on``; whichever it is, it is right."""
    before = hashes(state)
    code, fatal = lived(state)
    if code:
        assert fatal, f"{blow}: exit code {code} without a word: it would be started again, and end the same way"
        assert any(name in fatal for name in NAMES), f"{blow}: {fatal}"
        assert in_folders(before).items() <= hashes(state).items(), f"{blow}: something was removed"
        return "refused"
    end = right(learned, state, blow)
    assert end == LEARNED, f"{blow}: {end} records are left"
    with contextlib.closing(Log(state / "log.sqlite", CUT.stream.schema_of())) as log:
        log.append(rows(end, MORE), "p", end)
    assert lived(state) == (0, ""), blow
    assert right(learned, state, blow) == end + MORE
    return "went on"


def right(learned: Learned, state: Path, blow: Blow) -> int:
    """All that is in the log is learned, with the right bits, and can be served; how many records."""
    directory = StateDirectory(state)
    with contextlib.closing(Log(directory.log, read_only=True)) as log:
        end = log.end()
    with contextlib.closing(CheckpointStore(directory, read_only=True)) as checkpoints:
        snapshot = checkpoints.latest()
    assert snapshot is not None, blow
    assert (snapshot.info.records, snapshot.info.offsets["main/0"], snapshot.tree["records"]) == (end, end, end), blow
    assert weights_sha256(snapshot.tree["learned"]["student"]) == learned.weights[end], f"{blow}: other weights"
    with contextlib.closing(VersionStore(directory, read_only=True)) as versions:
        served = versions.served()
        assert served is not None, blow
        assert versions.read(served.version).is_dir()
        assert served.records == end, blow
    return end


def campaign(learned: Learned, state: Path, seed: int, count: int) -> dict[str, int]:
    """So many seeded places; how often what came of it."""
    dice = random.Random(seed)
    counts: dict[str, int] = {}
    faults = []
    for _ in range(count):
        blow = damage(learned, state, dice)
        try:
            said = outcome(learned, state, blow)
        except BaseException as fault:
            faults.append(f"{blow}: {type(fault).__name__} {fault}"[:900])
            said = "fault"
        counts[said] = counts.get(said, 0) + 1
    assert not faults, "\n".join([str(counts), str(len(faults)), *faults])
    return counts


@pytest.fixture(autouse=True)
def _in_quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner says at once that it has learned all."""
    monkeypatch.setattr(telling, "BEAT_SECONDS", 0.005)


def test_damaged_bytes_are_refused_or_change_nothing(learned: Learned, tmp_path: Path) -> None:
    """A few seeded places in every part of the directory."""
    counts = campaign(learned, tmp_path / "state", 14, SHORT)
    assert counts["refused"]
    assert counts["went on"]


CELLS = [
    ("state.sqlite", "UPDATE checkpoints SET offsets = '{\"main/0\": 15}' WHERE id = 9"),
    ("state.sqlite", "UPDATE checkpoints SET records = 15 WHERE id = 9"),
    ("state.sqlite", "UPDATE checkpoints SET sha256 = replace(sha256, ':', ';')"),
    ("state.sqlite", "UPDATE checkpoints SET sha256 = CAST(x'7bff' AS TEXT)"),
    ("state.sqlite", "UPDATE checkpoints SET sha256 = x'7b7d'"),
    ("state.sqlite", "UPDATE checkpoints SET marks = '[]'"),
    ("state.sqlite", "UPDATE versions SET sha256 = CAST(x'ff' AS TEXT)"),
    ("state.sqlite", "UPDATE about SET value = CAST(x'ff' AS TEXT)"),
    ("log.sqlite", "UPDATE about SET value = '{' WHERE key = 'schema'"),
    ("log.sqlite", "UPDATE about SET value = CAST(x'ff' AS TEXT) WHERE key = 'owner'"),
    ("log.sqlite", "INSERT OR REPLACE INTO about VALUES ('committed', '1e')"),
    ("log.sqlite", "UPDATE batches SET producer = CAST(x'ff' AS TEXT)"),
    ("log.sqlite", "UPDATE cuts SET stop = stop - 1"),
    *[
        (name, f"PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}')")
        for name, old, new in (
            ("state.sqlite", "learned", "leqrned"),
            ("state.sqlite", "source_version", "source_versinn"),
            ("state.sqlite", "one = 1", "one = 3"),
            ("log.sqlite", "receipts", "receipps"),
            ("log.sqlite", "checksum INTEGER", "checksum INTEGES"),
        )
    ],
]


@pytest.mark.parametrize(("name", "statement"), CELLS)
def test_a_cell_that_says_something_else_is_refused_or_changes_nothing(
    learned: Learned, tmp_path: Path, name: str, statement: str
) -> None:
    """What SQLite's own check does not look into: texts, and numbers that are as good as others."""
    state = tmp_path / "state"
    shutil.copytree(learned.folder / "ended", state)
    shutil.rmtree(state / "checkpoints" / "10")  # the newest, so that there is something to learn again
    with contextlib.closing(sqlite3.connect(state / name)) as connection:
        connection.executescript(statement)
        connection.commit()
    outcome(learned, state, Blow("ended", name, statement, 0))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_damage_at_very_many_places(learned: Learned, tmp_path: Path, seed: int) -> None:
    """The same, at so many places that whatever can be hit is."""
    campaign(learned, tmp_path / "state", seed, LONG)
