"""The producer: sends batches to a running server, over Flight or HTTP, or to a topic, until each is acknowledged.

    batches ─► Outbox ─► one connection at a time ─► acks
                  ▲              │ breaks
                  └── back-off ──┘  what was not acknowledged is sent again, under its numbers

The server keeps the numbers it has seen of each producer and what was in them, so that a batch sent twice counts once,
and other data under a number is refused. Numbers that it has forgotten are skipped; the next is compared.
`streamkd push` calls this.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, urlsplit

import pyarrow as pa

from streamkd.errors import SourceError
from streamkd.producer.outbox import Ack, Outbox
from streamkd.producer.transport import ClientTls, Disconnected, Forgotten, Target, Transport

__all__ = ["Ack", "ClientTls", "PushSummary", "push"]

PATIENCE_SECONDS = 60.0
BACK_OFF_SECONDS = (0.1, 5.0)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushSummary:
    """What became of the records. ``duplicates``: known to the server from before; ``resent``: sent more than once.

    ``early``: labels that wait for their prediction; ``note``: what the server says of them.
    """

    sent: int
    accepted: int
    rejected: int
    duplicates: int
    seconds: float
    resent: int = 0
    early: int = 0
    note: str = ""


def push(
    batches: Iterable[pa.RecordBatch],
    url: str,
    stream: str = "main",
    producer: str | None = None,
    token: str | None = None,
    rate: float | None = None,
    on_ack: Callable[[Ack], None] = lambda ack: None,
    *,
    labels: bool = False,
    tls: ClientTls | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> PushSummary:
    """Send all batches and wait until the server has them on disk.

    ``url`` is grpc://, grpc+tls://, http:// or https://; a path /v1/streams/NAME names the stream. Or it is of a topic,
    kafka://HOST:PORT/TOPIC, which ``streamkd.producer.kafka`` reads; there nothing is compared. ``rate`` is in
    records per second. A ``producer`` who is named may send the same batches again after a crash of its own: those
    that the server has are not counted twice; different data needs another name, and is refused under this one.
    ``labels``: the batches are labels of predictions, by ``prediction_id``. ``on_ack`` is called from another thread.
    Without any progress for ``patience_seconds`` it gives up.

    Raises:
        SourceError: the server stays away. RecordError: the server refuses the batches, or the token.
    """
    place = Target(url, stream, producer or f"push-{uuid.uuid4().hex[:12]}", token, tls or ClientTls(), labels)
    if url.startswith("kafka:"):
        from streamkd.producer import kafka

        transport, target = kafka.transport(url, patience_seconds, named=producer is not None), place
    else:
        transport, target = _target(place)
    outbox = Outbox(batches, rate, on_ack)
    began = time.monotonic()
    _outside(lambda: _deliver(transport, outbox, target, patience_seconds))
    seconds = time.monotonic() - began
    duplicates = max(0, outbox.acknowledged - outbox.accepted - outbox.rejected)
    counts = (outbox.sent, outbox.accepted, outbox.rejected, duplicates)
    return PushSummary(*counts, seconds, outbox.resent, outbox.early, outbox.note)


def _is_tenants(path: Sequence[str]) -> bool:
    """Whether a path begins with the place of a tenant among several."""
    return len(path) > 1 and path[0] == "t"


def _target(given: Target) -> tuple[Transport, Target]:
    """The transport of a server's address, and the address without its path, but for a tenant's place, ``/t/NAME``."""
    url, stream = given.url, given.stream
    parts = urlsplit(url)
    path = parts.path.strip("/").split("/") if parts.path.strip("/") else []
    tenant, path = (
        (f"/t/{path[1]}", path[2:]) if parts.scheme in ("http", "https") and _is_tenants(path) else ("", path)
    )
    if path[:2] == ["v1", "streams"] and len(path) == 3:
        stream = path[2]
    elif path:
        raise SourceError(
            f"needed no path or /v1/streams/NAME, got {parts.path}", where=url, fix="see the server's URLs"
        )
    if not _has_port(parts):
        raise SourceError("needed a port from 1 to 65535", where=url, fix="the server prints its URLs when it listens")
    if not parts.hostname:
        raise SourceError("needed a host", where=url, fix="grpc://127.0.0.1:8815 or http://127.0.0.1:8470")
    place = replace(given, url=f"{parts.scheme}://{parts.netloc}{tenant}", stream=stream)
    if parts.scheme in ("grpc", "grpc+tcp", "grpc+tls"):
        from streamkd.producer.flight import deliver as over_flight

        return over_flight, place
    if parts.scheme in ("http", "https"):
        from streamkd.producer.http import deliver as over_http

        return over_http, place
    raise SourceError(
        f"needed grpc://, grpc+tls://, http://, https:// or kafka://, got {parts.scheme or 'no scheme'}",
        where=url,
        fix="the server prints its URLs when it listens",
    )


def _has_port(parts: SplitResult) -> bool:
    """Whether the port is one, or left out."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def _deliver(transport: Transport, outbox: Outbox, target: Target, patience_seconds: float) -> None:
    """Connect until everything is acknowledged; each progress renews the patience."""
    least, most = BACK_OFF_SECONDS
    wait_seconds, last_progress, acknowledged = least, time.monotonic(), 0
    while not outbox.done:
        try:
            transport(outbox, target)
        except Forgotten as fault:
            if not outbox.skip(fault.sequence):  # the piece after them is compared; without one nobody can say
                raise fault.refusal from None
        except Disconnected as fault:
            if outbox.acknowledged > acknowledged:
                wait_seconds, last_progress, acknowledged = least, time.monotonic(), outbox.acknowledged
            # once for each time that it goes away, and not of a full one, which asks us to wait
            if wait_seconds == least and fault.retry_after_seconds is None:
                logger.warning("%s: %s; tried again for %g s", target.url, fault, patience_seconds)
            if time.monotonic() - last_progress > patience_seconds:
                raise SourceError(
                    f"no progress for {patience_seconds:g} s, {outbox.acknowledged} records acknowledged: {fault}",
                    where=target.url,
                    fix="see whether the server runs; push again under the same --producer to go on",
                ) from None
            time.sleep(fault.retry_after_seconds if fault.retry_after_seconds is not None else wait_seconds)
            wait_seconds = min(2 * wait_seconds, most)


def _outside(work: Callable[[], None]) -> None:
    """Work in a daemon thread: a blocked write would keep the main thread from its interrupts."""
    faults: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as fault:  # noqa: BLE001 - raised again by the main thread
            faults.append(fault)

    thread = threading.Thread(target=run, name="push", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if faults:
        raise faults[0]
