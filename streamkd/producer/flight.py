"""Arrow Flight as a transport of ``push``: DoPut with numbered batches, acks read in a thread of their own.

A client that does not read its acks would block the server, and then itself.
"""

import json
import re
import threading
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from streamkd.errors import RecordError, first_line
from streamkd.producer.outbox import Outbox, Piece
from streamkd.producer.transport import Disconnected, Target, conflict, refused


def deliver(outbox: Outbox, target: Target) -> None:
    """One DoPut stream, a ``Transport``."""
    faults: list[Exception] = []
    try:
        with fl.connect(target.url, **_trust(target)) as client:
            options = fl.FlightCallOptions(headers=_headers(target))
            descriptor = fl.FlightDescriptor.for_path(target.stream, *(["labels"] if target.labels else []))
            writer, acks = client.do_put(descriptor, outbox.schema, options)
            _put(outbox, target, writer, acks, faults)
    except (pa.ArrowException, OSError) as fault:
        faults.append(fault)
    own = next((fault for fault in faults if not isinstance(fault, pa.ArrowException | OSError)), None)
    if own is not None:
        raise own
    if not outbox.done:
        raise _told(faults, target)


def _put(
    outbox: Outbox,
    target: Target,
    writer: fl.FlightStreamWriter,
    acks: fl.FlightMetadataReader,
    faults: list[Exception],
) -> None:
    """Write while another thread reads acks; whatever fails on either side is noted in ``faults``."""
    ended = threading.Event()
    reader = threading.Thread(target=_read_acks, args=(acks, outbox, faults, ended), name="push-acks", daemon=True)
    reader.start()
    try:
        for piece in outbox.again():
            _write(writer, piece, target)
        while (new := outbox.next(lambda: not ended.is_set())) is not None:
            _write(writer, new, target)
    except (pa.ArrowException, OSError) as fault:
        faults.append(fault)
    finally:
        # The reader ends when the server does, and the server when it is told that no more comes.
        for step in (writer.done_writing, reader.join, writer.close):
            try:
                step()
            except (pa.ArrowException, OSError) as fault:
                faults.append(fault)


def _write(writer: fl.FlightStreamWriter, piece: Piece, target: Target) -> None:
    note = {"producer": target.producer, "sequence": piece.sequence}
    writer.write_with_metadata(piece.rows, json.dumps(note).encode())


def _read_acks(acks: fl.FlightMetadataReader, outbox: Outbox, faults: list[Exception], ended: threading.Event) -> None:
    try:
        while (buffer := acks.read()) is not None:
            ack = json.loads(buffer.to_pybytes())
            outbox.acknowledge(ack["sequence"], ack)
    except Exception as fault:  # noqa: BLE001 - told by the sending thread
        faults.append(fault)
    finally:
        ended.set()
        outbox.wake()


def _headers(target: Target) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {target.token}".encode())] if target.token else []


def _trust(target: Target) -> dict[str, bytes]:
    """The client's certificates, for TLS alone."""
    files = {"tls_root_certs": target.tls.ca, "cert_chain": target.tls.certificate, "private_key": target.tls.key}
    return {name: path.read_bytes() for name, path in files.items() if path}


def _told(faults: list[Exception], target: Target) -> Exception:
    """Of all that failed on both sides the fault that says most, as ours."""
    for fault in faults:
        if isinstance(fault, fl.FlightUnauthenticatedError | fl.FlightUnauthorizedError):
            return RecordError(f"the server refuses the token: {_line(fault)}", where=target.url, fix="give --token")
        said = _extra(fault)
        if said.get("code") == "already_exists":
            return conflict(said, target.url)
        if said.get("code") in ("unavailable", "internal"):
            return Disconnected(str(said.get("error")), said.get("retry_after_seconds"))
    for fault in faults:
        if isinstance(fault, pa.ArrowInvalid | fl.FlightServerError):
            return refused(_line(fault), target.url, fix=_fix(fault))
    return Disconnected(_line(faults[0]) if faults else "the server ended the stream early")


def _fix(fault: Exception) -> str:
    """The way out that the server names in a line of its own, where it does."""
    found = re.search(r"^  fix: (.*)$", str(fault), re.MULTILINE)
    return _own(found[1]) if found else ""


def _own(line: str) -> str:
    return re.split(r"\. (?:Detail: |gRPC client debug context|Client context|Additionally, )", line)[0]


def _extra(fault: Exception) -> dict[str, Any]:
    """The JSON that streamkd's server puts beside its errors."""
    extra = fault.extra_info if isinstance(fault, fl.FlightError) else b""
    try:
        said = json.loads(extra) if extra else {}
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _line(fault: Exception) -> str:
    """What happened, without what gRPC and pyarrow's server put around it: contexts, their own frames."""
    said = _own(first_line(fault))
    if unreached := re.search(r"Failed to connect to remote host: (.+)", said):
        return f"cannot be reached: {unreached[1]}"
    return re.sub(r"^Flight returned [a-z ]+ error, with message: ", "", said)
