"""Large JSON requests are read in a process of their own: parsing holds the interpreter, which has others to answer.

    body ─► Reader.read ─ line of JSON, body ─► this module as a process ─► values, or what is wrong with them

The process has no torch, a bounded address space and a low priority; it is started with the first large request,
ended where one takes too long, and started again for the next. It goes when its supervisor does: its socket ends.
"""

import asyncio
import contextlib
import json
import math
import os
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from streamkd.errors import LimitExceeded, Overloaded, RecordError
from streamkd.process import Process, bound_address_space, descriptor, spawn
from streamkd.records import RecordSchema
from streamkd.serve.predictions import openinference
from streamkd.serve.predictions.kept import in_arrow, to_ipc
from streamkd.serve.predictions.openinference import InferRequest
from streamkd.serve.predictions.tensors import Faults
from streamkd.serve.processes.messages import Json

WAITING = 8  # requests that may wait for the one that is read
SECONDS = 20.0  # 16 MiB of the worst JSON take 2 s on a core of 2020; a machine may be busy
MEMORY_BYTES = 4 << 30  # 16 MiB of empty lists become 0.5 GiB of Python, and some more as numbers
_FAULTS = {"LimitExceeded": LimitExceeded, "RecordError": RecordError}


class Reader:
    """The process, for one event loop; ``columns``: what is read comes as it was asked, too."""

    def __init__(self, columns: bool = False) -> None:
        self._columns = columns
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._process: Process | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def read(
        self, body: bytes, header_length: str | None, schema: RecordSchema, limit_rows: int
    ) -> tuple[InferRequest, np.ndarray]:
        """The request in a body, and its inputs as the student takes them, [rows, *shape].

        Raises:
            RecordError, LimitExceeded: as ``openinference.read``; also where it takes too long.
            Overloaded: too many wait already.
        """
        if self._waiting >= WAITING:
            raise Overloaded(f"{WAITING} large requests are being read", fix="come again, or send tensors in binary")
        asked: Json = {"bytes": len(body), "header_length": header_length, "limit_rows": limit_rows}
        asked["columns"] = self._columns
        self._waiting += 1
        try:
            async with self._turn, asyncio.timeout(SECONDS):
                told, raw = await self._ask({**asked, "schema": schema.model_dump(mode="json")}, body)
        except TimeoutError:
            raise LimitExceeded(f"the request could not be read within {SECONDS:g} seconds", fix=_SMALLER) from None
        except (OSError, EOFError):
            raise LimitExceeded("the process that reads large requests ended on this one", fix=_SMALLER) from None
        finally:
            self._waiting -= 1
        if "error" in told:
            raise _FAULTS[told["error"]](told["message"], where=told["where"], fix=told["fix"])
        outputs = tuple((name, binary) for name, binary in told["outputs"])
        inputs = np.frombuffer(raw, told["dtype"], math.prod(told["shape"])).reshape(told["shape"])
        faults = Faults({int(row): said for row, said in told["faults"].items()})
        columns = pa.ipc.open_stream(raw[inputs.nbytes :]).read_next_batch() if self._columns else None
        named = {} if columns is None else dict(zip(columns.schema.names, columns.columns, strict=True))
        return InferRequest(told["id"], named, told["rows"], outputs, faults, told["prediction_id"]), inputs

    async def _ask(self, asked: Mapping[str, Any], body: bytes) -> tuple[Json, bytearray]:
        """One exchange, and another with a fresh process where the one that was there has ended: perhaps before."""
        was_there = self._streams is not None
        try:
            return await self._exchange(asked, body)
        except (OSError, EOFError):
            if not was_there:
                raise
            return await self._exchange(asked, body)

    async def _exchange(self, asked: Mapping[str, Any], body: bytes) -> tuple[Json, bytearray]:
        """A process whose answer was not heard to its end is of no use any more."""
        try:
            reader, writer = self._streams or await self._start()
            writer.write(json.dumps(asked).encode() + b"\n")
            writer.write(body)
            await writer.drain()
            told = json.loads(await reader.readline() or _gone())
            return told, bytearray(await reader.readexactly(told.get("bytes", 0)))
        except BaseException:
            self.close()
            raise

    async def _start(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, theirs = socket.socketpair()
        settings = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
        self._process = spawn("streamkd.serve.predictions.reader", theirs, settings)
        self._streams = await asyncio.open_connection(sock=ours)
        return self._streams

    def close(self) -> None:
        """End the process; the next request starts another."""
        if self._streams is not None:
            self._streams[1].transport.abort()
        if self._process is not None:
            self._process.kill()
            asyncio.get_running_loop().run_in_executor(None, self._process.wait)  # a large process takes its time
        self._process = self._streams = None


_SMALLER = "send fewer records in a request, or tensors in binary"


def _gone() -> bytes:
    raise EOFError("the process has ended")


def main() -> None:
    """The process: read, answer, until the socket ends; memory within bounds, and the processor last."""
    os.nice(5)  # others answer people
    bound_address_space(MEMORY_BYTES)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        _serve(socket.socket(fileno=descriptor()))


def _serve(end: socket.socket) -> None:
    with end, end.makefile("rwb") as stream:
        while line := stream.readline():
            asked = json.loads(line)
            told, raw = _read(stream.read(asked["bytes"]), asked)
            stream.write(json.dumps({**told, "bytes": len(raw)}).encode() + b"\n")
            stream.write(raw)
            stream.flush()


def _read(body: bytes, asked: Mapping[str, Any]) -> tuple[Json, bytes]:
    """What the request says, and its values; or what is wrong with it."""
    schema = RecordSchema.model_validate(asked["schema"])
    try:
        request, inputs = openinference.read(body, asked["header_length"], schema, asked["limit_rows"])
    except MemoryError:
        return _told(LimitExceeded("the request needs more memory to be read than there is", fix=_SMALLER))
    except RecordError as fault:
        return _told(fault)
    told = {"id": request.id, "rows": request.rows, "outputs": request.outputs, "faults": request.faults}
    told["prediction_id"] = request.prediction_id
    columns = to_ipc(in_arrow(request.columns, schema)) if asked["columns"] else b""
    return {**told, "dtype": inputs.dtype.str, "shape": inputs.shape}, inputs.tobytes() + columns


def _told(fault: RecordError) -> tuple[Json, bytes]:
    kind = "LimitExceeded" if isinstance(fault, LimitExceeded) else "RecordError"
    return {"error": kind, "message": fault.message, "where": fault.where, "fix": fault.fix}, b""


if __name__ == "__main__":
    main()
