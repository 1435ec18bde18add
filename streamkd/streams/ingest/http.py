"""The source ``http``: records that producers post, as an Arrow IPC stream or as JSON lines, and labels likewise.

    POST /v1/streams/{stream} | /v1/labels ─► token ─► type and size ─► admission ─► intake ─► receipt as JSON

The rules are here, the web framework is not: ``streamkd.serve.processes.ingress`` reads requests and calls
``HttpListener.receive``. One request is one batch: all its rows have one receipt.
"""

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from streamkd.errors import RecordError
from streamkd.hookspecs import Options, SourceKind, hookimpl
from streamkd.streams.ingest.acks import early
from streamkd.streams.ingest.admission import Sifted, admit_lines, admit_predictions, admit_stream
from streamkd.streams.ingest.intake import Ingest, Listener
from streamkd.streams.ingest.tokens import Scope
from streamkd.streams.log.log import JoinReceipt, Kind, OrderReceipt
from streamkd.streams.log.receipts import Receipt, identity

ARROW = "application/vnd.apache.arrow.stream"
LINES = "application/x-ndjson"
REASONS = 100  # rows whose reason is told
_STATUS = {"overloaded": 429, "draining": 503, "conflict": 409, "limits": 413, "protocol": 400, "internal": 500}


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

    def refusal(self, stream: str | None, headers: Mapping[str, str]) -> Answer | None:
        """Why a request is refused before its body is read; ``stream=None``: labels. Names of headers in lower case."""
        scope: Scope = "label" if stream is None else "ingest"
        verdict = self._ingest.tokens.verdict(headers.get("authorization"), scope)
        intake = self._ingest.intake
        if verdict != "allowed":
            intake.refuse_token("http")
            if verdict == "scope":
                return _error(403, f"the token does not have the scope {scope!r}")
            return _error(401, f"needed a token of scope {scope!r}", {"WWW-Authenticate": "Bearer"})
        if stream not in (None, intake.stream):
            return _error(404, f"there is no stream {stream!r}, this server has {intake.stream!r}")
        if headers.get("content-encoding", "identity") != "identity":
            return _error(415, "needed no Content-Encoding; Arrow streams may be compressed inside")
        if _media_type(headers) not in (ARROW, LINES):
            return _error(415, f"needed Content-Type {ARROW} or {LINES}, got {headers.get('content-type')!r}")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.body_bytes:
            return self._too_large()
        if intake.draining:
            return _error(503, "the server is shutting down", {"Retry-After": "2"})
        return None

    def _too_large(self) -> Answer:
        self._ingest.intake.count_refusal("limits")
        return _error(413, f"the body has more than {self.body_bytes} bytes: send smaller batches")

    def receive(self, headers: Mapping[str, str], body: bytes, kind: Kind = "records") -> Answer:
        """Take one body; answers when the rows are on disk."""
        with self._changed:
            self._open += 1
        try:
            return self._receive(headers, body, kind)
        except Exception as fault:  # noqa: BLE001 - the outermost frame that is ours
            return self._refused(fault)
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def keep(self, body: bytes) -> Answer:
        """Keep predictions that the supervisor hands over, as one Arrow IPC stream (``with_requests``)."""
        try:
            with pa.ipc.open_stream(body) as reader:
                batches = list(reader)
            intake = self._ingest.intake
            good = [admit_predictions(batch, intake.schema, intake.limits) for batch in batches]
            receipts = [intake.keep(batch) for batch in good]
            return Answer(200, {"kept": sum(receipt.result().accepted for receipt in receipts)})
        except Exception as fault:  # noqa: BLE001 - the outermost frame that is ours
            return self._refused(fault)

    def _receive(self, headers: Mapping[str, str], body: bytes, kind: Kind) -> Answer:
        intake = self._ingest.intake
        if len(body) > self.body_bytes:
            return self._too_large()
        schema, (producer, sequence) = intake.schema_of(kind), _identity(headers)
        if _media_type(headers) == ARROW:
            sifted = admit_stream(body, schema, intake.limits, producer or intake.stream)
        else:
            sifted = admit_lines(body, schema, intake.limits, producer or intake.stream)
        receipt = intake.take(sifted, producer, sequence, producer or "http", kind=kind).result()
        return _told(receipt, sifted)

    def _refused(self, fault: Exception) -> Answer:
        refusal = self._ingest.intake.refused(fault)
        status = _STATUS.get(refusal.reason, 422)
        if status == 409:
            return Answer(status, {"error": refusal.said, "forgotten": refusal.forgotten})
        wait = max(1, round(refusal.retry_after_seconds or 2))
        return _error(status, refusal.said, {"Retry-After": str(wait)} if status in (429, 503) else None)


def _told(receipt: Receipt, sifted: Sifted) -> Answer:
    """A receipt, with the first rows of which nothing came and why."""
    told = {name: getattr(receipt, name) for name in ("sequence", "accepted", "rejected", "offset", "duplicate")}
    reasons = [asdict(reject) for reject in sifted.rejects]
    if isinstance(receipt, JoinReceipt):
        told |= {"waiting": receipt.waiting, **early([receipt])}
        places = np.delete(np.arange(sifted.total), [reject.row for reject in sifted.rejects])
        reasons += [{**asdict(each), "row": int(places[each.row])} for each in receipt.unmatched]
    if isinstance(receipt, OrderReceipt):
        places = np.delete(np.arange(sifted.total), [reject.row for reject in sifted.rejects])
        reasons += [{**asdict(each), "row": int(places[each.row])} for each in receipt.late]
    if reasons:
        told["reasons"] = sorted(reasons, key=lambda reason: int(reason["row"]))[:REASONS]
    if sifted.total and receipt.rejected == sifted.total:
        return Answer(422, {"error": "no row was accepted", **told})
    return Answer(200, told)


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


def _error(status: int, said: str, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, {"error": said}, headers or {})
