"""Pushed streams on loopback: a schema of small pictures, batches of them, and the way into a log."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import LateLabels, Limits, OrderSettings, Retain
from streamkd.streams.ingest.intake import Ingest, Intake
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.event_order import Room
from streamkd.streams.log.log import Log
from streamkd.telemetry import Recorder

SCHEMA = RecordSchema(inputs=(InputColumn(name="x", shape=(2, 3), dtype="float32"),))


def make_pictures(rows: int, seed: int = 0, first: int = 0) -> pa.RecordBatch:
    """Rows that fit ``schema``; labels count up from ``first``, so that order and gaps can be seen."""
    values = np.random.default_rng(seed).random(rows * 6, dtype=np.float32)
    images = pa.FixedSizeListArray.from_arrays(pa.array(values), 6)
    return pa.record_batch({"x": images, "label": pa.array(np.arange(first, first + rows))})


@dataclass
class Way:
    """An intake over a log of its own; what was counted can be read from ``sums``."""

    log: Log
    intake: Intake
    recorder: Recorder
    sums: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict)

    def counted(self, family: str, *labels: str) -> float:
        """The sum of a counter so far."""
        for name, values, amount in self.recorder.drain():
            if isinstance(amount, float):
                key = (name, tuple(values))
                self.sums[key] = self.sums.get(key, 0.0) + amount
        return self.sums.get((family, labels), 0.0)

    def ingest(self, tokens: Tokens | None = None, **where: Any) -> Ingest:
        return Ingest(self.intake, tokens or Tokens(None), **where)

    def labels(self) -> list[Any]:
        """Every label in the log, in order."""
        return self.log.read(0, max(1, self.log.end())).rows.column("label").to_pylist()


@pytest.fixture
def schema() -> RecordSchema:
    return SCHEMA


@pytest.fixture
def pictures() -> Callable[..., pa.RecordBatch]:
    return make_pictures


@pytest.fixture
def open_way(tmp_path: Path) -> Iterator[Callable[..., Way]]:
    """Opens the way into ``log.sqlite``; closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(
            schema: RecordSchema = SCHEMA,
            quota_bytes: int | None = None,
            late: LateLabels | None = None,
            order: OrderSettings | None = None,
            clock: Callable[[], float] | None = None,
            **limits: Any,
        ) -> Way:
            recorder, room = Recorder(), Room.within(Limits(**limits), Retain().quota_bytes)
            place = tmp_path / "log.sqlite"
            log = Log(place, schema, quota_bytes=quota_bytes, labels=late, order=order, order_room=room, clock=clock)
            intake = Intake(log, Limits(**limits), recorder, Retain())
            stack.callback(log.close)
            stack.callback(intake.close)
            return Way(log, intake, recorder)

        yield make
