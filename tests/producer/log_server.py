"""A push server over a real log, for tests: Flight and HTTP in one process, which tests may kill.

python log_server.py LOG FLIGHT_PORT HTTP_PORT     prints the two URLs in one line, then serves until killed
"""

import http.server
import json
import sys
import threading
from pathlib import Path

from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import LateLabels, Limits
from streamkd.streams.ingest.flight import FlightListener, FlightOptions
from streamkd.streams.ingest.http import HttpListener, HttpOptions
from streamkd.streams.ingest.intake import Ingest, Intake
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.log import Log
from streamkd.telemetry import Recorder

SCHEMA = RecordSchema(inputs=(InputColumn(name="x", dtype="int64"),))


class Server:
    """Both listeners over the log of a path."""

    def __init__(
        self,
        path: Path,
        flight_port: int = 0,
        http_port: int = 0,
        tokens: Path | None = None,
        limits: Limits | None = None,
        schema: RecordSchema = SCHEMA,
        late: LateLabels | None = None,
    ) -> None:
        self.log = Log(path, schema, stream="main", labels=late)
        self.intake = Intake(self.log, limits or Limits(), Recorder())
        ingest = Ingest(self.intake, Tokens(tokens), flight_port=flight_port)
        self._flight = FlightListener(FlightOptions(), ingest)
        self.flight = self._flight.start()["flight"]
        self._http = http.server.ThreadingHTTPServer(
            ("127.0.0.1", http_port), _handler(HttpListener(HttpOptions(), ingest))
        )
        self._http.daemon_threads = True
        self.http = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def values(self) -> list[int]:
        """Every record of the log, in order."""
        return [x for offset in range(0, self.log.end(), 500) for x in self._read(offset)]

    def _read(self, offset: int) -> list[int]:
        rows = []
        while len(rows) < min(500, self.log.end() - offset):
            chunk = self.log.read(offset + len(rows), 500 - len(rows))
            rows += [value[0] for value in chunk.rows.column("x").to_pylist()]
        return rows

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        assert self._flight._server is not None
        self._flight._server.shutdown()
        self.intake.close()
        self.log.close()


def _handler(listener: HttpListener) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers["content-length"]))
            stream, kind = (None, "labels") if self.path == "/v1/labels" else (self.path.rpartition("/")[2], "records")
            answer = listener.refusal(stream, headers) or listener.receive(headers, body, kind)
            data = json.dumps(dict(answer.body)).encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None: ...

    return Handler


if __name__ == "__main__":
    server = Server(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(server.flight, server.http, flush=True)
    threading.Event().wait()
