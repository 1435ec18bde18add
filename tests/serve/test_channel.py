"""The channel: framing, time-outs, end of stream, threads, children."""

import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from streamkd.errors import StreamkdError
from streamkd.serve.channel import Channel, pair


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
    """When one end closes, the other gets what was sent, then EOFError, and says closed."""
    a, b = ends
    a.send({"kind": "last"})
    a.close()
    assert b.receive(1) == {"kind": "last"}
    with pytest.raises(EOFError):
        b.receive(1)
    assert b.closed
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


CHILD = """
import sys
from streamkd.serve.channel import Channel
channel = Channel.inherited(int(sys.argv[1]))
channel.send({"echo": channel.receive(10)})
try:
    channel.receive()
except EOFError:
    sys.exit(7)
"""


def test_a_child_speaks_and_sees_its_parent_go() -> None:
    """An inherited descriptor is a channel, and the child gets EOFError when the parent's end is gone."""
    ours, theirs = pair()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    ours.send({"n": 1})
    assert ours.receive(20) == {"echo": {"n": 1}}
    ours.close()
    assert child.wait(20) == 7
