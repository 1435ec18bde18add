"""The channel: framing, time-outs, end of stream, threads, children."""

import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from streamkd.errors import StreamkdError
from streamkd.serve.processes.channel import Channel, pair
from streamkd.serve.processes.messages import Status


@pytest.fixture
def ends() -> tuple[Channel, Channel]:
    ours, theirs = pair()
    return ours, Channel(theirs)


def test_messages_arrive_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    """What one end sends the other receives, in order, however it was cut on its way."""
    a, b = ends
    sent = [{"kind": "n", "n": i, "text": "ä\n" * (i * 400)} for i in range(100)]
    thread = threading.Thread(target=lambda: [a.send(m) for m in sent])
    thread.start()
    assert [b.receive(5) for _ in sent] == sent
    thread.join()
    a.close(), b.close()


def test_nothing_within_the_timeout_is_none(ends: tuple[Channel, Channel]) -> None:
    """A receive that gets nothing returns None after its time-out."""
    a, b = ends
    begin = time.monotonic()
    assert b.receive(0.05) is None
    assert 0.04 < time.monotonic() - begin < 2
    a.close(), b.close()


def test_end_of_stream_comes_after_the_last_message(ends: tuple[Channel, Channel]) -> None:
    """When one end closes, the other gets what was sent, then EOFError."""
    a, b = ends
    a.send({"kind": "last"})
    a.close()
    assert b.receive(1) == {"kind": "last"}
    with pytest.raises(EOFError):
        b.receive(1)
    with pytest.raises(EOFError):
        b.send({"kind": "more"})
    b.close()


def test_many_threads_send_without_mixing_lines(ends: tuple[Channel, Channel]) -> None:
    """Messages of several threads never interleave."""
    a, b = ends
    threads = [
        threading.Thread(target=lambda k=k: [a.send({"k": k, "x": "y" * 5000}) for _ in range(50)]) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    got = [b.receive(5) for _ in range(200)]
    for thread in threads:
        thread.join()
    assert sorted(m["k"] for m in got if m) == sorted([0, 1, 2, 3] * 50)
    a.close(), b.close()


def test_numpy_numbers_travel(ends: tuple[Channel, Channel]) -> None:
    """numpy's numbers become JSON numbers."""
    a, b = ends
    a.send({"i": np.int64(3), "f": np.float32(0.5)})
    assert b.receive(1) == {"i": 3, "f": 0.5}
    a.close(), b.close()


def test_what_is_no_message_is_said() -> None:
    """A line that is no JSON object is an error that shows it."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"[1]\nnonsense\n")
    channel = Channel(ours)
    for _ in range(2):
        with pytest.raises(StreamkdError, match="needed a"):
            channel.receive(1)
    channel.close(), theirs.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit of 1,000 bytes for a message."""
    monkeypatch.setattr("streamkd.serve.processes.channel.MESSAGE_BYTES", 1_000)
    return 1_000


@pytest.mark.parametrize("length", [1_001, 70_000, 300_000])
def test_a_message_without_end_is_left_out_once(short: int, length: int) -> None:
    """A line over the limit, in one piece or many, is one error; the message behind it arrives."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    sender = threading.Thread(target=theirs.sendall, args=(b"x" * length + b'\n{"kind": "next"}\n',))
    sender.start()
    with pytest.raises(StreamkdError, match="more than 1000 bytes"):
        channel.receive(5)
    assert channel.receive(5) == {"kind": "next"}
    sender.join()
    channel.close(), theirs.close()


@pytest.mark.parametrize("bad", ["x" * 2_000, object(), {(1, 2): 3}, [[]]])
def test_what_cannot_be_told_is_dropped(
    ends: tuple[Channel, Channel], short: int, bad: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that is too long, or no JSON, is not sent and raises nothing; it is logged once, and others arrive."""
    a, b = ends
    if bad == [[]]:
        bad.append(bad)  # type: ignore[attr-defined]
    assert [a.try_to_say(Status({"text": bad})) for _ in range(3)] == [False] * 3
    assert caplog.text.count("the status is not told") == 1
    assert a.try_to_say(Status({"text": "short"}))
    assert b.receive(5) == {"kind": "status", "status": {"text": "short"}}
    a.close(), b.close()


def test_a_side_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor's end waits for its reader only so long; then the channel is broken, and both ends say so."""
    monkeypatch.setattr("streamkd.serve.processes.channel.SEND_SECONDS", 0.05)
    ours, theirs = pair()
    with pytest.raises(EOFError, match="does not read"):
        ours.send({"text": "y" * 10_000_000})
    reader = Channel(theirs)
    with pytest.raises(EOFError):
        reader.receive(5)
    ours.close(), reader.close()


CHILD = """
import sys
from streamkd.serve.processes.channel import Channel
channel = Channel.inherited()
channel.send({"echo": channel.receive(10)})
try:
    channel.receive()
except EOFError:
    sys.exit(7)
"""


def test_a_child_speaks_and_sees_its_parent_go() -> None:
    """An inherited descriptor is a channel, and the child gets EOFError when the parent's end is gone."""
    ours, theirs = pair()
    child = subprocess.Popen([sys.executable, "-c", CHILD, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    ours.send({"n": 1})
    assert ours.receive(20) == {"echo": {"n": 1}}
    ours.close()
    assert child.wait(20) == 7
