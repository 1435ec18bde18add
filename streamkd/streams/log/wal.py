"""What SQLite leaves out of a write-ahead log without a word: the first broken frame, and all that stands behind it.

::

    FILE-wal   header, salts | frame | frame, commit | BROKEN | frame | frame, commit | frames of an earlier round
                               ◄──── SQLite reads this ────►  ◄─── and nothing of this, though it was on disk ───►
    FILE-shm   how many frames were committed, where a process was killed and nobody has opened the file since

A power failure may tear the last commit, which then nobody was told of. Anything more is damage: records that were
acknowledged would vanish, and the next write would lie over them. So who opens a file for writing looks first.
(Formats: sqlite.org/fileformat2.html section 4, sqlite.org/walformat.html.)
"""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_HEADER, _FRAME = 32, 24  # bytes
_MAGIC = 0x377F0682  # its last bit: the words of the checksum have their highest byte first
_VERSION = 3_007_000
_INDEX_HEADER, _BACKFILLED = 48, 96  # bytes; two copies, then how many frames the file itself has
_TORN = 1  # commits that a power failure may leave behind a broken frame
_LOOKS, _SECONDS = 3, 0.01


class _Index(NamedTuple):
    """What is known of a log beside it: its frames, how many of them are in the file itself, its salts."""

    frames: int
    backfilled: int
    salts: bytes


@dataclass(frozen=True, slots=True)
class _Scan:
    """Frames that SQLite reads, commits behind them that it does not, and the log's salts; none: a broken header."""

    frames: int = 0
    commits_behind: int = 0
    salts: bytes | None = b""


def left_out(database: Path) -> str | None:
    """What of the write-ahead log of a database would be lost, in a line; ``None`` where nothing is.

    Reads the files alone: no connection, which would already forget what is told here. Others may write meanwhile:
    damage stays, what only looks like it is gone at the next look.
    """
    said = None
    for _ in range(_LOOKS):
        if (said := _look(database)) is None:
            return None
        time.sleep(_SECONDS)
    return said


def _look(database: Path) -> str | None:
    wal = database.with_name(f"{database.name}-wal")
    index = _index(database.with_name(f"{database.name}-shm"))  # first: what it knows is on disk by now
    try:
        scan = _read(wal)
    except OSError as fault:
        return f"{wal.name} cannot be read: {fault.strerror or fault}"
    if scan.salts is None:
        return f"the header of {wal.name} is damaged: nothing of it can be read"
    if scan.commits_behind > _TORN:
        return f"{wal.name} is damaged at frame {scan.frames + 1}, and {scan.commits_behind} commits stand behind it"
    if index is None or index.frames <= scan.frames:
        return None
    if scan.salts == index.salts:
        return f"{wal.name} has {scan.frames} whole frames of the {index.frames} that were committed"
    if not scan.salts and index.frames > index.backfilled:
        return f"{wal.name} is missing, with {index.frames - index.backfilled} frames that were committed"
    return None


def _read(wal: Path) -> _Scan:
    """The log; of one that began again while it was read, nothing."""
    try:
        with wal.open("rb", buffering=0) as file:
            scan = _scan(file, header := file.read(_HEADER))
            file.seek(0)
            return scan if file.read(_HEADER) == header else _Scan(salts=b"begun again")
    except FileNotFoundError:
        return _Scan()


def _scan(file: FileIO, header: bytes) -> _Scan:
    if len(header) < _HEADER:
        return _Scan()
    magic, version, page_bytes, _, _, _, *held = struct.unpack(">8I", header)
    words = ">u4" if magic & 1 else "<u4"
    is_header = magic & ~1 == _MAGIC and version == _VERSION and page_bytes in {1 << bits for bits in range(9, 17)}
    if not is_header or _checksum((0, 0), header[:24], words) != tuple(held):
        # it is on disk before any frame: of a file that has just been begun nothing else is there
        return _Scan(salts=None if any(map(any, iter(lambda: file.read(1 << 16), b""))) else b"")
    salts, sums = header[16:24], (held[0], held[1])
    whole = committed = behind = 0
    broken = False
    for frame, page in _frames(file, page_bytes):
        number, size, _, _, *held = struct.unpack(">6I", frame)
        is_ours = frame[8:16] == salts and number > 0
        sums = _checksum(sums, frame[:8] + page, words) if not broken else sums
        broken = broken or not is_ours or sums != tuple(held)
        if not broken:
            whole += 1
            committed = whole if size else committed
        elif is_ours and size:
            behind += 1
    return _Scan(committed, behind, salts)


def _frames(file: FileIO, page_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """The header and the page of each whole frame."""
    while len(held := file.read(_FRAME + page_bytes)) == _FRAME + page_bytes:
        yield held[:_FRAME], held[_FRAME:]


def _index(shm: Path) -> _Index | None:
    """What the shared memory of the processes says; ``None`` where it is not there, or not whole."""
    try:
        with shm.open("rb") as file:
            held = file.read(_BACKFILLED + 4)
    except OSError:
        return None
    first, second = held[:_INDEX_HEADER], held[_INDEX_HEADER:_BACKFILLED]
    if len(held) < _BACKFILLED + 4 or first != second:
        return None
    if struct.unpack("=I", first[:4])[0] != _VERSION or not first[12]:
        return None
    if _checksum((0, 0), first[:40], "=u4") != struct.unpack("=2I", first[40:]):
        return None
    frames, backfilled = (struct.unpack("=I", held[place : place + 4])[0] for place in (16, _BACKFILLED))
    return _Index(frames, backfilled, first[32:40])


def _checksum(before: tuple[int, int], data: bytes, words: str) -> tuple[int, int]:
    """SQLite's running checksum: s1 += x[2i] + s2; s2 += x[2i+1] + s1, of 32 bits.

    With t[0] = s1, t[1] = s2 it is t[m+2] = t[m] + t[m+1] + x[m]: each word comes back as often as a Fibonacci
    number says, so a page is two products of vectors.
    """
    x = np.frombuffer(data, words).astype(np.uint32)
    weights, last = _fibonacci(len(x))  # F(n), F(n-1) ... F(0)
    s1 = int(weights[1:] @ x) + last * before[0] + int(weights[0]) * before[1]
    s2 = int(weights[:-1] @ x) + int(weights[0]) * before[0] + (int(weights[0]) + last) * before[1]
    return s1 & 0xFFFFFFFF, s2 & 0xFFFFFFFF


@lru_cache(maxsize=8)
def _fibonacci(count: int) -> tuple[npt.NDArray[np.uint32], int]:
    """F(count) down to F(0) and F(count - 1), modulo 2³²."""
    numbers = [0, 1]
    while len(numbers) < count + 1:
        numbers.append((numbers[-1] + numbers[-2]) & 0xFFFFFFFF)
    return np.array(numbers[count::-1], np.uint32), numbers[count - 1]
