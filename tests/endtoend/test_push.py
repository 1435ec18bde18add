"""Records pushed in every way that the server takes them: acknowledged, counted and trained once each."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import Serve, Server, records, streamkd, until

BARE = Path(__file__).with_name("bare_flight.py")


def arrow_stream(rows: pa.RecordBatch) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return sink.getvalue()


def json_lines(rows: pa.RecordBatch) -> bytes:
    return "\n".join(json.dumps(row) for row in rows.to_pylist()).encode()


def command_push(server: Server, file: Path, url: str, producer: str, size: int = 500) -> int:
    """`streamkd push FILE` from another process; how many it says were accepted."""
    done = streamkd("push", file, "--to", url, "--producer", producer, "--batch", size)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split(" accepted")[0].rpartition(" ")[2])


def bare_push(file: Path, url: str, producer: str) -> int:
    """The client of docs/how-to/push-records.md in another process."""
    main = (
        "import sys, pyarrow.parquet as pq; sys.path.insert(0, sys.argv[1]); from bare_flight import put;"
        "print(put(sys.argv[2], pq.read_table(sys.argv[3]), sys.argv[4]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", main, str(BARE.parent), url, str(file), producer],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def post(server: Server, rows: pa.RecordBatch, form: str, producer: str, size: int = 500) -> int:
    """POST batch after batch as Arrow or JSON lines; how many were accepted."""
    body, kind = {
        "arrow": (arrow_stream, "application/vnd.apache.arrow.stream"),
        "json": (json_lines, "application/x-ndjson"),
    }[form]
    accepted = 0
    for sequence, start in enumerate(range(0, rows.num_rows, size)):
        headers = {"Content-Type": kind, "Streamkd-Producer": producer, "Streamkd-Sequence": str(sequence)}
        answer = server.post("/v1/streams/main", content=body(rows.slice(start, size)), headers=headers)
        assert answer.status_code == 200, answer.text
        accepted += answer.json()["accepted"]
    return accepted


def check_all_ways(serve: Serve, folder: Path, each: int, twice: slice, size: int = 500) -> Server:
    """Push ``each`` records in five ways, some of them twice, and compare every number that counts them.

    ``size``: of a batch, but for the bare client's.
    """
    server = serve()
    ways: list[Callable[[], int]] = []
    for index, way in enumerate(("command over Flight", "command over HTTP", "bare", "arrow", "json")):
        rows = records(each, first=index * each)
        file = folder / f"{index}.parquet"
        pq.write_table(pa.Table.from_batches([rows]), file)
        if way.startswith("command"):
            url = server.flight if way.endswith("Flight") else server.url
            ways.append(lambda file=file, url=url, way=way: command_push(server, file, url, way, size))
        elif way == "bare":
            ways.append(lambda file=file: bare_push(file, server.flight, "bare"))
        else:
            ways.append(lambda rows=rows, form=way: post(server, rows, form, form, size))
    assert [way() for way in ways] == [each] * len(ways)
    total, again = each * len(ways), ways[twice]
    server.trained(total, 300)
    for way in again:  # under the same numbers: answered as before, not taken again
        way()
    counted = {
        "source_records_total": total,
        "train_samples_total": total,
        "records_duplicate_total": each * len(again),
    }
    until(lambda: {name: server.metric(name) for name in counted} == counted, 10, f"the numbers {counted}")
    assert server.stop() == 0
    seen = server.inspect()
    assert seen["records_trained"] == total
    assert seen["offsets"] == {"main/0": total}
    assert seen["dead_letters"] == 0
    return server


def test_every_way_of_pushing_counts_each_record_once(serve: Serve, tmp_path: Path) -> None:
    """1,000 records by the command, the bare client, Arrow and JSON over HTTP, some sent twice: each counts once."""
    check_all_ways(serve, tmp_path, 200, slice(0, 5, 2), size=50)


@pytest.mark.soak
def test_thirty_thousand_records_by_each_way(serve: Serve, tmp_path: Path) -> None:
    """30,000 records by each way, sent twice: acknowledged, counted and trained once."""
    check_all_ways(serve, tmp_path, 30_000, slice(None))
