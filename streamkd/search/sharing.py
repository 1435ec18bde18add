"""Recordings in one file that every child process maps: read once, in memory once, however many trials run.

    recordings ─► pickle with its buffers apart ─► file of a private folder ─► mapped by each child, nothing copied

The file lives as long as the engine's run and goes to children of this process only; what a killed run left is swept
away by the next one. Called by ``search.local`` and ``search.worker``.
"""

import fcntl
import mmap
import os
import pickle
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamkd.search.recording import Recording

ALIGNED = 64  # bytes; as Arrow has its buffers
PREFIX, LOCK = "streamkd-tune-", "lock"
YOUNG_SECONDS = 60.0
"""A folder of that age may not have its lock yet."""


@contextmanager
def folder() -> Iterator[Path]:
    """A private folder for as long as the block; it is locked, so that those without an owner can be told."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _sweep(left)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as made:
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
        pass
    finally:
        os.close(handle)


def write(recordings: "Mapping[int, Recording]", file: Path) -> None:
    """Put the recordings into the file: lengths, the pickle, its buffers."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(dict(recordings), protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    lengths = struct.pack(f"<{len(parts) + 1}Q", len(parts), *(part.nbytes for part in parts))
    with file.open("wb") as out:
        for part in (memoryview(lengths), *parts):
            out.write(bytes(-out.tell() % ALIGNED))
            out.write(part)


def read(file: Path) -> "Mapping[int, Recording]":
    """The recordings over the mapped file, which stays mapped as long as they are used."""
    with file.open("rb") as opened:
        whole = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    (count,) = struct.unpack_from("<Q", whole)
    at, parts = 8 * (count + 1), []
    for length in struct.unpack_from(f"<{count}Q", whole, 8):
        at += -at % ALIGNED
        parts.append(whole[at : at + length])
        at += length
    recordings: Mapping[int, Recording] = pickle.loads(parts[0], buffers=parts[1:])
    return recordings
