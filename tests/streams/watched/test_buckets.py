"""The source over a bucket: real object stores on loopback, one away for a while, and objects that are written anew."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pa_fs
import pytest
from google_store import google_store, google_url
from object_store import BUCKET, CREDENTIALS, ObjectStore

from streamkd.streams.watched.files import FilesListener

from ..conftest import Way
from .conftest import ROWS, files, until, write

Open, Watch = Callable[..., Way], Callable[..., FilesListener]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = ObjectStore(tmp_path / "store")
    yield store
    store.stop()


def test_objects_are_read_once_though_the_store_goes_away(
    store: ObjectStore, open_way: Open, watch: Watch, tmp_path: Path
) -> None:
    """Of every format, in the order in which the store names them, which may begin with a part of them when it is back;
    what it does not answer is waited for, and no copy is left behind. One that is written anew is told.
    """
    way = open_way(ROWS, queue_records=70)
    kinds = ("parquet", "feather", "arrow", "csv", "jsonl", "csv.gz")
    for number, kind in enumerate(kinds):
        store.put(f"in/{number}.{kind}", write(tmp_path / f"{number}.{kind}", range(20 * number, 20 * number + 20)))
    store.put("elsewhere/a.csv", write(tmp_path / "a.csv", range(900, 910)))
    source = watch(way, path=store.url("in"))
    until(lambda: way.log.end() == 60)
    store.stop()
    way.intake.committed(60)
    until(lambda: way.counted("source_errors_total", "main", "unreachable") > 0)
    store.start()
    until(lambda: way.log.end() == 120)
    assert way.labels()[:60] == list(range(60))
    assert sorted(way.labels()) == list(range(120))
    assert way.log.notes().keys() == {f"s3://{BUCKET}/in/{number}.{kind}" for number, kind in enumerate(kinds)}
    files(way, read=6, waiting=0)
    source.drain(10)
    assert not list(tmp_path.glob("fetched-*"))
    store.put("in/0.parquet", tmp_path / "3.csv")
    watch(way, path=store.url("in"))
    files(way, read=5, changed=1)
    time.sleep(0.2)
    assert way.log.end() == 120


def test_objects_of_google_s_store_are_read_once(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """Those that are there and one that comes later, each under the name that the store has for it."""
    way = open_way(ROWS)
    with google_store() as port:
        system, _ = pa_fs.FileSystem.from_uri(google_url(port, ""))

        def put(number: int, kind: str) -> None:
            path = write(tmp_path / f"{number}.{kind}", range(20 * number, 20 * number + 20))
            with system.open_output_stream(f"{BUCKET}/in/{path.name}") as target:
                target.write(path.read_bytes())

        put(0, "parquet")
        put(1, "jsonl")
        source = watch(way, path=google_url(port, "in"))
        until(lambda: way.log.end() == 40)
        put(2, "csv")
        until(lambda: way.log.end() == 60)
        source.drain(10)
    assert way.labels() == list(range(60))
    assert way.log.notes().keys() == {f"gs://{BUCKET}/in/{name}" for name in ("0.parquet", "1.jsonl", "2.csv")}
