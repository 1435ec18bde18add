"""A server that reads Kafka, on loopback brokers: killed at any moment, over a full queue, and as its pages say."""

import contextlib
import json
import re
import shlex
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka_brokers import Cluster, OnDisk, brokers

from streamkd.streams.log.log import Log

from .conftest import PUSHED, ROOT, Serve, commands, merged, records, streamkd, until
from .test_kills import by_a_learner, differences, kill, learned, leaves

PAGE, ADDRESS = "docs/how-to/kafka.md", "127.0.0.1:9092"
PARTITIONS = 3


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "broker" if getattr(request, "param", "") == "on disk" else None
    with contextlib.closing(brokers(folder)) as found:
        yield found  # tests that are not marked ``kafka`` are run on a ``Cluster`` alone


def reading(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    """A small stream of the topic ``main``, with many cuts that only the journal knows."""
    source = {"name": "kafka", "servers": cluster.servers, "group": "g", "topics": list(cluster.main)}
    stream = {"source": source, "batch": {"flush_seconds": 0.02}}
    return merged(merged(PUSHED, {"stream": stream, "device": "cpu"}), changes)


def as_json(rows: pa.RecordBatch) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows.to_pylist()]


@pytest.mark.kafka
@pytest.mark.soak
@pytest.mark.parametrize("cluster", ["in memory", "on disk"], indirect=True)
def test_kills_lose_and_double_no_message(cluster: Cluster, serve: Serve, tmp_path: Path) -> None:
    """Ingress, learner and group are killed while a topic grows, and its broker ends and comes back: each message once,
    in its partition's order, and the bits of a learner that was left alone with the log.
    """
    count = 1_500
    messages = as_json(records(count))
    cluster.create("main", PARTITIONS)
    config = reading(cluster)
    server = serve(config)

    def produce() -> None:
        for first in range(0, count, 30):
            cluster.produce("main", messages[first : first + 30])
            if isinstance(cluster, OnDisk) and not first % 300:
                cluster.stop()
                time.sleep(0.3)
                cluster.start()
            time.sleep(0.1)

    producing = threading.Thread(target=produce)
    producing.start()
    for what in ("ingress", "learner", "ingress", "group", "ingress"):
        server.trained((server.status().get("records_trained") or 0) + 30)
        kill(server, what)
    producing.join()
    server.trained(count, 120)
    assert server.stop() == 0

    seen = server.inspect()
    assert (seen["records_trained"], seen["offsets"]) == (count, {"main/0": count})
    log = Log(server.state / "log.sqlite", read_only=True)
    found = [tuple(x) for x in log.read(0, count).rows.column("x").to_pylist()]
    assert log.positions() == {f"{cluster.named('main')}/{number}": count // PARTITIONS for number in range(PARTITIONS)}
    log.close()
    sent = [tuple(json.loads(message)["x"]) for message in messages]
    places = [sent.index(x) for x in found]
    assert sorted(places) == list(range(count))
    for number in range(PARTITIONS):
        mine = [place for place in places if place % PARTITIONS == number]
        assert mine == sorted(mine)

    (tmp_path / "alone").mkdir()
    for file in server.state.glob("log.sqlite*"):
        shutil.copy(file, tmp_path / "alone")
    assert differences(learned(server.state), leaves(by_a_learner(tmp_path / "alone", count, config))) == []


def here(command: str, cluster: Cluster) -> list[str]:
    """The words after ``streamkd``, with the brokers' real address."""
    return shlex.split(command.replace(ADDRESS, cluster.servers))[1:]


def test_the_readme_s_lines_learn_a_topic(
    cluster: Cluster, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init` of a file, then the two lines, to the letter but for the brokers' port."""
    cluster.create("flowers", PARTITIONS)
    monkeypatch.chdir(tmp_path)
    numbers = np.arange(300)
    table = pa.table({"petal": numbers % 3 + 0.1, "colour": [f"c{n % 3}" for n in numbers], "species": numbers % 3})
    pq.write_table(table, "my.parquet")
    assert streamkd("init", "my.parquet", "--label", "species").returncode == 0
    [push] = [line for line in commands("README.md", "streamkd push") if ADDRESS in line]
    [serving] = [line for line in commands("README.md", "streamkd serve") if ADDRESS in line]
    done = streamkd(*here(push.partition("#")[0], cluster))
    assert "300 records sent, 300 accepted" in done.stdout, done.stderr
    words = here(serving, cluster)
    assert words[:4] == ["serve", "my.yaml", "--state", "live"]
    server = serve(tmp_path / "my.yaml", *words[4:])
    server.trained(300)
    until(server.ready, 60, "a version")
    assert sorted(server.status()["classes"]) == [0, 1, 2]


@pytest.mark.soak
def test_the_page_s_lines_learn_a_topic(
    cluster: Cluster, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first configuration, filled by its own command: records are learned, and poison is on the page."""
    cluster.create("orders", PARTITIONS)
    monkeypatch.chdir(tmp_path)
    [config, *_] = re.findall(r"```yaml\n(.*?)```", (ROOT / PAGE).read_text("utf-8"), re.S)
    (tmp_path / "orders.yaml").write_text(config.replace(ADDRESS, cluster.servers))
    numbers = np.arange(200)
    table = {"amount": numbers * 1.0, "country": [f"c{n % 3}" for n in numbers], "returned": numbers % 2}
    pq.write_table(pa.table(table), "orders.parquet")
    server = serve(tmp_path / "orders.yaml")
    [push] = commands(PAGE, "streamkd push")
    assert "200 records sent, 200 accepted" in streamkd(*here(push, cluster)).stdout
    cluster.produce("orders", [b"poison"])
    server.trained(200)
    until(lambda: server.status()["server"]["dead_letters"] == 1, 20, "a dead letter")
    assert f"kafka://{cluster.servers}/orders" in server.out


@pytest.mark.kafka
@pytest.mark.soak
def test_a_source_that_stops_says_why_and_the_server_goes_on(cluster: Cluster, serve: Serve) -> None:
    """Predictions are answered, records are taken over HTTP, and readiness is withdrawn with the reason."""
    cluster.create("main", PARTITIONS)
    server = serve(reading(cluster, stream={"limits": {"bad_in_a_row": 10}}))
    cluster.produce("main", as_json(records(60)))
    server.trained(60)
    until(server.ready, 60, "a version")
    cluster.produce("main", [b"poison"] * 40, lambda _: 0)
    until(lambda: "refused rows in a row" in server.status()["server"]["reason"], 30, "the reason")
    assert "the source kafka has stopped" in server.err
    kind = {"Content-Type": "application/x-ndjson"}
    assert server.post("/v1/streams/main", content=as_json(records(1))[0], headers=kind).json()["accepted"] == 1
    server.trained(61)
    assert server.stop() == 0
