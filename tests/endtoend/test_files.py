"""A server that watches a directory: killed at any moment, and as its page says."""

import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkd.streams.log.log import Log

from .conftest import PUSHED, ROOT, Serve, merged, records, streamkd, until
from .test_kills import by_a_learner, differences, kill, learned, leaves

PAGE = "docs/how-to/watched-files.md"


def watching(folder: Path, **changes: Any) -> dict[str, Any]:
    """A small stream of the files in a folder, with many cuts that only the journal knows."""
    source = {"name": "files", "path": str(folder), "every_seconds": 0.1, "settle_seconds": 0.1}
    config = merged(PUSHED, {"stream": {"source": source, "batch": {"flush_seconds": 0.02}}, "device": "cpu"})
    return merged(config, changes)


def put(folder: Path, number: int, rows: pa.RecordBatch) -> None:
    """One more file, there all at once, Parquet and JSON lines in turn."""
    path = folder / f".{number:03}.{'jsonl' if number % 2 else 'parquet'}"
    if number % 2:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    else:
        pq.write_table(pa.Table.from_batches([rows]), path, row_group_size=50)
    path.rename(folder / path.name[1:])


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_kills_lose_and_double_no_row(serve: Serve, tmp_path: Path) -> None:
    """Ingress, learner and group are killed while files come: each row once, in order, and the bits of a learner that
    was left alone with the log.
    """
    count, files = 1_500, 10
    (folder := tmp_path / "in").mkdir()
    (folder / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    config = watching(folder, stream={"limits": {"batch_rows": 20, "queue_records": 200}})
    server, rows = serve(config), records(count)

    def produce() -> None:
        for number in range(files):
            put(folder, number, rows.slice(number * (count // files), count // files))
            time.sleep(1.0)

    producing = threading.Thread(target=produce)
    producing.start()
    for what in ("ingress", "learner", "ingress", "group", "ingress"):
        server.trained((server.status().get("records_trained") or 0) + 100)
        kill(server, what)
    producing.join()
    server.trained(count, 120)
    told = until(lambda: (f := server.status().get("files")) and f["read"] == files and f, 20, "all files read")
    assert (told["waiting"], told["refused"]) == (0, 1)
    assert server.stop() == 0

    seen = server.inspect()
    assert (seen["records_trained"], seen["offsets"]) == (count, {"main/0": count})
    log = Log(server.state / "log.sqlite", read_only=True)
    found = log.read(0, count).rows.column("x").to_pylist()
    log.close()
    assert found == rows.column("x").to_pylist()
    (tmp_path / "alone").mkdir()
    for file in server.state.glob("log.sqlite*"):
        shutil.copy(file, tmp_path / "alone")
    assert differences(learned(server.state), leaves(by_a_learner(tmp_path / "alone", count, config))) == []


@pytest.mark.soak
@pytest.mark.slow
def test_the_page_s_lines_learn_a_directory(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`init` of one file, then its source replaced by the folder, as the page says: what comes is learned, what is
    broken is told.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orders").mkdir()
    numbers = np.arange(300)
    table = pa.table({"amount": numbers % 3 + 0.1, "country": [f"c{n % 3}" for n in numbers], "returned": numbers % 2})
    pq.write_table(table, "orders/2026-01-01.parquet")
    (tmp_path / "orders" / "2026-01-02.parquet").write_bytes(b"PAR1 and then nothing")
    text = (ROOT / PAGE).read_text("utf-8")
    for command in re.findall(r"^    streamkd ((?:init|check) .*)$", text, re.M):
        assert streamkd(*command.split()).returncode == 0
    [setting] = re.findall(r'--set "(stream\.source=.*)"', text)
    server = serve(tmp_path / "orders.yaml", "--set", setting.replace("path: orders", f"path: {tmp_path / 'orders'}"))
    server.trained(300)
    files = server.status()["files"]
    assert (files["read"], files["refused"]) == (1, 1)
    assert "2026-01-02.parquet is refused" in server.err
