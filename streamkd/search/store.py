"""A folder on a disk or in a bucket, whose files are there whole or not at all.

    disk    bytes ─► a file beside ─► fsync ─► rename ─► fsync of the folder
    bucket  bytes ─► one object, which appears when it is closed

Whoever is killed in between leaves the old file or the new one. Called by ``streamkd.search.ledger`` and
``streamkd.search.results``.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from streamkd.errors import StateError
from streamkd.state.directory import sync


class Store:
    """The files under one place: a local folder, or a URI that ``pyarrow.fs`` opens (``s3://``, ``gs://``).

    ``files`` is the file system itself where a caller has one; ``place`` is then a path in it.
    """

    def __init__(self, place: Path | str, files: fs.FileSystem | None = None) -> None:
        self.place = str(place)
        self._files, self._root = (files, self.place) if files else _opened(self.place)

    def __str__(self) -> str:
        return self.place

    @property
    def local(self) -> Path | None:
        """The folder, where it lies on a disk of this machine."""
        return Path(self._root) if isinstance(self._files, fs.LocalFileSystem) else None

    def create(self) -> None:
        """Make the folder where it is not there yet.

        Raises:
            StateError: the place cannot be written.
        """
        with _said(self.place, "a place that can be written"):
            self._files.create_dir(self._root, recursive=True)

    def write(self, name: str, content: bytes) -> None:
        """Put a file, or replace it, in one step; its folder is made where needed.

        Raises:
            StateError: the place cannot be written.
        """
        with _said(f"{self.place}/{name}", "a file that can be written"):
            if self.local is not None:
                _replace(self.local / name, content)
                return
            path = self._path(name)
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(path) as stream:
                stream.write(content)

    def read(self, name: str) -> bytes | None:
        """A file's bytes; ``None`` where there is none.

        Raises:
            StateError: it is there and cannot be read.
        """
        with _said(f"{self.place}/{name}", "a file that can be read"):
            try:
                with self._files.open_input_stream(self._path(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """The files of a folder, sorted; those that are being written (or were, when somebody was killed) are left out.

        Raises:
            StateError: the folder cannot be read.
        """
        with _said(f"{self.place}/{folder}", "a folder that can be read"):
            found = self._files.get_file_info(fs.FileSelector(self._path(folder), allow_not_found=True))
        return sorted(i.base_name for i in found if i.type == fs.FileType.File and not i.base_name.startswith("."))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _opened(place: str) -> tuple[fs.FileSystem, str]:
    """File system and path of a place; relative paths are of the working directory."""
    if "://" not in place:
        return fs.LocalFileSystem(), str(Path(place).absolute())
    try:
        files, path = fs.FileSystem.from_uri(place)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ImportError) as fault:
        said = str(fault).splitlines()[0]
        raise StateError(
            f"needed a folder or a URI such as s3://bucket/folder, got: {said}", where=place, fix="name another place"
        ) from None
    return files, path.rstrip("/")


@contextmanager
def _said(where: str, needed: str) -> Iterator[None]:
    """An operating system's or a bucket's error, told as ours."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as fault:
        said = getattr(fault, "strerror", None) or str(fault).splitlines()[0]
        raise StateError(f"needed {needed}, got: {said}", where=where, fix="free it, or name another") from fault


def _replace(path: Path, content: bytes) -> None:
    """The file under a name of its own, synced, then renamed; the name is synced too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    sync(path.parent)
