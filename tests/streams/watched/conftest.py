"""Sources over watched files: files of every format with the same rows, and a source over a log of the test's own."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as pa_feather
import pyarrow.parquet as pq
import pytest

from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.watched import watcher
from streamkd.streams.watched.files import FilesListener, FilesOptions

from ..conftest import Way

ROWS = RecordSchema(inputs=(InputColumn(name="x"), InputColumn(name="shop", kind="category", shape=(8,))))


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for something true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def table(labels: Sequence[int]) -> pa.Table:
    """A row for each label, with numbers and words beside it."""
    return pa.table({"x": [n / 4 for n in labels], "shop": [f"s{n % 3}" for n in labels], "label": list(labels)})


def as_json(labels: Sequence[int]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in table(labels).to_pylist())


def write(path: Path, labels: Sequence[int]) -> Path:
    """A file in the format that its suffix says, there all at once."""
    rows, path_while = table(labels), path.with_name(f".{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(rows, path_while, row_group_size=max(1, len(labels) // 3))
    elif path.suffix == ".feather":
        pa_feather.write_feather(rows, path_while, chunksize=max(1, len(labels) // 3))
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path_while, rows.schema) as out:
            out.write_table(rows, max_chunksize=max(1, len(labels) // 3))
    elif path.suffix == ".csv":
        pa_csv.write_csv(rows, path_while)
    elif path.suffixes[-2:] == [".csv", ".gz"]:
        with pa.CompressedOutputStream(str(path_while), "gzip") as out:
            pa_csv.write_csv(rows, out)
    else:
        path_while.write_bytes(as_json(labels))
    return path_while.rename(path)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FilesListener]]:
    """Starts a source over ``in/`` on the way into a log, in a hurry; each ends with its test, or ``drain``."""
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(watcher, "BACK_OFF_SECONDS", 0.05)
    (tmp_path / "in").mkdir()
    with contextlib.ExitStack() as stack:

        def begin(way: Way, **options: Any) -> FilesListener:
            quick = {"path": str(tmp_path / "in"), "every_seconds": 0.03, "settle_seconds": 0.05}
            listener = FilesListener(FilesOptions(**{**quick, **options}), way.ingest())
            listener.start()
            stack.callback(listener.drain, 10)
            return listener

        yield begin


def files(way: Way, **states: int) -> dict[str, Any]:
    """What the source says of its files, once so many are in these states."""

    def told() -> dict[str, Any]:
        found = way.intake.told.get("files", {})
        return found if found and all(found[state] == count for state, count in states.items()) else {}

    return dict(until(told))
