"""The ledger of a search: what each trial was given, how far it came and how it ended. It alone is the truth.

::

    DIR/
      search.json          the header: written once
      trials/00007.json    a file per trial, rewritten whole at each report
      lock                 held by the driver; names its process id (on a disk; a bucket has no locks)

Drivers ``create`` or ``open`` and ``lock`` it; workers open it by its place and ``write`` before they report;
anybody reads it at any time. A file that was damaged, or that is somebody else's, is named and left out.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pyarrow import fs

from streamkd import __version__
from streamkd.errors import StateConflict, StateError, StateInUse
from streamkd.evaluate.seeds import plain
from streamkd.search.store import Store

SCHEMA = 1
HEADER = "search.json"
TRIALS = "trials"
State = Literal["waiting", "running", "finished", "pruned", "failed", "lost"]
"""``lost``: it was running when its driver or its machine went, and nobody has run it again."""
DONE = ("finished", "pruned", "failed")
"""States that are final: a resumed search does not run them again."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial as the ledger keeps it.

    ``readings`` are those of the trial, in order, as plain values: ``records`` (seen per seed), ``objectives``
    (name: mean over seeds), ``per_seed`` (name: list), ``seconds``; numbers that are not finite are ``None``.
    ``reason`` of a failed one begins with its kind: error, crash, hang, memory or nan. ``parent`` is the trial
    whose state and values it took over; ``changes`` are the values that it went on with:
    ``{"records": when, "values": all of them, "parent": whose}``.
    """

    number: int
    values: Mapping[str, Any]
    state: State = "waiting"
    readings: tuple[Mapping[str, Any], ...] = ()
    reason: str = ""
    seconds: float = 0.0
    worker: str = ""
    parent: int | None = None
    begun_at: float | None = None
    changes: tuple[Mapping[str, Any], ...] = ()

    @property
    def records(self) -> int:
        """Records that each seed has seen."""
        return int(self.readings[-1]["records"]) if self.readings else 0

    @property
    def latest(self) -> Mapping[str, Any]:
        """The values that it has now, after any changes."""
        return self.changes[-1]["values"] if self.changes else self.values

    def objective(self, name: str) -> float | None:
        """The mean over seeds at its last reading; ``None`` where it has none."""
        return self.readings[-1]["objectives"].get(name) if self.readings else None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file among the trials that is none."""

    name: str
    reason: str


class Ledger:
    """A search directory; made by ``create`` or ``open``. It holds no open file, so it can go to other processes."""

    def __init__(self, store: Store, header: Mapping[str, Any]) -> None:
        self.store = store
        self.header = header

    @classmethod
    def create(cls, place: Path | str, header: Mapping[str, Any], files: fs.FileSystem | None = None) -> "Ledger":
        """A new ledger with this header, ``schema``, ``streamkd``, ``begun_at`` and the working ``directory``.

        Args:
            header: ``name``, ``config`` (tree), ``space`` (``Space.to_json``), ``settings``, ``objectives``
                (name: "max" or "min"; the first one leads), ``seeds``, ``total`` (records of a whole trial, per
                seed) and ``command``, as plain values.

        Raises:
            StateInUse: there is a search already. StateError: the place cannot be written.
        """
        store = Store(place, files)
        if store.read(HEADER) is not None:
            raise StateInUse(
                "holds a search already", where=str(store), fix="go on with --resume, or name another --out"
            )
        whole = {"schema": SCHEMA, "streamkd": __version__, "begun_at": time.time(), "directory": os.getcwd()}
        store.create()
        store.write(HEADER, _text(whole | dict(header)))
        return cls.open(place, files)

    @classmethod
    def open(cls, place: Path | str, files: fs.FileSystem | None = None) -> "Ledger":
        """The ledger that is there.

        Raises:
            StateError: there is none, or its header is damaged. StateConflict: a newer streamkd wrote it.
        """
        store = Store(place, files)
        text = store.read(HEADER)
        if text is None:
            raise StateError("is no search directory", where=str(store), fix="name one that `streamkd tune` made")
        try:
            header = json.loads(text)
            schema = int(header["schema"])
        except (ValueError, KeyError, TypeError):
            raise StateError("is not the header of a search", where=f"{store}/{HEADER}", fix="begin anew") from None
        if schema > SCHEMA:
            raise StateConflict(
                f"needed schema {SCHEMA} or older, got {schema}", where=f"{store}/{HEADER}", fix="upgrade streamkd"
            )
        return cls(store, header)

    def write(self, record: TrialRecord) -> None:
        """Put one trial's file; on return it is on the disk, or in the bucket.

        Raises:
            StateError: it cannot be written.
        """
        self.store.write(_name(record.number), _text(asdict(record)))

    def trials(self) -> list[TrialRecord]:
        """Every trial, by number."""
        return self.read()[0]

    def read(self) -> tuple[list[TrialRecord], list[Skipped]]:
        """Every trial by number, and the files among them that are none."""
        found = [_parsed(self.store.read(f"{TRIALS}/{name}"), name) for name in self.store.names(TRIALS)]
        trials = sorted((one for one in found if isinstance(one, TrialRecord)), key=lambda one: one.number)
        return trials, [one for one in found if isinstance(one, Skipped)]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be its only driver until the end of the block (on a disk); what a killed writer left is swept away.

        Raises:
            StateInUse: another process drives it; its process id is named.
        """
        folder = self.store.local
        if folder is None:
            yield
            return
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _take(handle, folder)
            yield
        finally:
            os.close(handle)

    def driver(self) -> int | None:
        """The process that drives it now; ``None`` where nobody does, or where there are no locks."""
        path = self.store.local and self.store.local / "lock"
        if path is None or not path.exists():
            return None
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return int(os.pread(handle, 32, 0).decode(errors="replace").strip() or 0)
        finally:
            os.close(handle)
        return None


def exists(place: Path | str, files: fs.FileSystem | None = None) -> bool:
    """Whether a search was begun at this place."""
    return Store(place, files).read(HEADER) is not None


def _name(number: int) -> str:
    return f"{TRIALS}/{number:05}.json"


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(dict(value)), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _parsed(text: bytes | None, name: str) -> TrialRecord | Skipped:
    try:
        tree = json.loads(text or b"")
    except ValueError:
        return Skipped(name, "is empty or cut off")
    try:
        record = TrialRecord(**tree)
        record = replace(record, readings=tuple(record.readings), changes=tuple(record.changes))
        whole = _name(record.number) == f"{TRIALS}/{name}" and record.state in get_args(State) and _reads(record)
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    return record if whole else Skipped(name, "is not the trial of its name")


def _reads(record: TrialRecord) -> bool:
    """Whether what a trial was given and what it gave have the form that is documented."""
    figures = [figure for one in record.readings for figure in one["objectives"].values()]
    return (
        all(isinstance(one["records"], int) for one in record.readings)
        and all(figure is None or isinstance(figure, int | float) for figure in (*figures, record.begun_at))
        and isinstance(record.seconds, int | float)
        and isinstance(record.values, dict)
        and all(isinstance(change["values"], dict) for change in record.changes)
    )


def _take(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.pread(handle, 32, 0).decode(errors="replace").strip()
        raise StateInUse(
            f"process {pid or '(starting)'} drives this search",
            where=str(folder),
            fix="wait for it or stop it, or name another directory with --out",
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    for left in (folder / TRIALS).glob(".*.json.*"):
        left.unlink(missing_ok=True)
