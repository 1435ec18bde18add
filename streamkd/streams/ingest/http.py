"""The source ``http``: records that producers post, as an Arrow IPC stream or as JSON lines.

    POST /v1/streams/{stream} ─► token ─► type and size ─► admission ─► intake ─► receipt as JSON

The rules are here, the web framework is not: ``streamkd.serve.processes.ingress`` reads requests and calls
``HttpListener.receive``. One request is one batch: all its rows have one receipt.
"""

import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from streamkd.errors import LimitExceeded, NotReady, Overloaded, RecordError, StreamkdError
from streamkd.hookspecs import Options, SourceKind, hookimpl
from streamkd.records import Reject
from streamkd.streams.ingest.admission import Sifted, admit_batch, admit_lines, admit_schema
from streamkd.streams.ingest.envelope import check_stream
from streamkd.streams.ingest.intake import Ingest, Listener, refusal_reason
from streamkd.streams.log.receipts import SequenceConflict, identity

ARROW = "application/vnd.apache.arrow.stream"
LINES = "application/x-ndjson"
REASONS = 100  # rows whose reason is told
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a request is answered."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpOptions(Options):
    """The source ``http`` has no options of its own."""


@hookimpl
def streamkd_sources() -> list[SourceKind]:
    """The push source over HTTP."""
    return [SourceKind("http", HttpListener, HttpOptions, "records posted as Arrow or JSON lines", push=True)]


class HttpListener(Listener):
    """The rules of one stream's endpoint; each request may come on a thread of its own."""

    def __init__(self, options: HttpOptions, ingest: Ingest) -> None:
        self._ingest = ingest
        self._open = 0
        self._changed = threading.Condition()

    def start(self) -> Mapping[str, str]:
        """Nothing: the requests come through the server's one HTTP port."""
        return {}

    def drain(self, deadline_seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._open, deadline_seconds)

    @property
    def body_bytes(self) -> int:
        """The largest body that is read."""
        return self._ingest.intake.limits.batch_bytes

    def refusal(self, stream: str, headers: Mapping[str, str]) -> Answer | None:
        """Why a request is refused before its body is read; names of headers in lower case."""
        verdict = self._ingest.tokens.verdict(headers.get("authorization"), "ingest")
        intake = self._ingest.intake
        if verdict != "allowed":
            intake.refuse_token("http")
            if verdict == "scope":
                return _error(403, "the token does not have the scope 'ingest'")
            return _error(401, "needed a token of scope 'ingest'", {"WWW-Authenticate": "Bearer"})
        if stream != intake.stream:
            return _error(404, f"there is no stream {stream!r}, this server has {intake.stream!r}")
        if headers.get("content-encoding", "identity") != "identity":
            return _error(415, "needed no Content-Encoding; Arrow streams may be compressed inside")
        if _media_type(headers) not in (ARROW, LINES):
            return _error(415, f"needed Content-Type {ARROW} or {LINES}, got {headers.get('content-type')!r}")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.body_bytes:
            return self.too_large()
        return self._draining()

    def too_large(self) -> Answer:
        """The answer to a body past ``body_bytes``."""
        self._ingest.intake.refuse("limits")
        return _error(413, f"the body has more than {self.body_bytes} bytes: send smaller batches")

    def receive(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Take one body; answers when the rows are on disk."""
        with self._changed:
            self._open += 1
        try:
            return self._receive(headers, body)
        except Exception as fault:  # the outermost frame that is ours
            return self._translated(fault)
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def _receive(self, headers: Mapping[str, str], body: bytes) -> Answer:
        intake = self._ingest.intake
        producer, sequence = _identity(headers)
        if _media_type(headers) == ARROW:
            sifted = self._arrow(body, producer or intake.stream)
        else:
            sifted = admit_lines(body, intake.schema, intake.limits, producer or intake.stream)
        receipt = intake.take(sifted, producer, sequence, producer or "http").result()
        told: dict[str, Any] = {
            "sequence": receipt.sequence,
            "accepted": receipt.accepted,
            "rejected": receipt.rejected,
            "offset": receipt.offset,
            "duplicate": receipt.duplicate,
        }
        if sifted.rejects:
            told["reasons"] = _reasons(sifted.rejects)
        if sifted.total and len(sifted.rejects) == sifted.total:
            return Answer(422, {"error": "no row was accepted", **told})
        return Answer(200, told)

    def _arrow(self, body: bytes, source: str) -> Sifted:
        """All batches of a stream as one, since they have one sequence and one receipt."""
        intake = self._ingest.intake
        check_stream(body, intake.limits.batch_rows, intake.limits.batch_bytes)
        try:
            with pa.ipc.open_stream(body) as reader:
                admit_schema(reader.schema, intake.schema, intake.limits)
                batches = list(reader)
                for batch in batches:
                    batch.validate(full=True)  # before they are joined: offsets may point anywhere
                schema = reader.schema
                whole = pa.concat_batches(batches) if batches else schema.empty_table().to_batches()
        except (pa.ArrowException, OSError) as fault:
            said = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            raise RecordError(f"cannot be read as Arrow: {said}", where="body") from None
        if isinstance(whole, list):
            whole = whole[0] if whole else pa.RecordBatch.from_pylist([], schema=schema)
        return admit_batch(whole, intake.schema, intake.limits, source)

    def _draining(self) -> Answer | None:
        if self._ingest.intake.draining:
            return _error(503, "the server is shutting down", {"Retry-After": "2"})
        return None

    def _translated(self, fault: Exception) -> Answer:
        refuse = self._ingest.intake.refuse
        if isinstance(fault, Overloaded):
            refuse("overloaded")
            wait = {"Retry-After": str(max(1, round(fault.retry_after_seconds)))}
            return _error(429, fault.message, wait)
        if isinstance(fault, NotReady):
            refuse("draining")
            return _error(503, fault.message, {"Retry-After": "2"})
        if isinstance(fault, MemoryError):
            fault = LimitExceeded("needs more memory than there is", where="body")
        if isinstance(fault, SequenceConflict):
            refuse("conflict")
            return Answer(409, {"error": str(fault), "forgotten": fault.forgotten})
        if isinstance(fault, RecordError):
            refuse(reason := refusal_reason(fault))
            return _error({"limits": 413, "protocol": 400}.get(reason, 422), str(fault))
        number = secrets.token_hex(4)
        logger.error("post failed, error id %s", number, exc_info=fault)
        refuse("internal")
        return _error(500, str(fault) if isinstance(fault, StreamkdError) else f"internal error, id {number}")


def _identity(headers: Mapping[str, str]) -> tuple[str | None, int | None]:
    sequence = headers.get("streamkd-sequence")
    try:
        number = int(sequence) if sequence is not None and sequence.isascii() and sequence.isdigit() else sequence
        # HTTP reads headers byte by byte; a name is UTF-8, so that it is the same producer over Flight
        name = headers.get("streamkd-producer")
        return identity(name.encode("latin-1").decode("utf-8") if name is not None else None, number)
    except ValueError as fault:
        raise RecordError(str(fault), where="headers Streamkd-Producer and Streamkd-Sequence") from None


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _reasons(rejects: Sequence[Reject]) -> list[dict[str, Any]]:
    return [{"row": each.row, "reason": each.reason, "detail": each.detail} for each in rejects[:REASONS]]


def _error(status: int, said: str, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, {"error": said}, headers or {})
