"""Arrow Flight to durable acknowledgements, beside a bare Flight server: the second half of ``streamkd bench ingest``.

    sync    read the batch, append it to a file as Arrow IPC, fsync, acknowledge
    ours    the source flight: limits, full validation, sifted, in the log with its producer and number, acknowledged

Records a second, from the first batch to the last acknowledgement; the client is a process of its own, and the same
for both. It waits for each batch's acknowledgement before it sends the next (``each``), or reads them beside what it
sends (``streamed``).
"""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.flight as fl

from streamkd.bench.book import Row
from streamkd.errors import SourceError
from streamkd.records import RecordSchema
from streamkd.settings import Limits
from streamkd.streams.ingest.flight import FlightListener, FlightOptions
from streamkd.streams.ingest.intake import Ingest, Intake
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.log import Log
from streamkd.telemetry import Recorder

Way = Literal["each", "streamed"]
WAYS: tuple[Way, ...] = ("each", "streamed")
STREAM = "main"


def measure(batch: pa.RecordBatch, schema: RecordSchema, size_bytes: int, turns: int) -> list[Row]:
    """A row for each way of waiting: the best records a second of both sides, in turns; a batch is sent many times.

    Raises:
        SourceError: a side acknowledged fewer records than it was sent.
    """
    count = max(2, size_bytes // batch.nbytes)
    payload = batch.schema.serialize().to_pybytes() + batch.serialize().to_pybytes()
    best = {way: {"sync": 0.0, "ours": 0.0} for way in WAYS}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as client:
        client.submit(os.getpid).result()  # it is there, and pyarrow is loaded
        for _ in range(turns):
            for way in WAYS:
                for side, serve in (("sync", _bare()), ("ours", _ours(schema))):
                    with serve as url:
                        acknowledged, seconds = client.submit(put, url, payload, count, way).result()
                    if acknowledged != count * batch.num_rows:
                        said = f"needed {count * batch.num_rows} acknowledged records, got {acknowledged}"
                        raise SourceError(said, where=f"bench ingest, {side}")
                    best[way][side] = max(best[way][side], acknowledged / seconds)
    return [{"way": way, "records": count * batch.num_rows, **best[way]} for way in WAYS]


def put(url: str, payload: bytes, count: int, way: Way) -> tuple[int, float]:
    """Send one batch ``count`` times; how many records were acknowledged, and the seconds that it took."""
    with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
        batch = reader.read_next_batch()
    with fl.connect(url) as client:
        writer, acks = client.do_put(fl.FlightDescriptor.for_path(STREAM), batch.schema)
        notes = [json.dumps({"producer": "bench", "sequence": sequence}).encode() for sequence in range(count)]
        heard, wanted, acknowledged = _heard(acks), count * batch.num_rows, 0
        begun = time.perf_counter()
        if way == "each":
            for note in notes:
                writer.write_with_metadata(batch, note)
                acknowledged = next(heard, 0)
        else:
            with ThreadPoolExecutor(1) as beside:
                last = beside.submit(lambda: next((there for there in heard if there >= wanted), 0))
                for note in notes:
                    writer.write_with_metadata(batch, note)
                acknowledged = last.result()
        seconds = time.perf_counter() - begun
        writer.close()
    return acknowledged, seconds


def _heard(acks: fl.FlightMetadataReader) -> Iterator[int]:
    """How many records are acknowledged, after each message."""
    acknowledged = 0
    while (ack := acks.read()) is not None:
        acknowledged += json.loads(ack.to_pybytes())["accepted"]
        yield acknowledged


class _Bare(fl.FlightServerBase):
    """Writes what comes, and acknowledges it once it is on disk."""

    def __init__(self, file: Path) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._file = file

    def do_put(self, _context: Any, _descriptor: Any, reader: Any, writer: Any) -> None:
        with self._file.open("ab", buffering=0) as out:
            for chunk in reader:
                out.write(chunk.data.serialize())
                os.fsync(out)
                writer.write(json.dumps({"accepted": chunk.data.num_rows}).encode())


@contextmanager
def _bare() -> Iterator[str]:
    with TemporaryDirectory() as folder, _Bare(Path(folder, "bytes")) as server:
        yield f"grpc://127.0.0.1:{server.port}"


@contextmanager
def _ours(schema: RecordSchema) -> Iterator[str]:
    limits = Limits(queue_records=1 << 40, queue_bytes=1 << 50)
    with TemporaryDirectory() as folder, closing(Log(Path(folder, "log.sqlite"), schema, stream=STREAM)) as log:
        intake = Intake(log, limits, Recorder())
        listener = FlightListener(FlightOptions(), Ingest(intake, Tokens(None), flight_port=0))
        try:
            yield listener.start()["flight"]
        finally:
            intake.drain()
            listener.drain(10)
            listener.close()
            intake.close()
