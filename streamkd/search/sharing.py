"""Recordings in one file that every child process maps: read once, in memory once, however many trials run.

    recordings ─► pickle with its buffers apart ─► file of a private folder ─► mapped by each child, nothing copied

The file lies in a folder of ``search.scratch`` and goes to children of this process only. Called by ``search.local``
and ``search.worker``.
"""

import mmap
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamkd.search.recording import Recording

ALIGNED = 64  # bytes; as Arrow has its buffers


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
