"""A directory, or what is under a prefix of a bucket: which files are there, and each as a file of this machine.

    DIR | s3://bucket/prefix?... | gs://bucket/prefix?... ─► look ─► WatchedFile, WatchedFile, ... ─► at_hand ─► path

An object is fetched whole before it is read, so that a broken line to the bucket is never taken for a broken file.
"""

import contextlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pa_fs

from streamkd import logs
from streamkd.errors import ConfigError, first_line

PLAIN = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")
SCHEMES = ("s3", "gs", "file")
HIDDEN = (".", "_")  # how names begin of what is not meant for readers: .part, _SUCCESS, _temporary/
NAME_CHARACTERS = 100  # of a fetched file: its suffixes say how it is read
COPY_BYTES = 1 << 20
logger = logging.getLogger(__name__)


class Unsettled(OSError):
    """A file is another one than it was when it was seen."""


class WatchedFile(NamedTuple):
    """One file as it was seen; ``modified``: in nanoseconds since 1970."""

    name: str
    size: int
    modified: int


class WatchedPlace:
    """One directory or prefix, with everything below it. Every method raises ``OSError`` where it cannot be reached."""

    def __init__(self, path: str, pattern: str | None, scratch: Path) -> None:
        """``pattern``: of the names' ends; ``None``: files whose format shows. Objects are fetched into ``scratch``.

        Raises:
            ConfigError: an address that cannot be used.
        """
        self._pattern, self._scratch = pattern, scratch
        self._odd = logs.Seldom(logger)
        self._scheme = "" if "://" not in path else f"{urlsplit(path).scheme}://"
        self._system, self._base = _opened(path) if self._scheme else (pa_fs.LocalFileSystem(), path)
        self._is_local = isinstance(self._system, pa_fs.LocalFileSystem)
        if self._is_local:
            self._scheme, self._base = "", str(Path(self._base).absolute())
        self.url = self._scheme + self._base.rstrip("/")

    def look(self) -> list[WatchedFile]:
        """All files that are to be read some time, as they are now; an empty one is none yet."""
        found = self._local(self._base) if self._is_local else self._objects()
        return [each for each in found if each.size and self._is_wanted(each.name.removeprefix(self._scheme))]

    @contextlib.contextmanager
    def at_hand(self, found: WatchedFile) -> Iterator[Path]:
        """The file, to be read.

        Raises:
            Unsettled: it is another one by now.
        """
        path = found.name.removeprefix(self._scheme)
        if self._is_local:
            self._refuse_other(found)
            yield Path(path)
            return
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        copy = self._scratch / PurePosixPath(path).name[-NAME_CHARACTERS:]
        try:
            with self._system.open_input_stream(path) as file, copy.open("wb") as target:
                shutil.copyfileobj(file, target, COPY_BYTES)
            self._refuse_other(found)
            yield copy
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _objects(self, path: str | None = None) -> Iterator[WatchedFile]:
        """What is under the prefix, or at one ``path``."""
        asked = pa_fs.FileSelector(self._base, recursive=True) if path is None else [path]
        for info in self._system.get_file_info(asked):
            if info.is_file:
                yield WatchedFile(self._scheme + info.path, info.size or 0, info.mtime_ns or 0)

    def _local(self, folder: str) -> Iterator[WatchedFile]:
        """Links to files are files; those to folders are not followed, as they may lead round in a circle."""
        for inside, folders, names in os.walk(folder, onerror=_refuse):
            folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
            for path in (Path(inside) / name for name in names):
                if str(path).isprintable():
                    yield from _at(path)
                else:  # bytes that are no text, or a line end
                    self._odd.say(repr(str(path)), "name", "is not read: its name is not text of one line; rename it")

    def _refuse_other(self, found: WatchedFile) -> None:
        path = found.name.removeprefix(self._scheme)
        now = list(_at(Path(path)) if self._is_local else self._objects(path))
        if now != [found]:
            raise Unsettled("it has changed since it was seen" if now else "it is gone")

    def _is_wanted(self, path: str) -> bool:
        below = PurePosixPath(path).relative_to(self._base)
        if any(part.startswith(HIDDEN) for part in below.parts):
            return False
        if self._pattern is not None:
            return below.match(self._pattern)
        return below.name.lower().removesuffix(".gz").endswith(PLAIN)


def _at(path: Path) -> Iterator[WatchedFile]:
    """A local file; nothing where it is gone, or something else."""
    with contextlib.suppress(FileNotFoundError):
        seen = path.stat()
        if stat.S_ISREG(seen.st_mode):
            yield WatchedFile(str(path), seen.st_size, seen.st_mtime_ns)


def _refuse(fault: OSError) -> None:
    """A folder that cannot be read now is no empty one."""
    raise fault


def check_path(path: str) -> str:
    """A directory, or an address of one.

    Raises:
        ValueError: of no kind that can be watched, or with a secret.
    """
    parts = urlsplit(path)
    if "://" not in path:
        return path
    if parts.scheme not in SCHEMES:
        raise ValueError(f"needed a directory, s3://, gs:// or file://, got {parts.scheme}://")
    if parts.password is not None or (parts.scheme == "s3" and parts.username is not None):
        raise ValueError("a secret has no place in it: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return path


def _opened(path: str) -> tuple[pa_fs.FileSystem, str]:
    try:
        system, base = pa_fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError, ValueError) as fault:
        raise ConfigError(f"cannot be used: {first_line(fault)}", where=f"stream.source.path: {path}") from None
    return system, base
