"""The stream that one seed's trials see: its train records in order, and validation records by task. Plain Arrow.

    config, seed ─► validation (never the report's test records) ─► Recording ─► pickled once, shared ─► Source

A recording is read once and given to every trial; buffers are never copied, neither here nor by the trials.
"""

from dataclasses import dataclass

import pyarrow as pa

from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.records import RecordSchema, Source

VALIDATED = 1_000
"""Most validation records of a seed, over all its tasks: evaluation must stay small beside training."""


@dataclass(frozen=True)
class ValidationTask:
    """Records that nobody trains on; ``begins`` and ``ends`` are offsets of the train records of the same task."""

    name: str
    begins: int
    ends: int
    rows: pa.RecordBatch


@dataclass(frozen=True)
class Recording:
    """One seed's stream. ``marks``: offsets at which every trial is measured, the last one its end."""

    seed: int
    schema: RecordSchema
    records: pa.RecordBatch
    tasks: tuple[ValidationTask, ...]
    marks: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many records there are to train on."""
        return self.records.num_rows

    def source(self) -> Source:
        """The train records as a source; its tests are the validation records."""
        raise NotImplementedError


def record(config: Config, registry: Registry, seed: int) -> Recording:
    """What the trials of a seed train on and are measured by.

    Raises:
        ConfigError: the source is pushed or never ends, or leaves no validation records. SourceError: it cannot be
            read.
    """
    raise NotImplementedError
