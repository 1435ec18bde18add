"""The source ``flight``: records that producers put over Arrow Flight, and labels of predictions.

    DoPut [stream] | [stream, "labels"] ─► schema ─► a slot ─► batch, {"producer", "sequence"} ─► intake ─► acks

A stream that cannot be taken now is left unread, which holds its producer back; one that sends nothing gives way
(``connections``). What is wrong with the records is INVALID_ARGUMENT. Every other refusal is a Flight error with a JSON
``extra_info``: {"code": "already_exists" | "unavailable" | "internal", "error": ...}.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.flight as fl
from pydantic import Field

from streamkd.errors import ConfigError, Overloaded, RecordError, first_line
from streamkd.hookspecs import Options, SourceKind, hookimpl
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.ingest.acks import Acks
from streamkd.streams.ingest.admission import admit_batch, admit_schema
from streamkd.streams.ingest.calls import CallGuard, lacking
from streamkd.streams.ingest.connections import Connections, peer_of
from streamkd.streams.ingest.intake import Ingest, Listener
from streamkd.streams.ingest.refusals import Refusal
from streamkd.streams.ingest.tokens import Scope
from streamkd.streams.log.log import Kind, PutStream
from streamkd.streams.log.receipts import identity

SLOT_SECONDS = 10.0
CALLS = 16  # beside put streams, open or waiting: of producers that ask for the schema
Call = TypeVar("Call", bound=Callable[..., Any])
_CODES: dict[str, tuple[str, Callable[..., Exception]]] = {
    "overloaded": ("unavailable", fl.FlightUnavailableError),
    "draining": ("unavailable", fl.FlightUnavailableError),
    "conflict": ("already_exists", fl.FlightServerError),
    "internal": ("internal", fl.FlightInternalError),
}


class FlightOptions(Options):
    """Options of the source ``flight``."""

    streams: int = Field(
        default=32, ge=1, le=256, description="put streams that may be open at once; beyond, the longest idle ends"
    )
    idle_seconds: float = Field(
        default=300.0, gt=0, description="a connection of which nothing comes for so long is ended"
    )


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
            fix = "free the port, or choose another with serve.flight_port (0: any); check serve.tls"
            raise ConfigError(
                f"Flight cannot listen on {shown}:{port}: {first_line(fault)}", where="serve", fix=fix
            ) from None
        return {"flight": f"{scheme}://{shown}:{self._server.port}"}

    def drain(self, deadline_seconds: float) -> None:
        if self._server is not None:
            self._server.drain(deadline_seconds)

    def close(self) -> None:
        """Stop listening; waits for streams that are still open."""
        if self._server is not None:
            self._server.end()


def _short(call: Call) -> Call:
    """A call whose file has no path: pyarrow tells clients the frames that it was raised through, ours among them."""
    code = getattr(call, "__code__")  # noqa: B009  (of a callable of any kind)
    setattr(call, "__code__", code.replace(co_filename="streamkd"))  # noqa: B010
    return call


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the server that raises nothing but what the client is told, and from this frame alone."""

    @_short
    def call(server: "_Server", *arguments: Any) -> Any:
        told: Exception
        try:
            return method(server, *arguments)
        except fl.FlightError as fault:
            told = fault
        except Exception as fault:  # noqa: BLE001 - the outermost frame that is ours
            told = server.refused(fault)
        raise told.with_traceback(None)

    return call


def _unsupported(call: str) -> Callable[..., Any]:
    @_short
    def refuse(_server: "_Server", *_arguments: object) -> None:
        raise pa.ArrowNotImplementedError(f"{call} is not offered here, DoPut and GetSchema are")

    return refuse


class _Server(fl.FlightServerBase):
    """DoPut, and GetSchema for producers that want to know what fits."""

    def __init__(self, location: str, options: FlightOptions, ingest: Ingest, protection: Mapping[str, Any]) -> None:
        self._intake = ingest.intake
        self._limit = options.streams
        self._open = 0
        self._changed = threading.Condition()
        self._connections = Connections(options.idle_seconds)
        guard = CallGuard(ingest, 2 * options.streams + CALLS, self._connections.make_room, self.refused)
        super().__init__(location, middleware={"guard": guard}, **protection)
        self._connections.watch(self.port)

    def end(self) -> None:
        """Stop listening and watching."""
        self._connections.close()
        self.shutdown()

    @_guarded
    def do_put(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
        writer: fl.FlightMetadataWriter,
    ) -> None:
        peer, connections, put_stream = peer_of(context.peer()), self._connections, PutStream()

        def write(body: bytes) -> None:
            with connections.awaiting_read(peer):
                writer.write(pa.py_buffer(body))

        with self._slot(context):
            kind = self._kind(context, descriptor)
            admit_schema(reader.schema, self._intake.schema_of(kind), self._intake.limits)
            acks = Acks(write, lambda: connections.leave_waiting(peer))
            try:
                for batch, note in _chunks(reader):
                    with connections.holding(peer):
                        self._take(context, kind, batch, note, acks, put_stream)
            finally:
                with connections.holding(peer):
                    acks.finish()
                connections.ended(peer)
            acks.raise_failure()

    def _take(
        self,
        context: fl.ServerCallContext,
        kind: Kind,
        batch: pa.RecordBatch,
        note: bytes | None,
        acks: Acks,
        put_stream: PutStream,
    ) -> None:
        intake = self._intake
        producer, sequence = _note(note)
        sifted = admit_batch(batch, intake.schema_of(kind), intake.limits, producer or intake.stream)
        sender = producer or context.peer()
        receipt = intake.take(sifted, producer, sequence, sender, lambda: not context.is_cancelled(), put_stream, kind)
        acks.expect(receipt, sifted.rows.nbytes, intake.limits.batch_bytes)

    @_guarded
    def get_schema(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> fl.SchemaResult:
        return fl.SchemaResult(arrow_schema(self._intake.schema_of(self._kind(context, descriptor))))

    def _kind(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> Kind:
        """What is put under a descriptor, by a token that may."""
        path = [part.decode(errors="replace") for part in descriptor.path or []]
        kinds: dict[tuple[str, ...], tuple[Kind, Scope]] = {
            (self._intake.stream,): ("records", "ingest"),
            (self._intake.stream, "labels"): ("labels", "label"),
        }
        if tuple(path) not in kinds:
            said = f"needed the descriptor path [{self._intake.stream!r}], got {path}"
            raise RecordError(said, where="DoPut", fix="put to the stream that the server's configuration names")
        kind, scope = kinds[tuple(path)]
        if scope not in context.get_middleware("guard").scopes:
            self._intake.refuse_token("flight")
            raise lacking(scope)
        return kind

    @contextlib.contextmanager
    def _slot(self, context: fl.ServerCallContext) -> Iterator[None]:
        """One of the places for open streams; waits a while for it, with the stream unread, and a silent one ends."""
        deadline = time.monotonic() + SLOT_SECONDS
        with self._connections.holding(peer_of(context.peer())), self._changed:
            while not self._changed.wait_for(lambda: self._open < self._limit, 0.1):
                if context.is_cancelled() or self._intake.draining or time.monotonic() > deadline:
                    said = f"{self._limit} put streams are open"
                    raise Overloaded(said, fix="close one, or raise stream.source.streams")
                self._connections.make_room()
            self._open += 1
        try:
            yield
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def drain(self, deadline_seconds: float) -> None:
        """Wait until no stream is open, or the deadline; a producer that sends nothing keeps its stream open."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open, deadline_seconds)

    def refused(self, fault: Exception) -> Exception:
        """Count a refusal; what the client is told."""
        return _in_flight(self._intake.refused(fault))

    # What the server does not do. The defaults of pyarrow would answer with a traceback.
    list_flights, get_flight_info = _unsupported("ListFlights"), _unsupported("GetFlightInfo")
    do_get, do_exchange = _unsupported("DoGet"), _unsupported("DoExchange")
    list_actions, do_action = _unsupported("ListActions"), _unsupported("DoAction")


def _chunks(reader: fl.MetadataRecordBatchReader) -> Iterator[tuple[pa.RecordBatch, bytes | None]]:
    """The batches with their metadata; what cannot be read is the producer's fault, and said as such."""
    while True:
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return
        except (fl.FlightError, MemoryError):
            raise
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise RecordError(f"cannot be read as Arrow: {first_line(fault)}", where="batch") from None
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


def _in_flight(refusal: Refusal) -> Exception:
    """A refusal as an error of Flight, or of Arrow where the records are wrong."""
    if refusal.reason not in _CODES:
        return pa.ArrowInvalid(refusal.said)
    code, error = _CODES[refusal.reason]
    extra: dict[str, Any] = {"code": code, "error": refusal.said}
    if refusal.retry_after_seconds is not None:
        extra["retry_after_seconds"] = refusal.retry_after_seconds
    if code == "already_exists":
        extra["forgotten"] = refusal.forgotten
    return error(refusal.said, extra_info=json.dumps(extra).encode())
