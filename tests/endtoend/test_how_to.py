"""The commands of docs/how-to/, followed to the letter but for the ports, with one server for the whole file."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from .conftest import ROOT, Serve, Server, commands, curled, streamkd, until

PUSHED, LATE = "docs/how-to/push-records.md", "docs/how-to/late-labels.md"
RECORDS = [{"x": [n % 2, 0, 0, n], "label": n % 2} for n in range(20)]


@pytest.fixture(scope="module")
def server(serve_in: Callable[[Path], Serve], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """One of the first configuration that the page of late labels shows."""
    [first, *_] = re.findall(r"```yaml\n(.*?)```", (ROOT / LATE).read_text("utf-8"), re.S)
    server = serve_in(tmp_path_factory.mktemp("how-to"))(yaml.safe_load(first))
    until(lambda: server.post("/v1/streams/main", content=b"").status_code != 503, 60, "the ingress")
    return server


def pushed(server: Server, folder: Path) -> dict[str, Any]:
    """What the page of pushed records is answered; sent again, nothing is taken again."""
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    [answer] = curled(PUSHED, server, folder)
    return answer


def test_records_are_pushed_by_curl(server: Server, tmp_path: Path) -> None:
    """A file of JSON lines is taken, and counts once though it is sent twice."""
    first, again = (pushed(server, tmp_path) for _ in range(2))
    assert (first["accepted"], first["rejected"], first["offset"], first["duplicate"]) == (20, 0, 20, False)
    assert (again["accepted"], again["offset"], again["duplicate"]) == (20, 20, True)


def test_labels_come_later_by_curl_and_from_a_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prediction is kept under its id, and its label makes a record; of a file's labels one is early, and told."""
    pushed(server, tmp_path)
    until(server.ready, 60, "a version of the records that were pushed")
    asked, told = curled(LATE, server, tmp_path)
    assert (asked["parameters"]["prediction_id"], asked["parameters"]["kept"]) == ("order-17", True)
    assert (told["accepted"], told["rejected"]) == (1, 0)
    until(lambda: server.status()["labels"]["joined"] == 1, 30, "a record of the label")
    pq.write_table(pa.table({"prediction_id": ["order-17", "order-18"], "label": [0, 1]}), tmp_path / "labels.parquet")
    monkeypatch.chdir(tmp_path)
    [push] = commands(LATE, "streamkd")
    done = streamkd(*shlex.split(push.replace("http://127.0.0.1:8470", server.url))[1:])
    assert "2 labels sent, 1 accepted, 1 rejected" in done.stdout, done.stderr
    assert "1 of them are early: " in done.stdout
