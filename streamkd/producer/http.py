"""HTTP as a transport of ``push``: one request a batch, an Arrow IPC stream as its body.

429 says when to come again; 502 to 504 and a broken connection are worth another try.
"""

import io
import ssl
from typing import Any

import httpx
import pyarrow as pa

from streamkd.errors import LimitExceeded, RecordError, SchemaMismatch, SourceError, StreamkdError
from streamkd.producer.outbox import Outbox, Piece
from streamkd.producer.transport import Disconnected, Target, conflict, refused

CONTENT_TYPE = "application/vnd.apache.arrow.stream"
TIMEOUT_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 30.0
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


def deliver(outbox: Outbox, target: Target) -> None:
    """Post piece after piece, a ``Transport``."""
    # a name need not be ASCII, which is all that httpx encodes by itself
    headers = {b"Content-Type": CONTENT_TYPE.encode(), b"Streamkd-Producer": target.producer.encode()}
    if target.token:
        headers[b"Authorization"] = f"Bearer {target.token}".encode()
    with httpx.Client(base_url=target.url, headers=headers, verify=_trust(target), timeout=TIMEOUT_SECONDS) as client:
        for piece in outbox.again():
            _post(client, piece, outbox, target)
        while (new := outbox.next(lambda: True)) is not None:
            _post(client, new, outbox, target)


def _post(client: httpx.Client, piece: Piece, outbox: Outbox, target: Target) -> None:
    path = "/v1/labels" if target.labels else f"/v1/streams/{target.stream}"
    try:
        answer = client.post(path, content=_body(piece.rows), headers={"Streamkd-Sequence": str(piece.sequence)})
    except httpx.TransportError as fault:
        raise Disconnected(f"{type(fault).__name__}: {fault}") from None
    said = _json(answer)
    if "sequence" in said:  # also where every row was refused
        outbox.acknowledge(piece.sequence, said)
        return
    if answer.status_code == 409 and "forgotten" in said:  # else this server takes no records at all
        raise conflict(said, f"{target.url}{path}")
    message = str(said.get("error") or f"status {answer.status_code}")
    if answer.status_code in TRY_AGAIN:
        raise Disconnected(message, _retry_after(answer))
    raise _refusal(answer.status_code, message, f"{target.url}{path}")


def _refusal(status: int, message: str, where: str) -> StreamkdError:
    if status in (401, 403):
        return RecordError(f"the server refuses the token: {message}", where=where, fix="give --token")
    if status == 413:
        return LimitExceeded(message, where=where, fix="send smaller batches with --batch")
    return refused(message, where, SchemaMismatch if status == 422 else RecordError)


def _body(rows: pa.RecordBatch) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, rows.schema) as writer:
        writer.write_batch(rows)
    return buffer.getvalue()


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _retry_after(answer: httpx.Response) -> float | None:
    """The seconds that the server asks to wait; ``None`` where it does not say."""
    try:
        return min(max(float(answer.headers["Retry-After"]), 0.0), LONGEST_WAIT_SECONDS)
    except (KeyError, ValueError):
        return None


def _trust(target: Target) -> ssl.SSLContext | bool:
    tls = target.tls
    if not target.url.startswith("https:") or not (tls.ca or tls.certificate):
        return True
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as fault:
        raise SourceError(
            f"the certificates cannot be used: {fault}",
            where=target.url,
            fix="name PEM files: --ca, --certificate, --key",
        ) from None
    return context
