"""Older checkpoints: sparser with age, within bytes, as far as the stream can be read again."""

from contextlib import closing
from pathlib import Path

import torch

from streamkd.state import history
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory


def _save(store: CheckpointStore, records: int, begin: int = 0) -> None:
    tree = {"w": torch.full((250,), float(records))}
    more = {"config": {}, "environment": {}, "begins": {"main/0": begin}}
    store.save(tree, offsets={"main/0": records}, records=records, **more)  # type: ignore[arg-type]


def _offsets(store: CheckpointStore) -> list[int]:
    return [info.offsets["main/0"] for info in store.list()]


def test_whoever_notices_late_goes_back_at_most_twice_as_far() -> None:
    """After any number of checkpoints, for any age up to the oldest; two are kept of each doubling."""
    kept: list[int] = []
    for newest in range(1, 2_000):
        kept = history.sparse({serial: serial for serial in [*kept, newest]})
        ages = [newest - serial for serial in kept]
        assert ages == sorted(ages)
        assert len(kept) <= 2 * newest.bit_length() + 1
        for needed in range(1, max(ages) + 1):
            assert next(age for age in ages if age >= needed) <= 2 * needed


def test_they_are_kept_beside_the_newest(tmp_path: Path) -> None:
    """Two of twenty for safety, and sparser ones before them; without bytes for it no history."""
    for place, more, kept in (("with", 1 << 20, [8, 12, 14, 16, 17, 18, 19, 20]), ("without", 0, [19, 20])):
        directory = StateDirectory(tmp_path / place)
        with directory.lock(), closing(CheckpointStore(directory, 2, history_bytes=more)) as store:
            for records in range(1, 21):
                _save(store, records)
            assert _offsets(store) == kept
            assert sorted(int(folder.name) for folder in directory.checkpoints.iterdir()) == kept
            assert store.oldest_offsets() == {"main/0": 19}


def test_its_bytes_are_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    """Files that are shared with the newest cost nothing."""
    for number, size in ((1, 400), (2, 300), (3, 200)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "own").write_bytes(bytes(size))
    (tmp_path / "1" / "shared").hardlink_to(tmp_path / "3" / "own")
    for most, kept in ((299, []), (300, [2]), (699, [2]), (700, [2, 1])):
        assert history.within(most, [2, 1], [3], tmp_path) == kept


def test_what_cannot_be_gone_on_from_goes(tmp_path: Path) -> None:
    """The log begins at record 15, so nothing older is of use; the newest are kept whatever the log has."""
    directory = StateDirectory(tmp_path)
    with directory.lock(), closing(CheckpointStore(directory, 2, history_bytes=1 << 20)) as store:
        for records in range(1, 20):
            _save(store, records)
        _save(store, 20, begin=15)
        assert _offsets(store) == [16, 17, 18, 19, 20]
        _save(store, 21, begin=99)
        assert _offsets(store) == [20, 21]
