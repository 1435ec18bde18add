"""Skips: batches end before one, and go on behind it."""

from contextlib import closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from streamkd.streams.batcher import Batcher
from streamkd.streams.log.log import Log, LogSource
from streamkd.streams.skips import Skip, Skips

from .conftest import SCHEMA, make_pictures
from .test_batcher import Numbers


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4), st.integers(1, 7))
def test_every_other_record_is_given_once_in_order(stretches: list[tuple[int, int]], size: int) -> None:
    """Of forty, whatever is skipped: overlapping, adjoining, empty, of another partition too."""
    skips = Skips([Skip("other", 0, 40), *(Skip("n/0", *stretch) for stretch in stretches)])
    cutter, at, given = Batcher(Numbers(40, finite=True), size, 1.0, skips=skips), 0, []
    while (chunk := cutter.next({"n/0": (at := skips.past("n/0", at))})) is not None:
        given += chunk.rows.column(0).to_pylist()
        assert chunk.rows.num_rows <= size
        at = chunk.next_offset
    assert given == [n for n in range(40) if not any(start <= n < stop for start, stop in stretches)]


def test_a_journaled_cut_over_a_skip_ends_before_it(tmp_path: Path) -> None:
    """As before the rollback one batch went over both."""
    with closing(Log(tmp_path / "log.sqlite", SCHEMA)) as log:
        log.append(make_pictures(20))
        log.put_cut(0, 9)
        for stretch, stop in (((6, 8), 6), ((9, 12), 9), ((10, 12), 9)):
            cutter = Batcher(LogSource(log), 12, 1.0, log, skips=Skips([Skip(log.partition, *stretch)]))
            chunk = cutter.next({log.partition: 0})
            assert chunk is not None
            assert chunk.next_offset == stop
