"""The source ``files``: new files of a directory or a bucket, read from where the log is and written to it like what is
pushed.

    file ─► batches ─► intake ─► log: rows, the file's next row and its entry, in one transaction
      ▲                   ▲
      └──── at our row ───┴── full: unread

A thread of the ingress reads, and ends when the intake drains. Whatever passes by itself (no bucket, no room) is told
and waited for; a file that is broken is told and left alone.
"""

import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from streamkd.errors import NotReady, StreamkdError
from streamkd.hookspecs import Options, SourceKind, hookimpl
from streamkd.streams.files.dialect import CsvDialect
from streamkd.streams.ingest.intake import Ingest, Listener

FETCHED = "fetched-"  # in the state directory: where the object is that a process is reading, by its number


class FilesOptions(Options):
    """Options of the source ``files``."""

    path: str = Field(min_length=1, description="a directory, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, with all below")
    pattern: str | None = Field(
        default=None,
        description="of the ends of paths, *.parquet or day-*/*.csv; null: files whose suffix says their format",
    )
    every_seconds: float = Field(default=5.0, gt=0, description="between two looks")
    settle_seconds: float = Field(default=2.0, ge=0, description="a file is read once it has been the same for so long")
    order: Literal["name", "modified"] = Field(default="name", description="of the files that are there to be read")
    csv: CsvDialect | None = Field(
        default=None, description="how CSV files are written; null: with commas, .tsv with tabs, and a header"
    )

    @field_validator("path")
    @classmethod
    def _can_be_watched(cls, path: str) -> str:
        from streamkd.streams.watched.place import check_path  # and pyarrow's filesystems

        return check_path(path)


@hookimpl
def streamkd_sources() -> list[SourceKind]:
    """The source over files."""
    return [SourceKind("files", FilesListener, FilesOptions, "new files of a directory or bucket", push=True)]


class FilesListener(Listener):
    """One place, watched by a thread of its own."""

    def __init__(self, options: FilesOptions, ingest: Ingest) -> None:
        """Raises ``ConfigError``: an address that cannot be used."""
        from streamkd.streams.watched.place import WatchedPlace

        self._options, self._intake = options, ingest.intake
        self._scratch = self._intake.folder / f"{FETCHED}{os.getpid()}"
        self._place = WatchedPlace(options.path, options.pattern, self._scratch)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Mapping[str, str]:
        """Watch from now on, whether or not the place is there yet."""
        for left in self._intake.folder.glob(f"{FETCHED}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._thread = threading.Thread(target=self._run, name="files", daemon=True)
        self._thread.start()
        return {"files": self._place.url}

    def drain(self, deadline_seconds: float) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join(deadline_seconds)

    def _run(self) -> None:
        from streamkd.streams.watched.contents import FileForm
        from streamkd.streams.watched.watcher import Watcher

        intake, options = self._intake, self._options
        form = FileForm(intake.schema, intake.limits, options.csv)
        pace = (options.every_seconds, options.settle_seconds, options.order)
        watcher = Watcher(self._place, form, intake, self._ending, *pace)
        try:
            while not self._ending.is_set():
                watcher.advance()
        except NotReady:  # the intake drains
            pass
        except Exception:
            if not self._ending.is_set():  # else the log may be closed already
                raise
        with contextlib.suppress(StreamkdError, sqlite3.Error):  # the next start goes on
            watcher.close()
