"""The memory benchmark fills the memory that is asked for, and says what a step and a checkpoint cost with it."""

import pytest

from streamkd.bench import capacity


def test_a_small_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By records and by bytes: it is full, and every figure is there."""
    for name, value in {"STREAM": "digits", "TASK": 5, "STEPS": 2, "BETWEEN": 2}.items():
        monkeypatch.setattr(capacity, name, value)
    result = capacity.measure([{"size": 60}, {"bytes": 40_000}])
    records, in_bytes = result["rows"]
    assert (records["records"], records["held_out"]) == (60, 12)
    assert 200 < in_bytes["records"] < 350
    assert set(result["figures"]) == {
        f"{name}.{row['records']}" for name in ("step_ms", "pause_ms", "written_bytes") for row in result["rows"]
    }
    assert all(value > 0 for value in result["figures"].values())
