"""Dead letters of a real server: what was refused is on the page, and comes back when the cause is mended."""

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq

from .conftest import PUSHED, Serve, Server, merged, pa, records, streamkd, until


def dlq(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    done = streamkd("dlq", *arguments, "--state", server.state)
    assert done.returncode == 0, done.stderr
    return done


def test_what_was_refused_is_learned_once_the_cause_is_mended(serve: Serve, tmp_path: Path) -> None:
    """Labels beyond the limit, listed and counted by reason; with room for them they are sent again, and once alone."""
    server = serve(merged(PUSHED, {"stream": {"limits": {"labels": 2}}}))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_batches([records(600)]), path)  # the last hundred have two labels more
    streamkd("push", path, "--to", server.flight)
    until(lambda: server.status()["server"]["refused"] == {"too_many_labels": 100}, 60, "dead letters by reason")
    until(lambda: "100 too_many_labels" in dlq(server, "list").stdout, 30, "a checkpoint with the letters")
    shown = [json.loads(line) for line in dlq(server, "show", "--reason", "too_many_labels").stdout.splitlines()]
    assert sorted({line["label"] for line in shown}) == sorted({*records(600)["label"].to_pylist()[500:]})
    assert server.stop() == 0
    again = serve(PUSHED, state=server.state)
    done = dlq(server, "replay", "--to", again.flight)
    assert "100 records sent, 100 accepted, 0 rejected again" in done.stdout, done.stderr
    again.trained(600)
    assert "no dead letters" in dlq(server, "list").stdout
    assert len(again.status()["classes"]) == 4


def test_what_a_server_refuses_by_its_columns_keeps_back_no_other(serve: Serve) -> None:
    """Of two that were refused one has no label still: it is kept, named with the reason; the other is taken."""
    server = serve(PUSHED)
    good = {"x": [0.5] * 8, "label": 1, "task": "t0"}
    lines = [json.dumps(each) for each in ({"x": "no", "label": 1, "task": "t0"}, good | {"x": [0.5] * 7})]
    kind = {"content-type": "application/x-ndjson"}
    until(lambda: server.post("/v1/streams/main", content=b"").status_code != 503, 60, "the ingress")
    assert server.post("/v1/streams/main", content="\n".join(lines), headers=kind).json()["rejected"] == 2
    done = dlq(server, "replay", "--to", server.flight)
    assert "1 are kept, log-1 among them" in done.stderr
    assert "1 records sent, 0 accepted, 1 rejected again" in done.stdout
    assert {row["name"] for row in json.loads(dlq(server, "list", "--json").stdout)} == {"log-1", "log-3"}
