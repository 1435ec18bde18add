"""The source ``flight``: records that producers put over Arrow Flight.

    DoPut [stream] ─► schema ─► a slot ─► batch, {"producer", "sequence"} ─► intake ─► acks

A stream that cannot be taken now is left unread, which holds its producer back. Every refusal is a Flight
error with a JSON ``extra_info``: {"code": "invalid_argument" | "already_exists" | "unavailable" | "internal",
"error": ...}.
"""

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
from pydantic import Field

from streamkd.errors import (
    ConfigError,
    LimitExceeded,
    NotReady,
    Overloaded,
    RecordError,
    StreamkdError,
)
from streamkd.hookspecs import Options, SourceKind, hookimpl
from streamkd.streams.acks import Acks
from streamkd.streams.admission import admit_batch, admit_schema
from streamkd.streams.codec import arrow_schema
from streamkd.streams.intake import Ingest, Listener, refusal_reason
from streamkd.streams.log import Line
from streamkd.streams.receipts import SequenceConflict, identity
from streamkd.streams.tokens import Tokens

SLOT_SECONDS = 10.0
logger = logging.getLogger(__name__)


class FlightOptions(Options):
    """Options of the source ``flight``."""

    streams: int = Field(default=8, ge=1, le=256, description="put streams that may be open at once")


@hookimpl
def streamkd_sources() -> list[SourceKind]:
    """The push source over Arrow Flight."""
    return [SourceKind("flight", FlightListener, FlightOptions, "records put over Arrow Flight", push=True)]


class FlightListener(Listener):
    """The Flight server of an ingest."""

    def __init__(self, options: FlightOptions, ingest: Ingest) -> None:
        self._options = options
        self._ingest = ingest
        self._server: _Server | None = None

    def start(self) -> Mapping[str, str]:
        """Listen.

        Raises:
            ConfigError: the port is taken, or the certificate cannot be used.
        """
        tls, host, port = self._ingest.tls, self._ingest.host, self._ingest.flight_port
        scheme = "grpc+tls" if tls else "grpc"
        shown = f"[{host}]" if ":" in host else host
        try:
            protection: dict[str, Any] = {}
            if tls:
                protection["tls_certificates"] = [(tls.certificate.read_bytes(), tls.key.read_bytes())]
            if tls and tls.client_ca:
                protection |= {"verify_client": True, "root_certificates": tls.client_ca.read_bytes()}
            self._server = _Server(f"{scheme}://{shown}:{port}", self._options, self._ingest, protection)
        except (pa.ArrowException, OSError) as fault:
            said = str(fault).splitlines()[0]
            fix = "free the port, or choose another with serve.flight_port (0: any); check serve.tls"
            raise ConfigError(f"Flight cannot listen on {shown}:{port}: {said}", where="serve", fix=fix) from None
        return {"flight": f"{scheme}://{shown}:{self._server.port}"}

    def drain(self, deadline_seconds: float) -> None:
        if self._server is not None:
            self._server.drain(deadline_seconds)

    def close(self) -> None:
        """Stop listening; waits for streams that are still open."""
        if self._server is not None:
            self._server.shutdown()


class _TokenDoor(fl.ServerMiddlewareFactory):
    """Refuses every call without a token of scope ``ingest``."""

    def __init__(self, tokens: Tokens, ingest: Ingest) -> None:
        self._tokens = tokens
        self._ingest = ingest

    def start_call(self, info: fl.CallInfo, headers: Mapping[str, list[Any]]) -> None:
        given = next((values for name, values in headers.items() if name.lower() == "authorization"), [])
        header = given[0] if len(given) == 1 else None
        verdict = self._tokens.verdict(header.decode() if isinstance(header, bytes) else header, "ingest")
        if verdict == "allowed":
            return
        self._ingest.intake.refuse_token("flight")
        if verdict == "scope":
            raise fl.FlightUnauthorizedError("the token does not have the scope 'ingest'")
        raise fl.FlightUnauthenticatedError("needed 'authorization: Bearer TOKEN' with a token of scope 'ingest'")


class _Server(fl.FlightServerBase):
    """DoPut, and GetSchema for producers that want to know what fits."""

    def __init__(self, location: str, options: FlightOptions, ingest: Ingest, protection: Mapping[str, Any]) -> None:
        self._intake = ingest.intake
        self._slots = threading.BoundedSemaphore(options.streams)
        self._limit = options.streams
        self._open = 0
        self._changed = threading.Condition()
        super().__init__(location, middleware={"tokens": _TokenDoor(ingest.tokens, ingest)}, **protection)

    def do_put(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
        writer: fl.FlightMetadataWriter,
    ) -> None:
        with self._flight_errors(), self._slot(context):
            self._know(descriptor)
            admit_schema(reader.schema, self._intake.schema, self._intake.limits)
            acks = Acks(lambda body: writer.write(pa.py_buffer(body)))
            try:
                self._take_all(context, reader, acks)
            finally:
                acks.finish()
            acks.raise_failure()

    def _take_all(self, context: fl.ServerCallContext, reader: fl.MetadataRecordBatchReader, acks: Acks) -> None:
        intake, peer, line = self._intake, context.peer(), Line()
        for batch, note in _chunks(reader):
            producer, sequence = _note(note)
            if intake.draining:
                raise NotReady("the server is shutting down", fix="send the batch again after the restart")
            sifted = admit_batch(batch, intake.schema, intake.limits, producer or intake.stream)
            patient = lambda: not context.is_cancelled()  # noqa: E731
            receipt = intake.take(sifted, producer, sequence, producer or peer, patient, line)
            acks.expect(receipt, sifted.rows.nbytes, intake.limits.batch_bytes)

    def get_schema(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> fl.SchemaResult:
        with self._flight_errors():
            self._know(descriptor)
            return fl.SchemaResult(arrow_schema(self._intake.schema))

    def _know(self, descriptor: fl.FlightDescriptor) -> None:
        path = [part.decode(errors="replace") for part in descriptor.path or []]
        if path != [self._intake.stream]:
            said = f"needed the descriptor path [{self._intake.stream!r}], got {path}"
            raise RecordError(said, where="DoPut", fix="put to the stream that the server's configuration names")

    @contextlib.contextmanager
    def _slot(self, context: fl.ServerCallContext) -> Iterator[None]:
        """One of the places for open streams; waits a while for it, with the stream unread."""
        deadline = time.monotonic() + SLOT_SECONDS
        while not self._slots.acquire(timeout=0.1):
            if context.is_cancelled() or self._intake.draining or time.monotonic() > deadline:
                said = f"{self._limit} put streams are open"
                raise Overloaded(said, fix="close one, or raise stream.source.streams")
        with self._changed:
            self._open += 1
        try:
            yield
        finally:
            self._slots.release()
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def drain(self, deadline_seconds: float) -> None:
        """Wait until no stream is open, or the deadline; a producer that sends nothing keeps its stream open."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open, deadline_seconds)

    @contextlib.contextmanager
    def _flight_errors(self) -> Iterator[None]:
        """Whatever is raised becomes a Flight error: any other would carry its traceback to the client."""
        try:
            yield
        except fl.FlightError:
            raise
        except Exception as fault:  # the outermost frame that is ours
            reason, error = _translated(fault)
            self._intake.refuse(reason)
            raise error from None

    # What the server does not do. The defaults of pyarrow would answer with a traceback.
    def list_flights(self, context: fl.ServerCallContext, criteria: bytes) -> Any:
        raise _unsupported("ListFlights")

    def get_flight_info(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> Any:
        raise _unsupported("GetFlightInfo")

    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> Any:
        raise _unsupported("DoGet")

    def do_exchange(self, context: fl.ServerCallContext, descriptor: Any, reader: Any, writer: Any) -> None:
        raise _unsupported("DoExchange")

    def list_actions(self, context: fl.ServerCallContext) -> Any:
        raise _unsupported("ListActions")

    def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> Any:
        raise _unsupported("DoAction")


def _chunks(reader: fl.MetadataRecordBatchReader) -> Iterator[tuple[pa.RecordBatch, bytes | None]]:
    """The batches with their metadata; what cannot be read is the producer's fault, and said as such."""
    while True:
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return
        except MemoryError:
            raise LimitExceeded("a batch needs more memory than there is", where="batch") from None
        except fl.FlightError:
            raise
        except (pa.ArrowException, OSError, ValueError) as fault:
            said = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            raise RecordError(f"cannot be read as Arrow: {said}", where="batch") from None
        if chunk.data is not None:
            yield chunk.data, chunk.app_metadata.to_pybytes() if chunk.app_metadata is not None else None


def _note(metadata: bytes | None) -> tuple[str | None, int | None]:
    """Producer and sequence of a batch; without both there is no deduplication."""
    if not metadata:
        return None, None
    try:
        note = json.loads(metadata)
        return identity(note.get("producer"), note.get("sequence"))
    except (ValueError, AttributeError, RecursionError):
        needed = '{"producer": "...", "sequence": n}'
        raise RecordError(f"needed {needed}, got {metadata[:80]!r}", where="batch metadata") from None


def _translated(fault: Exception) -> tuple[str, fl.FlightError]:
    """The metric's reason, and what the client is told."""
    if isinstance(fault, Overloaded | NotReady):
        reason = "overloaded" if isinstance(fault, Overloaded) else "draining"
        extra: dict[str, Any] = {"code": "unavailable", "error": fault.message}
        if isinstance(fault, Overloaded):
            extra["retry_after_seconds"] = fault.retry_after_seconds
        return reason, fl.FlightUnavailableError(str(fault), extra_info=json.dumps(extra).encode())
    if isinstance(fault, MemoryError):
        fault = LimitExceeded("a batch needs more memory than there is", where="batch")
    if isinstance(fault, RecordError):
        extra = {"code": "invalid_argument", "error": str(fault)}
        if isinstance(fault, SequenceConflict):
            extra |= {"code": "already_exists", "forgotten": fault.forgotten}
        return refusal_reason(fault), fl.FlightServerError(str(fault), extra_info=json.dumps(extra).encode())
    number = secrets.token_hex(4)
    logger.error("put failed, error id %s", number, exc_info=fault)
    said = str(fault) if isinstance(fault, StreamkdError) else f"internal error, id {number}"
    extra = {"code": "internal", "error": said}
    return "internal", fl.FlightInternalError(said, extra_info=json.dumps(extra).encode())


def _unsupported(call: str) -> fl.FlightError:
    extra = json.dumps({"code": "unimplemented", "error": call}).encode()
    return fl.FlightServerError(f"{call} is not offered here, DoPut and GetSchema are", extra_info=extra)
