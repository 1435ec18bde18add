"""The ingest benchmark reads what it has written, on all sides, and says the ratios."""

import pytest
from kafka_brokers import Cluster

from streamkd.bench import ingest


def test_a_small_topic_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case has records on all sides, and a ratio to both others."""
    monkeypatch.setattr(ingest, "TURNS", 1)
    cluster = Cluster()
    for case in ingest.CASES:
        cluster.create(f"streamkd-bench-{case}")
    result = ingest.measure(cluster.servers, 1)
    cluster.close()
    assert [row["case"] for row in result["rows"]] == list(ingest.CASES)
    assert set(result["figures"]) == {f"{side}.{case}" for case in ingest.CASES for side in ("deserialise", "sync")}
    assert all(value > 0 for value in result["figures"].values())
