"""A folder for as long as it is needed, however its process ends: what a killed one left goes with the next.

folder(prefix) ─► those of this prefix that nobody holds are removed ─► a new one, locked ─► removed at the end
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "lock"
YOUNG_SECONDS = 60.0
"""A folder of that age may not have its lock yet."""


@contextmanager
def folder(prefix: str, above: Path | None = None) -> Iterator[Path]:
    """A private folder until the end of the block, in ``above`` or where temporary files are.

    It is locked, so that one whose process was killed can be told from one in use.
    """
    above = above or Path(tempfile.gettempdir())
    for left in above.glob(f"{prefix}*"):
        _sweep(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=above, ignore_cleanup_errors=True) as made:
        handle = os.open(Path(made) / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield Path(made)
        finally:
            os.close(handle)


def _sweep(left: Path) -> None:
    """Remove a folder of this user that nobody holds."""
    try:
        found = left.stat()
        if found.st_uid != os.getuid() or time.time() - found.st_mtime < YOUNG_SECONDS:
            return
        handle = os.open(left / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # it went meanwhile, or is somebody else's
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left, ignore_errors=True)
    except OSError:
        pass  # its process lives
    finally:
        os.close(handle)
