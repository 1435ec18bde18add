"""A thread that dies takes its process along: half a process that answers "ready" is worse than none.

    an error that nobody caught, in any thread ─► logged ─► told, where it is ours ─► the process ends at once

The supervisor starts an ended child again, and a service manager the supervisor. Called first thing by the
``main`` of each process of a server; a library's user keeps their own ``threading.excepthook``.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from streamkd.errors import StreamkdError

DIED = 70  # exit code; EX_SOFTWARE of sysexits.h
TELL_SECONDS = 5.0  # for ``tell``, which may wait for a peer that reads no more
Tell = Callable[[StreamkdError], object]
logger = logging.getLogger(__name__)


def end_process_when_one_dies(tell: Tell | None = None) -> None:
    """From now on whatever leaves a thread of this process, ``SystemExit`` too, ends the process.

    ``tell`` hears of a ``StreamkdError`` before, which starting again would not help; the exit code is its own, else
    ``DIED``.
    """

    def died(what: threading.ExceptHookArgs) -> None:
        name = what.thread.name if what.thread else "a thread that is gone"
        end_process(what.exc_value or what.exc_type(), name, tell)

    threading.excepthook = died


def run_process(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and end with its exit code, without waiting for other threads or exit handlers.

    An error that leaves ``main`` ends the process as that of any other thread does.
    """
    try:
        code = main()
    except BaseException as fault:  # noqa: BLE001 - whatever it is, the process ends with words
        end_process(fault, "main")
    _end(code)


def end_process(fault: BaseException, thread: str, tell: Tell | None = None) -> NoReturn:
    """Say that a thread has died of ``fault``, once, and end this process."""
    try:
        if tell is not None and isinstance(fault, StreamkdError):
            telling = threading.Thread(target=tell, args=[fault], daemon=True)
            telling.start()
            telling.join(TELL_SECONDS)
        else:
            logger.critical("the thread %r died, so this process ends: %r", thread, fault, exc_info=fault)
    finally:
        _end(fault.exit_code if isinstance(fault, StreamkdError) else DIED)


def _end(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # whoever read them may be gone
        os._exit(code)
