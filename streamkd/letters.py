"""The dead letters of a state directory: looked at, sent again when what was wrong is mended, or let go.

    log.sqlite    refused at the door      ─► log-12     ─┬─► in words
    state.sqlite  refused by the learner   ─► learner-3  ─┼─► JSON lines, to be mended
                                                          └─► a running server, each counted once

It works beside a running server: what is read holds up nobody, and what is let go is one short transaction.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.json as pj

from streamkd.errors import ConfigError, StateError
from streamkd.records import RejectReason
from streamkd.state.directory import StateDirectory
from streamkd.streams.log.database import transaction
from streamkd.streams.log.dead_letters import DeadLetter, DeadLetters
from streamkd.streams.log.log import Log

LOG, LEARNER = "log", "learner"
PIECE = 1_000  # letters that are read together


@dataclass(frozen=True)
class Letter:
    """A dead letter and its name, ``log-12`` say: where it is kept, and its number there."""

    name: str
    letter: DeadLetter

    def told(self) -> dict[str, Any]:
        """As plain values, without the record."""
        found = asdict(self.letter)
        return {"name": self.name, **{key: found[key] for key in ("created", "source", "offset", "reason", "detail")}}

    def rows(self) -> list[Any]:
        """The record as it came: a mapping, or the text of a line that is none; nothing where it was too large.

        Of a broker's message that is no record its bytes, under ``message``.
        """
        record = self.letter.record
        if record is None:
            return []
        if self.letter.form == "message":
            return [{"message": record}]
        if self.letter.form == "json":
            try:
                return [json.loads(record)]
            except ValueError:
                return [record.decode(errors="replace")]
        return pa.ipc.open_stream(record).read_all().to_pylist()

    def batch(self) -> pa.RecordBatch | None:
        """The record to be sent again; ``None`` where it was too large to be kept, or is no record at all."""
        record = self.letter.record
        if record is None or self.letter.form == "message":
            return None
        if self.letter.form == "arrow":
            [batch] = pa.ipc.open_stream(record).read_all().to_batches() or [None]
            return batch
        try:
            [batch] = pj.read_json(pa.BufferReader(record.replace(b"\n", b" ") + b"\n")).to_batches()
        except (pa.ArrowException, ValueError):
            return None
        return batch


def letters(state: Path, names: Sequence[str] = (), reason: str | None = None) -> list[Letter]:
    """Those of these names, or all, refused for this ``reason``, or any; the log's first, in order of arrival.

    Raises:
        StateError: no state directory, or no letter of such a name. ConfigError: no such reason.
    """
    if reason is not None and reason not in (known := get_args(RejectReason)):
        raise ConfigError(f"there is no reason {reason!r}", where="--reason", fix=f"one of {', '.join(known)}")
    found = [letter for letter in _all(state) if reason in (None, letter.letter.reason)]
    if missing := sorted(set(names) - {letter.name for letter in found}):
        raise StateError(f"has no dead letter {missing[0]!r}", where=str(state), fix="see `streamkd dlq list`")
    return [letter for letter in found if not names or letter.name in names]


def drop(state: Path, chosen: Sequence[Letter]) -> None:
    """Let them go."""
    for place, opened in _places(state, change=True):
        numbers = [letter.letter.id for letter in chosen if letter.name.startswith(f"{place}-")]
        if numbers:
            with opened as kept:
                kept.drop(numbers)


def as_lines(chosen: Sequence[Letter]) -> Iterator[str]:
    """Their records as JSON lines, to be mended and pushed; bytes in base64."""
    for letter in chosen:
        for row in letter.rows():
            yield row if isinstance(row, str) else json.dumps(row, default=_plain)


def sendings(chosen: Sequence[Letter]) -> list[tuple[list[Letter], pa.RecordBatch]]:
    """Those that can be sent again, together where their columns are the same: by these a server refuses."""
    alike: dict[str, list[tuple[Letter, pa.RecordBatch]]] = {}
    for letter in chosen:
        if (batch := letter.batch()) is not None:
            alike.setdefault(str(batch.schema), []).append((letter, batch))
    apart = (zip(*some, strict=True) for some in alike.values())
    return [([*same], pa.concat_batches([*batches])) for same, batches in apart]


def producer_of(chosen: Sequence[Letter]) -> str:
    """Under which name they are sent: the same ones again are the same batches, and count once."""
    told = hashlib.sha256()
    for letter in chosen:
        told.update(f"{letter.name} {letter.letter.created} ".encode() + (letter.letter.record or b""))
    return f"dead-letters-{told.hexdigest()[:16]}"


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _all(state: Path) -> Iterator[Letter]:
    for place, opened in _places(state, change=False):
        with opened as kept:
            after = 0
            while found := kept.list(PIECE, after):
                yield from (Letter(f"{place}-{letter.id}", letter) for letter in found)
                after = found[-1].id


def _places(state: Path, change: bool) -> Iterator[tuple[str, AbstractContextManager[DeadLetters]]]:
    """Where letters are kept, each to be opened once: to look, or in a transaction to ``change`` something."""
    directory = StateDirectory(state)
    if not directory.exists():
        raise StateError("is no state directory", where=str(state), fix="name the one that `serve` was given")
    if directory.log.exists():
        yield LOG, _of_log(directory.log, change)
    yield LEARNER, _of_learner(directory, change)


@contextmanager
def _of_log(path: Path, change: bool) -> Iterator[DeadLetters]:
    with (
        closing(Log(path, read_only=not change)) as log,
        log.file.writing() if change else log.file.reading() as connection,
    ):
        yield DeadLetters(connection)


@contextmanager
def _of_learner(directory: StateDirectory, change: bool) -> Iterator[DeadLetters]:
    with (
        closing(directory.connect(read_only=not change)) as connection,
        transaction(connection) if change else nullcontext(),
    ):
        yield DeadLetters(connection)
