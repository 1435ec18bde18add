"""Predictions on their way to the ingress, which keeps them for their labels: no prediction waits for it.

    answered ─► put ─► bounded queue ─► some together ─► POST on the ingress' socket ─► on disk
                       full: not kept, counted              │ it is away: again, once it is there

What a killed supervisor held is not kept: those labels are unknown.
"""

import asyncio
import contextlib
import logging
from collections import deque
from pathlib import Path

import httpx

from streamkd.records import RecordSchema
from streamkd.serve.predictions.kept import Prediction, pack
from streamkd.telemetry import Recorder

QUEUE_REQUESTS, QUEUE_BYTES = 16_384, 64 << 20
SEND_BYTES = 4 << 20  # that go together, and one more request
GATHER_SECONDS = 0.2  # a post and its commit take some 10 ms of processor time, for one request as for many
AGAIN_SECONDS = 0.5
TRIES = 3  # of a body on which the ingress ends, or that it refuses
logger = logging.getLogger(__name__)


class Handover:
    """The queue of one event loop, and the task that empties it."""

    def __init__(self, socket: Path, schema: RecordSchema, recorder: Recorder) -> None:
        self._socket, self._schema, self._recorder = socket, schema, recorder
        self._waiting: deque[tuple[Prediction, int]] = deque()
        self._held_bytes = 0
        self._put, self._empty = asyncio.Event(), asyncio.Event()
        self._empty.set()

    def put(self, answered: Prediction) -> bool:
        """Let a request be kept; ``False`` where too many wait already."""
        size = answered.nbytes()
        full = len(self._waiting) >= QUEUE_REQUESTS or self._held_bytes + size > QUEUE_BYTES
        if full:
            self._recorder.count("predictions_not_kept_total", answered.rows, reason="full")
            return False
        self._waiting.append((answered, size))
        self._held_bytes += size
        self._put.set()
        self._empty.clear()
        return True

    async def run(self) -> None:
        """Hand over what comes, for ever."""
        transport = httpx.AsyncHTTPTransport(uds=str(self._socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress", timeout=60.0) as client:
            while True:
                await self._put.wait()
                if self._held_bytes < SEND_BYTES:
                    await asyncio.sleep(GATHER_SECONDS)
                await self._hand_over(client)
                if not self._waiting:
                    self._put.clear()
                    self._empty.set()

    async def _hand_over(self, client: httpx.AsyncClient) -> None:
        """Some of what waits; it counts as waiting until the ingress has it on disk."""
        requests: list[Prediction] = []
        held_bytes = 0
        for answered, size in self._waiting:
            requests.append(answered)
            held_bytes += size
            if held_bytes >= SEND_BYTES:
                break
        try:
            kept = await self._deliver(client, await asyncio.to_thread(pack, requests, self._schema))
        except Exception:  # the outermost frame of this task: it must not end while predictions are to be kept
            logger.exception("predictions could not be handed over")
            kept = None
        for _ in requests:
            self._waiting.popleft()
        self._held_bytes -= held_bytes
        count = sum(each.rows for each in requests)
        if kept is None:
            self._recorder.count("predictions_not_kept_total", count, reason="refused")
        else:
            self._recorder.count("predictions_kept_total", kept)

    async def _deliver(self, client: httpx.AsyncClient, body: bytes) -> int | None:
        """Post until the ingress has it: how many it keeps; ``None`` where it does not take it."""
        tries = 0
        while tries < TRIES:
            try:
                reply = await client.post("/v1/predictions", content=body)
                if reply.status_code == 200:
                    return int(reply.json()["kept"])
                tries += reply.status_code not in (429, 503)
                said = reply.text
            except httpx.ConnectError:  # it is not there yet, or again
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            except httpx.TransportError as fault:
                tries, said = tries + 1, f"it ended while it held them: {fault!r}"
            await asyncio.sleep(AGAIN_SECONDS)
        logger.warning("predictions are not kept for their labels: %s", said)
        return None

    async def flush(self, seconds: float) -> None:
        """Wait until everything is handed over, but not for longer."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)
