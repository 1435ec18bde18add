"""What the transports of ``push`` have in common: where to send and as whom, and what a broken connection is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamkd.errors import RecordError, StreamkdError
from streamkd.producer.outbox import Outbox

_OTHER_NAME = (
    "other records need another --producer (without one each push has a name of its own);"
    " to send the same again, the same SOURCE, --columns, --limit, --batch and --rate"
)


@dataclass(frozen=True)
class ClientTls:
    """PEM files: whom to trust instead of the system's authorities, and who we are."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Target:
    """Where to send, and as whom; ``labels``: of predictions, instead of records."""

    url: str
    stream: str
    producer: str
    token: str | None
    tls: ClientTls
    labels: bool = False


class Disconnected(Exception):
    """The connection broke, or the server cannot take records now: worth another try."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Forgotten(Exception):
    """The server knows that it has the batches up to ``sequence``, and no longer what was in them."""

    def __init__(self, sequence: int, refusal: StreamkdError) -> None:
        super().__init__(str(refusal))
        self.sequence, self.refusal = sequence, refusal


def conflict(said: Mapping[str, Any], where: str) -> Exception:
    """What a server's refusal of a number that was used means to us."""
    refusal = RecordError(str(said.get("error")).partition("\n")[0], where=where, fix=_OTHER_NAME)
    forgotten = said.get("forgotten")
    return Forgotten(forgotten, refusal) if isinstance(forgotten, int) else refusal


def refused(said: str, where: str, kind: type[RecordError] = RecordError, fix: str = "") -> RecordError:
    """What a server says of records that do not fit, with what may be done here, or else there."""
    fix = "send it, or rename columns with --columns theirs=ours,..." if "no such column" in said else fix
    return kind(said, where=where, fix=fix)


Transport = Callable[[Outbox, Target], None]
"""One connection: sends again what is not acknowledged, then what is new, until all is acknowledged. It raises
``Disconnected`` (try again), ``Forgotten`` (go on after it), a ``StreamkdError`` (the server will never take this)."""
