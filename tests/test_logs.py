"""What strangers wrote, in the log and on a terminal."""

import io
import logging

import pytest

from streamkd.errors import StreamkdError
from streamkd.logs import OneLine, lines, one_line, some

FORGED = "a\n2026-01-01 ERROR all is lost\r\x1b[2J\x9b31m\u2028\u202e\x00"


def logged(message: object, *arguments: object, **more: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine("%(levelname)s %(message)s"))
    record = logging.LogRecord("x", logging.INFO, __file__, 1, message, arguments, **{"exc_info": None, **more})  # type: ignore[arg-type]
    handler.emit(record)
    return stream.getvalue()


def test_a_message_is_one_line() -> None:
    """Line breaks and escape sequences in a task's name are written out."""
    said = logged("task %s begins", FORGED)
    assert said.count("\n") == 1
    assert said.rstrip("\n").isprintable()
    assert r"a\n2026-01-01 ERROR all is lost\r\x1b[2J" in said


def test_a_fault_keeps_its_fix_on_the_line() -> None:
    """Ours have two lines elsewhere."""
    assert logged("%s", StreamkdError("bad", where="x", fix="mend it")) == "INFO x: bad; fix: mend it\n"


def test_no_line_of_a_traceback_looks_like_a_message() -> None:
    """Each is indented, the stranger's words in it too."""
    try:
        raise ValueError(FORGED)
    except ValueError as fault:
        said = logged("failed", exc_info=(type(fault), fault, fault.__traceback__))
    first, *rest = said.rstrip("\n").split("\n")
    assert first == "INFO failed"
    assert len(rest) > 3
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in said


@pytest.mark.parametrize("text", ["plain", "grüße 数 😀", "a b-c/d.e"])
def test_what_can_be_seen_stays(text: str) -> None:
    """In any script."""
    assert one_line(text) == lines(text) == text


def test_of_many_names_a_few_are_shown() -> None:
    """As many as are asked for, each on one line, and how many more there are."""
    assert some(["a", "b\nc"], 2) == r"a, b\nc"
    assert some(range(30), 3) == "0, 1, 2, … 27 more"
