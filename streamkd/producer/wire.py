"""What the wires of ``push`` have in common: where to send and as whom, and what a broken connection is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from streamkd.producer.outbox import Outbox


@dataclass(frozen=True)
class ClientTls:
    """PEM files: whom to trust instead of the system's authorities, and who we are."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Target:
    """Where to send, and as whom."""

    url: str
    stream: str
    producer: str
    token: str | None
    tls: ClientTls


class Disconnected(Exception):
    """The connection broke, or the server cannot take records now: worth another try."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Wire(Protocol):
    """One way of sending."""

    def __call__(self, outbox: Outbox, target: Target) -> None:
        """One connection: send again what is not acknowledged, then what is new, until all is acknowledged.

        Raises:
            Disconnected: try again. StreamkdError: the server will never take this.
        """
        ...
