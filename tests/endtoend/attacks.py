"""Attacks on the doors, as rows: what it is, what is sent, what must be answered.

Over HTTP the answer is a status, or ``closed`` where nothing is said; over Flight a gRPC status's number, ``0`` where
it is taken.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

INFER = "/v2/models/student/infer"
PUSH = "/v1/streams/main"
LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
CLOSED = "closed"


@dataclass(frozen=True)
class Http:
    """``sent`` is written to a socket as it is; ``answers`` are those that are right."""

    title: str
    sent: bytes
    answers: tuple[int | str, ...]
    words: str = ""


@dataclass(frozen=True)
class Put:
    """``rows`` are put over Flight; ``status`` is the gRPC status's number."""

    title: str
    rows: Callable[[], pa.RecordBatch]
    status: int
    words: str = ""
    path: tuple[bytes, ...] | None = (b"main",)
    note: bytes | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


def http(method: str, path: str, body: bytes = b"", *more: str, host: str = "localhost", length: bool = True) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *more]
    lines += [f"Content-Length: {len(body)}"] if length and (body or method == "POST") else []
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(body: bytes) -> bytes:
    return http("POST", INFER, body, "Transfer-Encoding: chunked", length=False)


def rollback(version: Any, *more: str, host: str = "localhost") -> bytes:
    body = version if isinstance(version, bytes) else json.dumps({"version": version}).encode()
    return http("POST", "/v1/models/rollback", body, *more, host=host)


def ask(*more: str, raw: bytes | None = None, parameters: Any = None, **changes: Any) -> bytes:
    """A prediction of one record, with changes to its tensor."""
    tensor = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8, **changes}
    tensor = {key: value for key, value in tensor.items() if value is not None}
    tree = {"inputs": [tensor], **({"parameters": parameters} if parameters is not None else {})}
    return http("POST", INFER, raw if raw is not None else json.dumps(tree).encode(), *more)


def binary(tail: bytes, size: Any, head_length: Any = None, shape: Any = (1, 8)) -> bytes:
    tensor = {"name": "x", "shape": list(shape), "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = len(head) if head_length is None else head_length
    return http("POST", INFER, head + tail, f"Inference-Header-Content-Length: {length}")


def push(body: bytes, *more: str, kind: str = LINES) -> bytes:
    return http("POST", PUSH, body, f"Content-Type: {kind}", *more)


TENSOR: dict[str, Any] = {"name": "x", "shape": [1, 8], "datatype": "FP32"}
HUGE = json.dumps({"inputs": [{**TENSOR, "data": [0.5] * 8}]}).replace("[0.5,", "[1e999,").encode()
SHARED = json.dumps({"inputs": [{**TENSOR, "parameters": {"shared_memory_region": "/dev/shm/x"}}]}).encode()
LINE = json.dumps({"x": [0.0] * 8, "label": 0, "task": "t0"}).encode()
EVIL = "evil.example"
HTTP = [
    # heads
    Http("bytes that are no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), (400, CLOSED)),
    Http("HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, CLOSED)),
    Http("a head of zeros", bytes(1_000), (400, CLOSED)),
    Http("a version that there is not", b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", (400,)),
    Http("no Host", b"GET /v1/status HTTP/1.1\r\n\r\n", (400,), "Host"),
    Http("two Hosts", b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", (400,), "Host"),
    Http("a header without a colon", b"GET / HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n", (400,)),
    Http("a space before a header's colon", b"GET / HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n", (400,)),
    Http("a folded header", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", (400, 200)),
    Http("a zero byte in a header", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", (400,)),
    Http("a target of 70 KB", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (431, CLOSED)),
    Http("a header of 70 KB", http("GET", "/", b"", "X: " + "a" * 70_000), (431, CLOSED)),
    Http("twelve thousand headers", http("GET", "/", b"", *["a: b"] * 12_000), (431, CLOSED)),
    Http("a head that stops", b"GET / HTTP/1.1\r\nHost: local", (408,)),
    Http("nothing at all", b"", (408,)),
    Http("empty lines alone", b"\r\n" * 1_000, (408,)),
    Http("two thousand requests in one piece", http("GET", "/v2/health/live") * 2_000, (200, 400, CLOSED)),
    # bodies and smuggling
    Http("length and chunks at once", http("POST", INFER, b"0\r\n\r\n", "Transfer-Encoding: chunked"), (400,)),
    Http("two different lengths", http("POST", INFER, b"{}", "Content-Length: 1"), (400,)),
    Http("a negative length", http("POST", INFER, b"", "Content-Length: -1", length=False), (400,)),
    Http("a length of 2^64", http("POST", INFER, b"", f"Content-Length: {1 << 64}", length=False), (400,)),
    Http("a length of 2^62", http("POST", INFER, b"", f"Content-Length: {1 << 62}", length=False), (413,)),
    Http("a chunk that is no number", chunked(b"zz\r\n"), (400,)),
    Http("a chunk of 2^64", chunked(b"f" * 17 + b"\r\n"), (400,)),
    Http("an unknown transfer coding", http("POST", INFER, b"", "Transfer-Encoding: bomb", length=False), (400,)),
    Http("chunks of one byte without end", chunked(b"1\r\n{\r\n" * 50), (408,)),
    Http("a body that stops", http("POST", INFER, b"{", "Content-Length: 100", length=False), (408,)),
    Http(
        "a pushed body that stops",
        http("POST", PUSH, b"{", f"Content-Type: {LINES}", "Content-Length: 9", length=False),
        (408,),
    ),
    Http("a trailer that names another host", chunked(b"2\r\n{}\r\n0\r\nHost: evil.example\r\n\r\n"), (400,), "inputs"),
    Http(
        "15 MB where kilobytes can be needed",
        http("POST", INFER, b"x" * 100, "Content-Length: 15000000", length=False),
        (413,),
    ),
    Http("a gzip bomb", ask("Content-Encoding: gzip", raw=gzip.compress(bytes(100 << 20))), (413,)),
    Http("a deflate bomb", ask("Content-Encoding: deflate", raw=zlib.compress(bytes(100 << 20))), (413,)),
    Http("gzip that is none", ask("Content-Encoding: gzip", raw=b"nonsense"), (400,)),
    Http("an unknown encoding", ask("Content-Encoding: br", raw=b"{}"), (415,)),
    Http("two encodings", ask("Content-Encoding: gzip, gzip", raw=gzip.compress(gzip.compress(b"{}"))), (415,)),
    Http("packed records", push(gzip.compress(LINE), "Content-Encoding: gzip"), (415,)),
    # names, origins, methods, paths
    Http("a rebound name reads the status", http("GET", "/v1/status", host=EVIL), (421,), "serve.hosts"),
    Http("a rebound name rolls back", rollback(1, f"Origin: http://{EVIL}", host=EVIL), (421,)),
    Http("a rebound name pushes records", http("POST", PUSH, LINE, f"Content-Type: {LINES}", host=EVIL), (421,)),
    Http("a name that begins like ours", http("GET", "/v1/status", host=f"127.0.0.1.{EVIL}"), (421,)),
    Http("another site's form rolls back", rollback(1, f"Origin: http://{EVIL}"), (403,)),
    Http(
        "another site's form pushes text/plain",
        http("POST", PUSH, LINE, "Content-Type: text/plain", "Origin: null"),
        (403,),
    ),
    Http(
        "a fetch without origin from another site",
        http("POST", "/v1/models/unpin", b"", "Sec-Fetch-Site: cross-site"),
        (403,),
    ),
    Http("CONNECT", b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 404, 405, CLOSED)),
    Http("TRACE", http("TRACE", "/"), (405,)),
    Http("DELETE of the model", http("DELETE", "/v2/models/student"), (405,)),
    Http("another method by a header", http("GET", "/v1/models/rollback", b"", "X-HTTP-Method-Override: POST"), (405,)),
    Http("a path out of the server", http("GET", "/../../etc/passwd"), (404, 400)),
    Http("the same, written in percent", http("GET", "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd"), (404,)),
    Http("a path that is no UTF-8", http("GET", "/v2/models/%ff%fe"), (404,)),
    Http(
        "a stream whose name is a path", http("POST", "/v1/streams/..%2f..%2fx", LINE, f"Content-Type: {LINES}"), (404,)
    ),
    Http("a version of 30 digits", http("GET", f"/v2/models/student/versions/{'9' * 30}"), (404,)),
    Http(
        "an upgrade to a web socket",
        http(
            "GET",
            "/",
            b"",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: a",
            "Sec-WebSocket-Version: 13",
        ),
        (200, 400),
    ),
    Http(
        "an upgrade to HTTP/2",
        http(
            "GET",
            "/v2/health/live",
            b"",
            "Upgrade: h2c",
            "Connection: Upgrade, HTTP2-Settings",
            "HTTP2-Settings: AAMAAABkAAQAAP__",
        ),
        (200,),
    ),
    Http("a query of 60 KB", http("GET", "/v1/status?" + "a=b&" * 15_000), (200,)),
    # administration
    Http("a rollback to 2^63", rollback(1 << 63), (400,), "version"),
    Http("a rollback to 10^400", rollback(b'{"version": 1' + b"0" * 400 + b"}"), (400,)),
    Http("a rollback to -1", rollback(-1), (400,)),
    Http("a rollback to a version that there is not", rollback(999999), (409,)),
    Http("a rollback of 5 KB", rollback(b" " * 5_000), (413,)),
    # predictions
    Http("NaN in JSON", ask(raw=b'{"inputs": NaN}'), (400,)),
    Http("a number beyond floats", ask(raw=HUGE), (400,)),
    Http("an integer of 5,000 digits", ask(raw=b'{"inputs": ' + b"9" * 5_000 + b"}"), (400,)),
    Http("lists 30,000 deep", ask(raw=b'{"inputs":' + b"[" * 30_000), (400,)),
    Http("objects 10,000 deep", ask(raw=b'{"a":' * 10_000), (400,)),
    Http("lists 150,000 deep", ask(raw=b'{"inputs":' + b"[" * 150_000), (400,)),
    Http("200,000 empty lists", ask(raw=b'{"inputs":[' + b"[]," * 200_000 + b"[]]}"), (400,)),
    Http("half of a surrogate pair", ask(raw=b'{"id": "\\ud800", "inputs": []}'), (400,)),
    Http("bytes that are no UTF-8", ask(raw=b'{"id": "\xff", "inputs": []}'), (400,)),
    Http("a key twice", ask(raw=b'{"inputs": [], "inputs": [], "inputs": 3}'), (400,)),
    Http("an id of 600 characters", ask(raw=json.dumps({"id": "a" * 600, "inputs": []}).encode()), (400,)),
    Http("a negative shape", ask(shape=[-1, 8]), (400,)),
    Http("a shape whose product wraps", ask(shape=[1 << 61, 8]), (413, 400)),
    Http("a shape of 2^64", ask(shape=[1 << 64, 8]), (413, 400)),
    Http("a shape of fractions", ask(shape=[1.0, 8.0]), (400,)),
    Http("a shape of a hundred axes", ask(shape=[1] * 100), (400,)),
    Http("a wrong type", ask(datatype="BYTES", data=["a"] * 8), (400,)),
    Http("strings for numbers", ask(data=["1"] * 8), (400,)),
    Http("truth values for numbers", ask(data=[True] * 8), (200,)),
    Http("a null among numbers", ask(data=[None] + [0.0] * 7), (400,)),
    Http("numbers beyond float32", ask(data=[1e300] * 8), (400,)),
    Http("fewer bytes than a tensor says", binary(bytes(31), 32), (400,)),
    Http("more bytes than a tensor says", binary(bytes(40), 32), (400,)),
    Http("a tensor of 2^63 bytes", binary(bytes(32), 1 << 63), (400,)),
    Http("a tensor of -1 bytes", binary(bytes(32), -1), (400,)),
    Http("JSON longer than the body", binary(bytes(32), 32, head_length=10**6), (400,)),
    Http("JSON of -1 bytes", binary(bytes(32), 32, head_length=-1), (400,)),
    Http("JSON of 10^30 bytes", binary(bytes(32), 32, head_length=10**30), (400,)),
    Http("shared memory", ask(raw=SHARED), (400,)),
    # records
    Http("a producer that is no ASCII", push(LINE, "Streamkd-Producer: m\xc3\xbcller", "Streamkd-Sequence: 0"), (200,)),
    Http(
        "a producer that is no UTF-8",
        push(LINE, "Streamkd-Producer: m\xfcller", "Streamkd-Sequence: 0"),
        (400,),
        "Producer",
    ),
    Http("a producer of 300 characters", push(LINE, "Streamkd-Producer: " + "a" * 300, "Streamkd-Sequence: 0"), (400,)),
    Http("a sequence of 2^63", push(LINE, "Streamkd-Producer: a", f"Streamkd-Sequence: {1 << 63}"), (400,)),
    Http("a sequence of 5,000 digits", push(LINE, "Streamkd-Producer: a", "Streamkd-Sequence: " + "9" * 5_000), (400,)),
    Http("a sequence alone", push(LINE, "Streamkd-Sequence: 1"), (400,)),
    Http("a line of 70 KB", push(b'{"x": "' + b"a" * 70_000 + b'"}'), (422,)),
    Http("a line 50,000 deep", push(b"[" * 50_000), (422,)),
    Http("70,000 lines", push(b"{}\n" * 70_000), (413,)),
    Http("a line of NaN", push(LINE.replace(b"0.0]", b"NaN]")), (422,)),
    Http("a label of 2^63", push(LINE.replace(b'"label": 0', b'"label": 9223372036854775808')), (422,)),
    Http("a label of 10^400", push(LINE.replace(b'"label": 0', b'"label": 1' + b"0" * 400)), (422,)),
    Http("Arrow that is noise", push(b"noise" * 100, kind=ARROW), (400,)),
    Http("Arrow of 4 GB in its head", push(b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(64), kind=ARROW), (400,)),
    Http("Arrow of nothing", push(b"", kind=ARROW), (400,)),
    Http("an unknown type", push(LINE, kind="text/plain"), (415,)),
]


def batch(rows: int = 3, **columns: Any) -> pa.RecordBatch:
    """Good rows with other columns."""
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8 * rows, np.float32)), 8)
    good = {"x": x, "label": pa.array([0] * rows), "task": pa.array(["t0"] * rows)}
    return pa.record_batch({name: value for name, value in {**good, **columns}.items() if value is not None})


def _pointing_anywhere() -> pa.RecordBatch:
    """Texts whose offsets lead far beyond their bytes, and before them."""
    offsets = pa.py_buffer(struct.pack("<4i", 0, 1 << 30, -5, 1))
    return batch(task=pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"t")]))


INVALID, UNIMPLEMENTED = 3, 12
PUTS = [
    Put("another stream", batch, INVALID, "'main'", path=(b"other",)),
    Put("a stream whose name is a path", batch, INVALID, "'main'", path=(b"..", b"main")),
    Put("a command for a path", batch, INVALID, "'main'", path=None),
    Put("metadata that is no JSON", batch, INVALID, "producer", note=b"nonsense"),
    Put("metadata that is a list", batch, INVALID, "producer", note=b"[]"),
    Put("metadata 100,000 deep", batch, INVALID, "producer", note=b"[" * 100_000),
    Put(
        "metadata of 1 MB", batch, INVALID, "producer", note=b'{"producer": "' + b"a" * (1 << 20) + b'", "sequence": 1}'
    ),
    Put("a sequence of 2^63", batch, INVALID, "sequence", note=b'{"producer": "a", "sequence": 9223372036854775808}'),
    Put("a sequence that is true", batch, INVALID, "sequence", note=b'{"producer": "a", "sequence": true}'),
    Put(
        "half of a surrogate pair as producer",
        batch,
        INVALID,
        "producer",
        note=b'{"producer": "\\ud800", "sequence": 1}',
    ),
    Put("a column that is missing", lambda: batch(x=None), INVALID, "'x'"),
    Put("a column of another type", lambda: batch(x=pa.array(["a", "b", "c"])), INVALID, "'x'"),
    Put("a column of nothing", lambda: batch(x=pa.nulls(3)), INVALID, "'x'"),
    Put("a hundred columns", lambda: batch(**{f"c{n}": pa.array([0] * 3) for n in range(100)}), INVALID, "columns"),
    Put("a list without length", lambda: batch(x=pa.array([[0.0]] * 3, pa.list_(pa.float32(), 1))), INVALID, "'x'"),
    Put("offsets that lead anywhere", _pointing_anywhere, INVALID, ""),
    Put("rows past the limit", lambda: batch(70_000), INVALID, "rows"),
    Put("an authorization that is no UTF-8", batch, 0, headers=((b"authorization-bin", b"\xff\xfe"),)),
]
