"""A file of the user's own: `streamkd init` looks at it, `streamkd serve` learns what that wrote, `predict` asks."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_breast_cancer

from ..streams.files.kinds import KINDS, Kind, N
from .conftest import Serve, streamkd, until


@pytest.mark.soak  # the first tutorial does the same to the letter
def test_a_stranger_s_file_is_learned(serve: Serve, tmp_path: Path) -> None:
    """569 tumours as thirty columns, string labels: three commands, and most of them are told apart."""
    data = load_breast_cancer(as_frame=True)
    names = [str(data.target_names[label]) for label in data.target]
    table = pa.Table.from_pandas(data.data).append_column("diagnosis", pa.array(names))
    pq.write_table(table, tmp_path / "tumours.parquet")

    written = streamkd("init", tmp_path / "tumours.parquet", "--label", "diagnosis", "--out", tmp_path / "it.yaml")
    assert written.returncode == 0, written.stderr
    assert f"streamkd serve {tmp_path / 'it.yaml'}" in written.stdout

    server = serve(tmp_path / "it.yaml")
    server.trained(456)  # a fifth is held out
    until(lambda: server.ready() and server.status()["server"]["version"] >= 2, 30, "a version of all records")
    assert sorted(server.status()["classes"]) == ["benign", "malignant"]
    asked = streamkd("predict", tmp_path / "tumours.parquet", "--to", server.url, "--out", tmp_path / "said.parquet")
    assert asked.returncode == 0, asked.stderr
    said = pq.read_table(tmp_path / "said.parquet").column("label").to_pylist()
    assert sum(a == b for a, b in zip(said, names, strict=True)) / len(names) > 0.85
    assert server.stop() == 0
    assert server.inspect()["records_trained"] == 456


@pytest.mark.soak
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.refused], ids=lambda kind: kind.title)
def test_every_command_takes_a_file(kind: Kind, serve: Serve, tmp_path: Path) -> None:
    """init, check, run, push to a server that is pushed to, and predict: right the first time."""
    path, written = kind.made(tmp_path), tmp_path / "it.yaml"
    for command in (
        ("init", path, "--label", kind.label, "--out", written),
        ("check", written, "--sample"),
        ("run", written, "--report", tmp_path / "report"),
    ):
        done = streamkd(*command, timeout=300)
        assert done.returncode == 0, done.stderr
    text = written.read_text("utf-8")
    source = text[text.index("  source:\n") : text.index("  records:\n")]
    written.write_text(text.replace(source, "  source: {name: flight}\n"), "utf-8")
    server = serve(written)
    pushed = streamkd("push", path, "--to", server.flight)
    assert f"{N} records sent, {N - kind.lost} accepted, {kind.lost} rejected" in pushed.stdout, pushed.stderr
    until(server.ready, 60, "a version")
    asked = streamkd("predict", path, "--to", server.url, "--out", tmp_path / "said.jsonl")
    assert asked.returncode == 0, asked.stderr
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text("utf-8").splitlines()]
    assert (len(said), [row for row in said if row["error"]]) == (N, [])
