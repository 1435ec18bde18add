"""What a child tells of itself reaches the supervisor bounded, or is dropped and counted."""

import threading
from collections.abc import Iterator

import pytest

from streamkd.serve.processes.channel import Channel, pair
from streamkd.serve.processes.reports import BEAT_SECONDS, Reporter
from streamkd.telemetry import Recorder


class Told:
    """A child's reporter, and what arrives of it."""

    def __init__(self) -> None:
        self.ours, theirs = pair()
        self.recorder = Recorder()
        self.now = 0.0
        self.reporter = Reporter(Channel(theirs), self.recorder, lambda: self.now)

    def heard(self) -> list[dict[str, object]]:
        messages = []
        while (message := self.ours.receive(0.05)) is not None:
            messages.append(message)
        return messages


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    yield told
    told.ours.close()
    told.reporter._channel.close()


def test_a_status_with_all_labels_at_their_limits_arrives(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand labels of 256 bytes, for which the channel has no room: told in part, nothing raised."""
    monkeypatch.setattr("streamkd.serve.processes.channel.MESSAGE_BYTES", (1 << 20) + 8_192)
    labels = [f"{i:0256d}" for i in range(10_000)]
    status = {"records_trained": 5, "classes": labels, "accuracy": {"per_task": dict.fromkeys(labels, 0.5)}}
    child = threading.Thread(target=told.reporter.status, args=(status,))
    child.start()
    message = told.ours.receive(30)
    child.join()
    assert message is not None
    assert message["status"]["records_trained"] == 5
    assert message["status"]["left_out"] == {"classes": 9_000, "accuracy.per_task": 9_000}


def test_a_status_that_is_no_json_is_dropped_and_counted(told: Told) -> None:
    """Whatever a plugin put into it: the next status arrives, and the metrics say that one did not."""
    told.reporter.status({"teachers": [{"marginal_gain": object()}]})
    told.reporter.status({"records_trained": 6})
    told.reporter.metrics()
    status, metrics = told.heard()
    assert status["status"]["records_trained"] == 6
    assert metrics["deltas"] == [["telemetry_dropped_total", ["status"], 1.0]]


def test_beats_are_few_and_prompt(told: Told) -> None:
    """The same work beats once in a while, something new at once; what goes with it is asked for only then."""
    asked = []
    for _ in range(100):
        told.reporter.beat("learning", lambda: asked.append(1) or {"ends": {"main/0": len(asked)}})
    told.reporter.beat("checkpoint")
    told.now += BEAT_SECONDS
    told.reporter.beat("checkpoint")
    beats = [(message["doing"], message.get("ends")) for message in told.heard()]
    assert beats == [("learning", {"main/0": 1}), ("checkpoint", {}), ("checkpoint", {})]
