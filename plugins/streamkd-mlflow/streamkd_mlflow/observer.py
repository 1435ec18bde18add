"""The observer ``mlflow``: a stream as a run of MLflow, written by a thread that the learner never waits for.

    on_step ─► steps ─► now and then: their means ─┐
    on_boundary, on_published ─────────────────────┴─► points ─► the store, as one batch

A store that is slow or away costs a warning: what it did not take waits, up to ``POINTS``, then the oldest is let go.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pydantic import Field

from streamkd.api import Boundary, Kind, Options, hookimpl
from streamkd_mlflow.store import Point, Store

STEPS, POINTS = 65_536, 10_000  # that wait at most
AT_ONCE = 1_000  # MLflow takes no more metrics in one request
LAST_SECONDS = 10.0  # that a learner which stops waits for what is not written yet
logger = logging.getLogger(__name__)


class MlflowOptions(Options):
    """Where to, how often, and whether versions go there with their files."""

    uri: str = Field(min_length=1, description="the tracking store: `sqlite:///FILE`, or `http://HOST:PORT`")
    experiment: str = Field(default="streamkd", min_length=1, description="made where it is not there")
    every_seconds: float = Field(
        default=10.0, gt=0, description="between two writes; a metric is the mean of its steps"
    )
    model: str = Field(default="", description="the registered model that versions become, with files; empty: none")
    model_every_seconds: float = Field(default=600.0, gt=0, description="between two versions with files: the newest")


class MlflowObserver:
    """Collects what happens; what is written comes from ``Store`` in a thread of its own."""

    def __init__(self, options: MlflowOptions) -> None:
        self._options = options
        self._steps: deque[tuple[int, float, float]] = deque(maxlen=STEPS)
        self._points: deque[Point] = deque(maxlen=POINTS)
        self._version: int | None = None  # published, and its files not written
        self._model_due = 0.0
        self._over = Event()
        self._thread: Thread | None = None

    def on_start(self, config: Mapping[str, Any], directory: Path | None) -> None:
        store = Store(self._options.uri, self._options.experiment, config, directory)
        self._thread = Thread(target=self._write_until_over, args=(store,), name="mlflow", daemon=True)
        self._thread.start()

    def on_step(self, record: int, loss: float, accuracy: float) -> None:
        self._steps.append((record, loss, accuracy))

    def on_boundary(self, boundary: Boundary) -> None:
        self._note("boundary", 1, boundary.record)

    def on_published(self, version: int, record: int) -> None:
        self._note("version", version, record)
        self._version = version

    def on_stop(self) -> None:
        """Write what is left, for ``LAST_SECONDS`` at most."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)
            if self._thread.is_alive():
                logger.warning("mlflow: the store is slow, what it has not taken yet is lost")

    def _note(self, name: str, value: float, record: int) -> None:
        if math.isfinite(value):
            self._points.append(Point(name, value, int(time.time() * 1_000), record))

    def _write_until_over(self, store: Store) -> None:
        """Whatever fails is said once, until something works again."""
        failing, over = False, False
        while not over:
            over = self._over.wait(self._options.every_seconds)
            try:
                self._write(store, over)
                failing = False
            except Exception as fault:  # noqa: BLE001 - clients of stores raise almost anything
                if not failing:
                    logger.warning("mlflow: %s takes nothing, it is tried again: %s", self._options.uri, fault)
                failing = True

    def _write(self, store: Store, over: bool) -> None:
        self._condense()
        store.begin()
        while batch := [self._points[place] for place in range(min(len(self._points), AT_ONCE))]:
            store.add(batch)
            for _ in batch:
                self._points.popleft()
        self._write_version(store, over)
        if over:
            store.end()

    def _condense(self) -> None:
        """All steps since the last time as one point each of loss and accuracy."""
        steps = [self._steps.popleft() for _ in range(len(self._steps))]
        for name, values in (("loss", [loss for _, loss, _ in steps]), ("accuracy", [right for *_, right in steps])):
            if finite := [value for value in values if math.isfinite(value)]:
                self._note(name, sum(finite) / len(finite), steps[-1][0])

    def _write_version(self, store: Store, over: bool) -> None:
        version, now = self._version, time.monotonic()
        if not self._options.model or version is None or not (over or now >= self._model_due):
            return
        self._model_due, self._version = now + self._options.model_every_seconds, None
        store.register(self._options.model, version)


@hookimpl
def streamkd_observers() -> Iterable[Kind]:
    """The one observer."""
    yield Kind("mlflow", MlflowObserver, MlflowOptions, "metrics, tasks and published versions as a run of MLflow")
