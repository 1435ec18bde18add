"""Text that strangers wrote, shown to people: one record of the log is one line, and a terminal obeys nobody.

    "task one\\n2026-01-01 ERROR all is lost\\x1b[2J" ─► 'task one\\\\n2026-01-01 ERROR all is lost\\\\x1b[2J'

Names of tasks, labels and producers come from records. Line breaks in them would forge lines of the log, escape
sequences would command the terminal that shows it.
"""

import copy
import logging
import sys
import time
from collections.abc import Sequence

SAY_SECONDS = 60.0  # between two times that the same fault is said
_FIX = "\n  fix: "  # how a StreamkdError says what to do
# C0 and C1, line and paragraph separators, and what turns the direction of writing
_CONTROLS = [*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPED = {code: repr(chr(code))[1:-1] for code in _CONTROLS}
_ESCAPED_LINES = {code: said for code, said in _ESCAPED.items() if code != 10}


def one_line(text: str) -> str:
    """The text with everything that is no character to be seen written out."""
    return text.replace(_FIX, "; fix: ").translate(_ESCAPED)


def lines(text: str) -> str:
    """The same, with its line breaks."""
    return text.translate(_ESCAPED_LINES)


def some(names: Sequence[object], most: int = 12) -> str:
    """The first few of many names, each on one line."""
    shown = ", ".join(one_line(str(name)) for name in names[:most])
    return f"{shown}, … {len(names) - most} more" if len(names) > most else shown


class OneLine(logging.Formatter):
    """A message on one line; a traceback below it, indented, so that no line of it looks like a message."""

    def format(self, record: logging.LogRecord) -> str:
        plain = copy.copy(record)
        plain.msg, plain.args = one_line(record.getMessage()), None
        plain.exc_text = None
        return super().format(plain)

    def formatException(self, ei: object) -> str:  # noqa: N802
        return "\n".join("    " + line for line in lines(super().formatException(ei)).split("\n"))  # type: ignore[arg-type]


class Seldom:
    """Warnings of what is tried again and again: each kind is logged once a minute."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._logged: dict[tuple[str, str], float] = {}

    def say(self, where: str, kind: str, text: str) -> None:
        """Log it, unless its kind was logged lately."""
        now = time.monotonic()
        if now - self._logged.get((where, kind), -SAY_SECONDS) >= SAY_SECONDS:
            self._logged[where, kind] = now
            self._logger.warning("%s: %s", where, text)


def to_stderr(form: str) -> None:
    """The log of this process, unless it has one."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(form))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def about(form: str) -> None:
    """Let the lines of this process' log have another form from now on."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(OneLine(form))
