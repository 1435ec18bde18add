"""The commands of docs/how-to/, followed to the letter but for the ports."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from .conftest import ROOT, Serve, commands, curled, streamkd, until


def configuration(page: str) -> dict[str, object]:
    """The first one that a page shows."""
    return dict(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)[0]))


def test_records_are_pushed_by_curl(serve: Serve, tmp_path: Path) -> None:
    """docs/how-to/push-records.md: a file of JSON lines is taken, and counts once though it is sent twice."""
    page = "docs/how-to/push-records.md"
    server = serve(configuration(page))
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28)).tolist()
    lines = [json.dumps({"image": image, "label": 3}) for image in images]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    [first], [again] = (curled(page, server, tmp_path) for _ in range(2))
    assert (first["accepted"], first["rejected"], first["offset"], first["duplicate"]) == (20, 0, 20, False)
    assert (again["accepted"], again["offset"], again["duplicate"]) == (20, 20, True)


def test_labels_come_later_by_curl_and_from_a_file(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/how-to/late-labels.md: the prediction is kept under its id, its label makes a record; others are pushed."""
    page = "docs/how-to/late-labels.md"
    server = serve(configuration(page))
    rows = [{"x": [n % 2, 0, 0, n], "label": n % 2} for n in range(20)]
    sent = {"Content-Type": "application/x-ndjson"}
    body = "\n".join(map(json.dumps, rows))
    until(lambda: server.post("/v1/streams/main", content=body, headers=sent).status_code == 200, 60, "the ingress")
    until(server.ready, 60, "a version")
    asked, told = curled(page, server, tmp_path)
    assert (asked["parameters"]["prediction_id"], asked["parameters"]["kept"]) == ("order-17", True)
    assert (told["accepted"], told["waiting"] - told.get("early", 0)) == (
        1,
        0,
    )  # early, where it came before the next write
    [labels] = commands(page, "streamkd")
    pq.write_table(pa.table({"prediction_id": ["order-17", "order-18"], "label": [0, 1]}), tmp_path / "labels.parquet")
    monkeypatch.chdir(tmp_path)
    until(lambda: server.status()["labels"]["joined"] == 1, 30, "a record of the first label")
    done = streamkd(*shlex.split(labels.replace("http://127.0.0.1:8470", server.url))[1:])
    assert "2 labels sent, 1 accepted, 1 rejected" in done.stdout, done.stderr
    assert "1 of them are early: " in done.stdout
