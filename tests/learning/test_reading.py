"""Reading: how a record changes the student can be read in an afternoon, and a step does not wander about."""

import re
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from streamkd import config as configuration
from streamkd import wiring
from streamkd.learner import Learner
from streamkd.plugins import Registry

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "streamkd"
PAGE = (ROOT / "docs/explanation/how-a-record-changes-the-student.md").read_text("utf-8")
LINES = 2_570
ROOMS, MOVES, MODULES = 18, 200, 73  # a default step, in which a record is released, had 18, 196 and 73 last


def test_the_reading_list_is_an_afternoon() -> None:
    """The modules of the page's table have at most so many lines together."""
    modules = re.findall(r"\[`(streamkd/[a-z_/]+\.py)`\]\(\.\./\.\./\1\)", PAGE)
    assert len(modules) == 11
    assert sum(len((ROOT / module).read_text("utf-8").splitlines()) for module in modules) <= LINES


class Trace:
    """The rooms that a call goes through: how often one is entered from another, and the modules that were run."""

    def __init__(self) -> None:
        self.moves: Counter[tuple[str, str]] = Counter()
        self.modules: set[str] = set()
        self._within: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and self._within:
            self._within.pop()
        if event != "call":
            return
        before = self._within[-1] if self._within else ""
        room = self._room(Path(frame.f_code.co_filename)) or before
        if room != before:
            self.moves[before, room] += 1
        self._within.append(room)

    def _room(self, file: Path) -> str:
        if not file.is_relative_to(PACKAGE):
            return ""
        self.modules.add(str(file.relative_to(PACKAGE)))
        return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_a_step_enters_few_rooms_and_not_too_often() -> None:
    """Of the default learner, between two adaptations and two looks; callbacks in a room are no moves."""
    registry = Registry.load()
    config = configuration.load(ROOT / "streams/digits.yaml", [], registry)
    schema = wiring.schema_of(config, registry)
    source, _ = wiring.open_source(config, registry, schema)
    learner = Learner(config, registry, source, schema)
    while learner.records < 370:
        learner.advance()
    trace, profiler = Trace(), sys.getprofile()
    sys.setprofile(trace)
    try:
        learner.advance()
    finally:
        sys.setprofile(profiler)
    rooms = {room for _, room in trace.moves}
    assert {"learning", "replay", "teachers", "gates", "losses", "students"} <= rooms
    assert (len(rooms) <= ROOMS, sum(trace.moves.values()) <= MOVES, len(trace.modules) <= MODULES) == (True,) * 3, (
        len(rooms), sum(trace.moves.values()), trace.moves, len(trace.modules)
    )  # fmt: skip
