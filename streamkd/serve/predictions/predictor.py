"""Predictions: requests from many connections become few forward passes, in one thread that never trains.

    request ─► bounded queue (rows; full is 429) ─► batch of one version ─► forward ─► each request's rows
    new version ─► ``swap``: one reference

A request is bound to a version when it is taken, so that a swap in between changes nothing for it; the old
version goes when its last request has been answered. The thread takes what is waiting, up to
``batch_rows``, and never waits for more: batches grow with the load alone.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streamkd.errors import LimitExceeded, NotReady, Overloaded
from streamkd.records import Label, RecordSchema
from streamkd.telemetry import Recorder

logger = logging.getLogger(__name__)


class ServedModel(Protocol):
    """A version that can answer. ``predict``: encoded inputs [n, *shape] to probabilities [n, classes] float32."""

    @property
    def classes(self) -> Sequence[Label]: ...
    @property
    def version(self) -> int: ...
    @property
    def schema(self) -> RecordSchema: ...
    @property
    def published_at(self) -> float: ...
    @property
    def records(self) -> int: ...
    def predict(self, inputs: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    published: ServedModel
    inputs: np.ndarray
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[np.ndarray]"
    since: float


class Predictor:
    """The queue, its thread, and the version that answers.

    ``waiting_rows`` wait for a forward pass; ``in_flight`` are requests that have not been answered yet.
    """

    def __init__(self, batch_rows: int, queue_rows: int, recorder: Recorder) -> None:
        self._batch_rows = batch_rows
        self._queue_rows = queue_rows
        self._recorder = recorder
        self._current: ServedModel | None = None
        self._waiting: deque[_Request] = deque()
        self.waiting_rows = 0
        self.in_flight = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="predictor", daemon=True)
        self._thread.start()

    def swap(self, published: ServedModel) -> None:
        """Answer from this version from now on."""
        self._current = published

    def current(self) -> ServedModel:
        """The version that answers.

        Raises:
            NotReady: none was published yet.
        """
        if self._current is None:
            raise NotReady("no version is published yet: the learner has not seen enough records", fix="come again")
        return self._current

    @property
    def version(self) -> int | None:
        """The number of the version that answers."""
        return self._current.version if self._current else None

    async def predict(self, published: ServedModel, inputs: np.ndarray) -> np.ndarray:
        """Probabilities [n, classes] of encoded inputs [n, *shape], by that version.

        Raises:
            Overloaded: the queue is full. LimitExceeded: the request alone is larger than the queue.
            NotReady: the predictor is closed.
        """
        loop = asyncio.get_running_loop()
        request = _Request(published, inputs, loop, loop.create_future(), time.monotonic())
        self._put(request)
        self.in_flight += 1
        try:
            return await request.answer
        finally:
            self.in_flight -= 1

    def _put(self, request: _Request) -> None:
        rows = len(request.inputs)
        if rows > self._queue_rows:
            raise LimitExceeded(f"needed at most {self._queue_rows} records in a request, got {rows}")
        with self._changed:
            if self._closed:
                raise NotReady("the server is stopping")
            if self.waiting_rows + rows > self._queue_rows:
                raise Overloaded(
                    f"{self.waiting_rows} of {self._queue_rows} records wait for a prediction",
                    fix="come again after the time in Retry-After",
                )
            self.waiting_rows += rows
            self._waiting.append(request)
            self._changed.notify()

    def close(self, timeout: float = 10.0) -> None:
        """Answer what waits, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        while batch := self._next():
            _one_thread()
            self._answer(batch)
            del batch  # the version of an answered batch must not outlive it while the thread waits

    def _next(self) -> list[_Request]:
        """Waiting requests of one version, at most ``batch_rows`` rows or one request; empty when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch: list[_Request] = []
            rows = 0
            while self._waiting and self._fits(self._waiting[0], batch, rows):
                batch.append(self._waiting.popleft())
                rows += len(batch[-1].inputs)
            self.waiting_rows -= rows
            return batch

    def _fits(self, request: _Request, batch: list[_Request], rows: int) -> bool:
        if not batch:
            return True
        return request.published is batch[0].published and rows + len(request.inputs) <= self._batch_rows

    def _answer(self, batch: list[_Request]) -> None:
        now = time.monotonic()
        for request in batch:
            self._recorder.observe("predict_queue_duration_seconds", now - request.since)
        try:
            probabilities = self._forward(batch)
        except Exception as fault:  # noqa: BLE001 - a plugin's student may fail on anything: its requests do, the thread goes on
            logger.warning("a forward pass of version %d failed: %r", batch[0].published.version, fault)
            for request in batch:
                _deliver(request, fault)
            return
        start = 0
        for request in batch:
            end = start + len(request.inputs)
            _deliver(request, probabilities[start:end])
            start = end

    def _forward(self, batch: list[_Request]) -> np.ndarray:
        published = batch[0].published
        inputs = batch[0].inputs if len(batch) == 1 else np.concatenate([request.inputs for request in batch])
        parts = []
        for start in range(0, len(inputs), self._batch_rows):
            part = inputs[start : start + self._batch_rows]
            self._recorder.observe("predict_batch_size", len(part))
            parts.append(published.predict(part))
        probabilities = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if probabilities.shape != (len(inputs), len(published.classes)):
            raise ValueError(f"needed {(len(inputs), len(published.classes))} probabilities, got {probabilities.shape}")
        return probabilities


def _one_thread() -> None:
    """Leave the other cores to the learner; late, since the server listens before torch is there."""
    import torch

    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def _deliver(request: _Request, result: np.ndarray | Exception) -> None:
    def resolve() -> None:
        if request.answer.done():  # its connection is gone
            return
        if isinstance(result, Exception):
            request.answer.set_exception(result)
        else:
            request.answer.set_result(result)

    try:
        request.loop.call_soon_threadsafe(resolve)
    except RuntimeError:
        logger.debug("a prediction came after its server had stopped")
