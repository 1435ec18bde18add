"""A folder for the sockets of one server; what a killed one left goes with a later start (``serve.scratch``)."""

import os
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from streamkd.errors import ConfigError
from streamkd.serve import scratch

PREFIX = "streamkd-serve-"
SOCKET_BYTES = 103  # of the path of a unix socket: 107 on Linux, 103 on others
LONGEST = PREFIX + "12345678/ingress.sock"


def runtime_folder() -> AbstractContextManager[Path]:
    """A folder that this user alone can enter, until the end of the block.

    Raises:
        ConfigError: no folder for temporary files has a path that is short enough for a socket.
    """
    usual = Path(tempfile.gettempdir())
    for above in (usual, Path("/tmp")):
        if len(os.fsencode(above / LONGEST)) <= SOCKET_BYTES and os.access(above, os.W_OK):
            return scratch.folder(PREFIX, above)
    room = SOCKET_BYTES - len(LONGEST) - 1
    raise ConfigError(
        f"needed a folder for temporary files with a path of at most {room} bytes, got {usual}",
        where="TMPDIR",
        fix="set TMPDIR to a shorter path that this user may write to",
    )
