"""Frames: any state of a teacher arrives as it was sent, and a time is kept."""

import socket
import threading
import time

import pyarrow as pa
import pytest
import torch

from streamkd.isolation import frames

TREE = {
    "numbers": [1, -2.5, float("nan"), None, True],
    3: (torch.arange(5), "text"),
    "tensors": {
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.0, dtype=torch.bfloat16),
        "bits": torch.tensor([True, False, True]),
        "wide": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).T,
    },
    "table": pa.table({"x": [1, 2], "y": ["a", None]}),
}


def same(one: object, other: object) -> bool:
    match one:
        case torch.Tensor():
            return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        case dict():
            return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
        case list() | tuple():
            return type(one) is type(other) and all(map(same, one, other))
    return one == other or one != one


def test_every_kind_of_tree_arrives() -> None:
    """Tensors of every type and shape, tables, tuples, integer keys and what JSON lacks, over a socket, in pieces."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frame = frames.encode(TREE)

        def drip() -> None:
            for at in range(0, len(frame), 7):
                theirs.sendall(frame[at : at + 7])

        sending = threading.Thread(target=drip)
        sending.start()
        found = frames.receive(ours, time.monotonic() + 10)
        sending.join()
    assert same(TREE, found)
    assert same(TREE, frames.decode(frame))


def test_nothing_is_waited_for_beyond_the_deadline() -> None:
    """Neither for somebody who does not read, nor for one who stops in the middle; and what is too large is refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(TimeoutError):
            frames.send(ours, torch.zeros(10 << 20), time.monotonic() + 0.05)
        theirs.sendall(frames.encode(TREE)[:30])
        with pytest.raises(TimeoutError):
            frames.receive(ours, time.monotonic() + 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(theirs, TREE)
        with pytest.raises(MemoryError, match="at most 100"):
            frames.receive(ours, None, most_bytes=100)
