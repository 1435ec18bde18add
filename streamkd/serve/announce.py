"""Lines for whoever started the server. A reader that has gone away (``| head -1``) ends nothing."""

import os
from contextlib import suppress
from typing import TextIO


def announce(text: str, stream: TextIO | None) -> None:
    """Print a line, where there is still somebody to read it."""
    if stream is None:  # it was closed before we started
        return
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    """What is left in the buffer must not fail again when the interpreter ends: that would be exit code 120."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
