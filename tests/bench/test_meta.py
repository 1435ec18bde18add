"""`streamkd bench meta`: its split of the alphabets and its figures."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from streamkd.bench import meta

FILE = Path(os.environ.get("STREAMKD_DATA", Path(__file__).parents[3] / "shared" / "data")) / meta.FILE


def _row(variant: str, accuracies: list[float]) -> meta.Row:
    """One task whose student and served model reach these accuracies after 10, 20, ... records."""
    curve = [[10 * (n + 1), a, a] for n, a in enumerate(accuracies)]
    return {"variant": variant, "seed": 0, "seconds": 2.0, "curves": {"Greek": curve}}


def test_the_ratio_asks_both_sides_for_the_same() -> None:
    """0.9 · 0.5 is first reached after 40 records without and after 10 with; its own 0.9 · 1.0 after 30."""
    found = meta.figures([_row("without", [0.0, 0.2, 0.4, 0.5]), _row("full", [0.5, 0.7, 0.9, 1.0])])
    assert found["full.student.records_ratio"] == pytest.approx(10 / 40)
    assert found["full.student.own_ratio"] == pytest.approx(30 / 40)
    assert found["full.training_seconds"] == 2.0


def test_a_level_that_is_never_reached_costs_every_record() -> None:
    """Such a task counts with all of its records, not with none."""
    found = meta.figures([_row("without", [0.3, 0.6]), _row("gate", [0.1, 0.1])])
    assert found["gate.student.records_ratio"] == pytest.approx(20 / 20)


def test_known_unseen_and_test_records_are_apart(tmp_path: Path) -> None:
    """No alphabet is in both halves, and no drawing in both training and test."""
    if not FILE.exists():
        pytest.skip(f"{FILE} is absent; STREAMKD_DATA names the folder")
    paths = [tmp_path / f"{part}.parquet" for part in ("known", "train", "test")]
    unseen = meta._split(FILE, 0, *paths)
    known, train, test = (pq.read_table(path) for path in paths)
    assert not set(known["alphabet"].to_pylist()) & set(unseen)
    assert set(train["alphabet"].to_pylist()) == set(test["alphabet"].to_pylist()) == set(unseen)
    drawings = [{bytes(image) for image in table["image"].to_pylist()} for table in (train, test)]
    assert not drawings[0] & drawings[1]
    assert train.num_rows == meta.PASSES * 3 * test.num_rows
