"""Shares of the queue: whoever is alone may fill it, whoever is sent away finds room next."""

from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkd.errors import Overloaded
from streamkd.streams.ingest.admission import admit_batch
from streamkd.streams.ingest.shares import WANTING_SECONDS, Shares

from ..conftest import Way

Open, Pictures = Callable[..., Way], Callable[..., pa.RecordBatch]


def put(way: Way, batch: pa.RecordBatch, sender: str) -> None:
    way.intake.take(admit_batch(batch, way.intake.schema, way.intake.limits, sender), None, None, sender).result(10)


def test_who_fills_the_queue_waits_once_others_want_room(open_way: Open, pictures: Pictures) -> None:
    """Alone it may fill all of it; after that room is for the one that was sent away, up to the same share."""
    way = open_way(queue_records=40)
    for _ in range(4):
        put(way, pictures(10), "greedy")
    with pytest.raises(Overloaded, match="40 records wait"):
        put(way, pictures(10), "other")
    way.intake.committed(10)
    with pytest.raises(Overloaded, match="of this sender more than its share waits"):
        put(way, pictures(10), "greedy")
    put(way, pictures(10), "other")
    way.intake.committed(30)
    put(way, pictures(10), "other")
    put(way, pictures(10), "greedy")


def test_a_share_is_for_those_that_want_some() -> None:
    """One of three wants none any more after a while; who has nothing there may bring anything."""
    now = [0.0]
    shares = Shares(30, lambda: now[0])
    shares.take("a", 14)
    assert not shares.is_beyond("a", 99)
    shares.refuse("b")
    now[0] = 1.0
    shares.refuse("c")
    assert shares.is_beyond("a", 1)
    assert not shares.is_beyond("b", 99)
    now[0] = WANTING_SECONDS
    assert not shares.is_beyond("a", 1)
    assert shares.is_beyond("a", 2)
    shares.take("c", 1)
    assert not shares.is_beyond("a", 99)


def test_a_part_is_as_large_as_its_weight() -> None:
    """Of 40 records one of weight 3 has 30 beside one other and 24 beside two; a small weight leaves one batch."""
    shares = Shares(40, lambda: 0.0, {"a": 3.0, "c": 1e-9})
    for name in "abc":
        shares.take(name, 1)
    shares.refuse("b")
    assert not shares.is_beyond("a", 29)
    assert shares.is_beyond("a", 30)
    shares.refuse("d")
    assert not shares.is_beyond("a", 23)
    assert shares.is_beyond("a", 24)
    assert shares.is_beyond("c", 1)
    shares.learn(0)
    shares.end("c", 1, None)
    assert not shares.is_beyond("c", 40)


def test_the_limits_say_whose_part_is_larger(open_way: Open, pictures: Pictures) -> None:
    """One that is served first goes on where another, that has as much, waits."""
    way = open_way(queue_records=40, shares={"first": 3})
    for sender in ("first", "second", "first", "second"):
        put(way, pictures(10), sender)
    for sender in ("first", "second"):
        with pytest.raises(Overloaded, match="40 records wait"):
            put(way, pictures(10), sender)
    way.intake.committed(10)
    with pytest.raises(Overloaded, match="of this sender more than its share waits"):
        put(way, pictures(10), "second")
    put(way, pictures(10), "first")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.booleans()), max_size=40))
def test_what_is_owned_is_what_waits(steps: list[tuple[str, int, bool]]) -> None:
    """Written, not written, learned in parts: nothing of a sender is left when all is learned."""
    shares, end = Shares(100), 0
    for name, records, written in steps:
        shares.take(name, records)
        end += records if written else 0
        shares.end(name, records, end if written else None)
        shares.learn(end // 2)
    shares.learn(end)
    for name in "abc":
        shares.refuse("z")
        assert not shares.is_beyond(name, 10**6)
