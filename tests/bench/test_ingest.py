"""The ingest benchmark reads what it has written, on all sides, and says the ratios."""

import pytest
from kafka_brokers import Cluster

from streamkd.bench import ingest


def test_a_small_topic_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case has records on all sides, and a ratio to the others; Flight is measured with and without brokers."""
    monkeypatch.setattr(ingest, "TURNS", 1)
    cluster = Cluster()
    for case in ingest.CASES:
        cluster.create(f"streamkd-bench-{case}")
    flight = {f"sync.flight.{way}.{width}" for way in ("each", "streamed") for width in (784, 8)}
    result = ingest.measure(cluster.servers, 1)
    cluster.close()
    topics = {f"{side}.{case}" for case in ingest.CASES for side in ("deserialise", "sync")}
    assert set(result["figures"]) == topics | flight
    assert all(value > 0 for value in result["figures"].values())
    assert set(ingest.measure(None, 1)["figures"]) == flight
