"""The streams of ``streamkd bench drift``: tables whose world changes, as the configurations by which we learn them.

Four are files, which lie in a folder that the user names; the others are drawn (``streams.replay.generators``). No
learner is told where a concept begins: that is only for the figures.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamkd.bench.streams import Tree, config_of, merged
from streamkd.config import Config
from streamkd.errors import SourceError
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema, Source
from streamkd.streams.encoding import codec
from streamkd.streams.replay import datasets, generators
from streamkd.wiring import open_source, schema_of

FILES = ("electricity", "weather", "sea", "transient-chessboard")
NAMES = (*FILES, *generators.NAMES)
NOT_INPUTS = ("label", "concept")
HIDDEN = (100, 100)


@dataclass(frozen=True)
class Drifting:
    """x [n, inputs] float32, y [n] classes by arrival; concept [n], ``None`` where nobody knows."""

    x: np.ndarray
    y: np.ndarray
    concept: np.ndarray | None


class Delayed:
    """A source whose labels come when ``delay`` more records have come (``streamkd.records.Late``)."""

    def __init__(self, source: Source, delay: int) -> None:
        self._source, self._delay = source, delay
        self.partitions, self.finite = source.partitions, source.finite
        self.read, self.end, self.tests, self.close = source.read, source.end, source.tests, source.close

    def asked(self, partition: str, start: int, offset: int) -> tuple[pa.RecordBatch, np.ndarray]:
        """Those that came before the label at ``offset``: so many records more."""
        chunk = self._source.read(partition, start, max(0, offset + 1 + self._delay - start))
        return chunk.rows, np.arange(chunk.offset, chunk.next_offset)


def tree(name: str, data: Path | None, limit: int | None = None) -> Tree:
    """Our learner's configuration with its defaults and 500 records on a stream, the first ``limit`` records of it.

    Raises:
        SourceError: the stream's file is not in ``data``.
    """
    source: Tree
    if name in generators.NAMES:
        schema, source = datasets.describe(name), {"dataset": name}
    else:
        path = _file(name, data)
        named = [column for column in pq.read_schema(path).names if column not in NOT_INPUTS]
        schema = RecordSchema(inputs=tuple(InputColumn(name=column, fit=datasets.FITTED) for column in named))
        source = {"path": str(path), "test_ratio": 0.0}
    return {
        "name": name,
        "device": "cpu",
        "stream": {
            "source": {"name": "replay", "order": "given", "limit": limit, **source},
            "records": schema.model_copy(update={"task": None}).model_dump(mode="json", exclude_defaults=True),
            "batch": {"size": 10},
        },
        "student": {"name": "mlp", "hidden": list(HIDDEN)},
        "memory": {"size": 500},
    }


def available(data: Path | None) -> tuple[str, ...]:
    """The streams that can be had here."""
    return tuple(name for name in NAMES if name in generators.NAMES or _path(name, data).exists())


def drifting(name: str, config: Config, registry: Registry) -> Drifting:
    """The records of a configuration's stream, as every learner gets them."""
    schema = schema_of(config, registry)
    source, _ = open_source(config, registry, schema)
    partition = source.partitions[0]
    records, _ = codec.encode(source.read(partition, 0, source.end(partition) or 0).rows, schema, 0)
    source.close()
    column = {label: number for number, label in enumerate(dict.fromkeys(records.labels))}
    y = np.array([column[label] for label in records.labels])
    concept = _concepts(name, config)
    return Drifting(np.array(records.inputs, np.float32), y, None if concept is None else concept[: len(y)])


def _concepts(name: str, config: Config) -> np.ndarray | None:
    """Of every record, where they are known and more than one."""
    if name in generators.NAMES:
        found = generators.generate(name, config.seed).concept
    else:
        path = config.stream.source.values["path"]
        if "concept" not in pq.read_schema(path).names:
            return None
        found = pq.read_table(path, columns=["concept"])["concept"].to_numpy()
    return found if len(np.unique(found)) > 1 else None


def _path(name: str, data: Path | None) -> Path:
    return (data or Path("data")) / f"{name}.parquet"


def _file(name: str, data: Path | None) -> Path:
    path = _path(name, data)
    if not path.exists():
        raise SourceError(f"{path} is not there", where=name, fix="name its folder with --data")
    return path.resolve()


def checked(
    name: str, data: Path | None, limit: int | None, registry: Registry, seed: int, changes: Tree | None = None
) -> Config:
    """The configuration of a stream under a seed, with ``changes`` to the defaults."""
    return config_of(merged(tree(name, data, limit), changes or {}), registry, seed)
