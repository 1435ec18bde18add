"""Trials that cost nothing, for the engine: what one does is said by its learning rate. Workers import this module."""

import ctypes
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import TrialFailed
from streamkd.plugins import Registry
from streamkd.search.course import Job, Reading
from streamkd.search.domains import Parameter, Uniform
from streamkd.search.driver import Search, Watch
from streamkd.search.ledger import Ledger, TrialRecord, exists
from streamkd.search.recording import Recording
from streamkd.search.settings import Settings
from streamkd.search.space import Space

RATE = "optimizer.learning_rate"
SEGFAULT, WAIT, SLEEP, NAN, MEMORY, ERROR, KILL = 0.81, 0.82, 0.83, 0.84, 0.85, 0.86, 0.87
TOTAL = 900
SPACE = Space((Parameter(RATE, Uniform(0.01, 0.9)),))
REGISTRY = Registry.load()


class Toy:
    """Learns a tenth of its stream at a time; its accuracy is its rate, or what its rate says that it does."""

    pace_seconds = 0.0

    def __init__(
        self, config: Config, registry: Registry, recordings: Mapping[int, Recording], objectives: Sequence[str]
    ) -> None:
        self.rate, self.seeds = config.optimizer.learning_rate, list(recordings)
        self.total = max(one.total for one in recordings.values())
        self.records, self.gained = 0, 0.0

    @property
    def seen(self) -> int:
        return self.records * len(self.seeds)

    @property
    def finished(self) -> bool:
        return self.records >= self.total

    def advance(self, records: int) -> Reading:
        while self.records < min(records, self.total):
            self.records += min(10, self.total - self.records)
            self.gained += self.rate * 10
            time.sleep(self.pace_seconds)
            if self.records >= self.total // 3:
                _misbehave(self.rate)
        value = {"accuracy": self.gained / self.records}
        return Reading(
            self.records, value, {"accuracy": [value["accuracy"]] * len(self.seeds)}, self.seeds, value["accuracy"]
        )

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "toy.json").write_text(json.dumps([self.records, self.gained]))

    def restore(self, folder: Path) -> None:
        self.records, self.gained = json.loads((folder / "toy.json").read_text())


class Slow(Toy):
    """The same, a seventh of a second for each milestone."""

    pace_seconds = 0.015


class Shared(Toy):
    """The same; it fails where its records are not in the object store."""

    def __init__(
        self, config: Config, registry: Registry, recordings: Mapping[int, Recording], objectives: Sequence[str]
    ) -> None:
        super().__init__(config, registry, recordings, objectives)
        address = recordings[100].records.column("x").values.buffers()[1].address
        for line in Path("/proc/self/maps").read_text().splitlines():
            begin, end = (int(place, 16) for place in line.split()[0].split("-"))
            if begin <= address < end and "plasma" not in line:
                raise TrialFailed("error", f"records lie in {line}")


class Gathering(Toy):
    """The same; it waits until four have begun, and notes in the folder that ``TOYS`` names when it began and ended."""

    def advance(self, records: int) -> Reading:
        place = Path(os.environ["TOYS"])
        if self.records == 0:
            self.mark = place / f"{os.getpid()}-{time.monotonic_ns()}"
            self.mark.write_text(f"{time.time()}")
            until = time.monotonic() + 60
            while len(list(place.iterdir())) < 4 and time.monotonic() < until:
                time.sleep(0.05)
        reading = super().advance(records)
        if self.finished:
            time.sleep(0.2)
            self.mark.write_text(f"{self.mark.read_text()} {time.time()}")
        return reading


class Looking(Toy):
    """Fails at once, and says which GPUs it sees."""

    def __init__(self, *parts: Any) -> None:
        raise TrialFailed("nan", f"sees {os.environ.get('CUDA_VISIBLE_DEVICES')!r}")


def _misbehave(rate: float) -> None:
    if rate == SEGFAULT:
        ctypes.string_at(0)
    if rate == WAIT:
        time.sleep(1000)
    if rate == SLEEP:
        ctypes.PyDLL(None).sleep(1000)  # and holds the interpreter
    if rate == NAN:
        raise TrialFailed("nan", "the loss is nan")
    if rate == MEMORY:
        bytearray(3 << 30)
    if rate == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    if rate == ERROR:
        raise ValueError("no such thing")


def search(
    place: Path | str,
    rates: Sequence[float] = (),
    make: Any = Toy,
    watches: Sequence[Watch] = (),
    **settings: Any,
) -> Search:
    """A search of trials with these rates, or the one that is there already."""
    given: Any = {"trials": len(rates), "seeds": (100,), "scheduler": "none", "sampler": "random", **settings}
    asked = Settings(**{"reduction": 3, **given})  # read at ninths, at every hundred records
    if not exists(place):
        ledger = Ledger.create(place, {"settings": asked.to_json(), "objectives": {"accuracy": "max"}})
        for number, rate in enumerate(rates):
            ledger.write(TrialRecord(number, {RATE: rate}, "waiting"))
    config = configuration.load(None, (), REGISTRY)
    job = Job(config, SPACE, Ledger.open(place), ("accuracy",), asked.milestones(TOTAL), 1, make)
    return Search(job, REGISTRY, asked, {100: _recording()}, watches)


def _recording() -> Recording:
    pixels = pa.FixedSizeListArray.from_arrays(np.zeros(TOTAL * 100, np.float32), 100)
    rows = pa.record_batch({"x": pixels, "label": np.zeros(TOTAL, np.int64)})
    schema: Any = None
    return Recording(100, schema, rows, (), (TOTAL,), {})
