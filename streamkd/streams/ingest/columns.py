"""The columns that producers send, as they came: what is new among them is told once, and kept in the log's file.

    batch ─► as the one before? ─► news ─► the log's ``about``, a warning ─► `streamkd inspect`

Nothing is refused here: what does not fit was, before (``canonical.check_schema``).
"""

import json
import logging
import threading

import pyarrow as pa

from streamkd.errors import Overloaded
from streamkd.logs import one_line, some
from streamkd.streams.encoding.contract import Types, news
from streamkd.streams.log.log import Log

NOTED = "columns"
logger = logging.getLogger(__name__)


class SentColumns:
    """What one log was ever sent; any thread may look."""

    def __init__(self, log: Log) -> None:
        self._log, self._mutex = log, threading.Lock()
        self._types, self._last = sent_columns(log), pa.schema([])

    def see(self, sent: pa.Schema, sender: str) -> None:
        """A batch came with these columns."""
        if sent.equals(self._last):
            return
        with self._mutex:
            self._last = sent
            before, now = self._types, news(sent, self._types)
            if now is before:
                return
            self._types = now
            if before:
                fresh = [f"{name} ({found[-1]})" for name, found in now.items() if found != before.get(name)]
                logger.warning("%s sends columns as they have not come before: %s", one_line(sender), some(fresh))
            try:
                self._log.file.note(NOTED, json.dumps(now))
            except Overloaded as fault:  # told again after the next start
                logger.warning("the columns that are sent are not noted: %s", fault)


def sent_columns(log: Log) -> Types:
    """Of each column the types in which a log's records were sent, over Arrow; of JSON nothing is known."""
    found: Types = json.loads(log.file.noted(NOTED) or "{}")
    return found
