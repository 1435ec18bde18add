"""Large JSON requests: read elsewhere, bounded by what the columns can need, and the same in every answer."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from streamkd.errors import LimitExceeded, Overloaded, RecordError
from streamkd.records import InputColumn, RecordSchema
from streamkd.serve.predictions import openinference, reader
from streamkd.serve.predictions.openinference import largest_body
from streamkd.serve.predictions.reader import Reader

from ..conftest import Publisher, Running

WIDE = RecordSchema(inputs=(InputColumn(name="x", shape=(28, 28), dtype="float32"),))
INFER = "/v2/models/student/infer"


def request(rows: int, values: np.ndarray | None = None, **changes: Any) -> bytes:
    values = np.random.default_rng(0).random((rows, 28, 28)) if values is None else values
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 28, 28], "data": values.tolist(), **changes}
    return json.dumps({"id": "a", "inputs": [tensor]}).encode()


async def _read(body: bytes) -> tuple[openinference.InferRequest, np.ndarray]:
    reader = Reader()
    try:
        return await reader.read(body, None, WIDE, 4_096)
    finally:
        reader.close()


def test_what_is_read_elsewhere_is_what_is_read_here() -> None:
    """The same values, rows, id and outputs, bit for bit, and an array that may be written to."""
    body = request(30)
    there, inputs = asyncio.run(_read(body))
    here, expected = openinference.read(body, None, WIDE, 4_096)
    assert (there.id, there.rows, there.outputs, there.faults) == (here.id, here.rows, here.outputs, here.faults)
    assert inputs.dtype == expected.dtype
    assert np.array_equal(inputs, expected)
    assert inputs.flags.writeable


def test_a_process_that_ended_between_two_requests_is_not_missed() -> None:
    """The next request, which is not at fault, is read by another process."""

    async def read_twice() -> int:
        reader = Reader()
        try:
            await reader.read(request(1), None, WIDE, 4_096)
            assert reader._process is not None
            reader._process.kill()
            return (await reader.read(request(2), None, WIDE, 4_096))[0].rows
        finally:
            reader.close()

    assert asyncio.run(read_twice()) == 2


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"[" * 100_000, RecordError, "recursion limit"),
        (b"{" + b" " * 100_000, RecordError, "needed JSON"),
        (request(5_000, np.zeros((5_000, 1))), LimitExceeded, "at most 4096 records"),
        (request(100, np.zeros((99, 28, 28))), RecordError, "needed 78400 numbers"),
    ],
    ids=["deep", "no JSON", "rows", "shape"],
)
def test_what_is_wrong_is_said_as_here(body: bytes, kind: type[Exception], words: str) -> None:
    """Fault and words come back from the process."""
    with pytest.raises(kind, match=words) as caught:
        asyncio.run(_read(body))
    assert type(caught.value) is kind


def test_a_request_that_ends_its_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever process reads it ends."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LimitExceeded, match="ended on this one"):
        asyncio.run(_read(request(30)))


def test_a_request_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends with it."""
    monkeypatch.setattr(reader, "SECONDS", 0.001)
    with pytest.raises(LimitExceeded, match="could not be read within"):
        asyncio.run(_read(request(30)))


def test_few_may_wait() -> None:
    """The ninth in a row is told to come again."""

    async def many() -> list[Any]:
        reader = Reader()
        try:
            asked = (reader.read(request(2), None, WIDE, 4_096) for _ in range(12))
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            reader.close()

    answers = asyncio.run(many())
    assert sum(isinstance(each, Overloaded) for each in answers) == 12 - 8


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "float16", "float32", "float64"])
def test_the_bound_holds_the_longest_request(dtype: str) -> None:
    """As many records as may come, of the longest numbers of their type, as Python writes them."""
    schema = RecordSchema(inputs=(InputColumn(name="x", shape=(3, 5), dtype=dtype),))  # type: ignore[arg-type]
    kind = np.dtype(dtype)
    longest = np.iinfo(kind).min if kind.kind in "iu" else -1.7976931348623157e308
    tensor = {"name": "x", "datatype": "INT64", "shape": [40, 3, 5], "data": [[[longest] * 5] * 3] * 40}
    needed = len(json.dumps({"inputs": [tensor]}))
    bound = largest_body(schema, 40)
    assert bound is not None
    assert 0 <= bound - (1 << 16) < 3 * needed
    assert needed <= bound


def test_texts_have_no_bound_of_their_own() -> None:
    """Their column says nothing of their length: `body_bytes` holds."""
    assert largest_body(RecordSchema(inputs=(InputColumn(name="t", kind="text", shape=(8,)),)), 10) is None


def test_a_body_beyond_what_the_columns_need_is_413_before_it_comes(shared: Running) -> None:
    """512 records of six small numbers never need a megabyte: the length alone is refused."""
    reply = shared.client.post(INFER, content=b"x" * 1_000_000)
    assert (reply.status_code, "at most" in reply.json()["error"]) == (413, True)


def test_health_is_answered_while_large_requests_are_read(start: Callable[..., Running], publisher: Publisher) -> None:
    """Four of 15 MB at once, and no answer of health takes longer than a loaded machine's turn."""
    publisher.publish(schema=WIDE)
    server = start(body_bytes=64 << 20, queue_rows=4_096)
    server.wait_for(1)
    body = request(1_000)
    assert len(body) > 15_000_000

    async def attack() -> tuple[list[int], float]:
        slowest = 0.0
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            posts = [asyncio.create_task(client.post(INFER, content=body)) for _ in range(4)]
            while not all(post.done() for post in posts):
                begin = time.monotonic()
                assert (await client.get("/v2/health/live")).status_code == 200
                slowest = max(slowest, time.monotonic() - begin)
                await asyncio.sleep(0.01)
            return [post.result().status_code for post in posts], slowest

    statuses, slowest = asyncio.run(attack())
    assert statuses == [200] * 4
    assert slowest < 1.0
