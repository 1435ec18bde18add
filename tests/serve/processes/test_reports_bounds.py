"""A status has its size whatever stands in it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkd.serve.processes.channel import encode
from streamkd.serve.processes.reports import ITEMS, STATUS_BYTES, TEXT, bounded

HUGE: dict[str, Any] = {
    "records_trained": 7,
    "task": "t" * 100_000,
    "classes": [f"{i:0256d}" for i in range(10_000)],
    "tasks": [f"{i:0256d}" for i in range(1_000)],
    "teachers": [{"name": "n" * 300, "weight": 0.5}] * 5_000,
    "boundaries": [{"record": i, "task": "x" * 256} for i in range(100)],
    "accuracy": {"prequential": 0.5, "per_task": {f"{i:0256d}": 0.5 for i in range(10_000)}},
    "gate": {"hard": 0.5, "weights": {f"{i:0256d}": 0.5 for i in range(500)}},
    "history": [{"record": i, "weights": {f"{k:0256d}": 0.5 for k in range(50)}} for i in range(240)],
}


def test_an_ordinary_status_stays_as_it_is() -> None:
    """What fits is told whole, and nothing is left out."""
    status = {"records_trained": 3, "classes": [1, "a"], "accuracy": {"per_task": {"0": 1.0}}, "loss": None}
    assert bounded(status) == {**status, "left_out": {}}


def test_everything_at_its_limit_fits() -> None:
    """Ten thousand labels and tasks of 256 bytes, and more teachers than anybody has: within the limit, and counted."""
    told = bounded(HUGE)
    assert len(encode(told)) <= STATUS_BYTES + 4_096  # the counts come on top
    assert told["records_trained"] == 7
    assert told["task"] == "t" * TEXT
    assert told["accuracy"]["prequential"] == told["gate"]["hard"] == 0.5
    for name in ("classes", "tasks", "teachers"):
        assert told["left_out"].get(name, 0) + len(told[name]) == len(HUGE[name])
    assert told["left_out"]["accuracy.per_task"] + len(told["accuracy"]["per_task"]) == 10_000


def test_the_newest_are_kept() -> None:
    """Lists and tables keep their last items."""
    told = bounded({"tasks": list(range(3 * ITEMS)), "per_task": {str(i): i for i in range(2 * ITEMS)}})
    assert told["tasks"] == list(range(2 * ITEMS, 3 * ITEMS))
    assert list(told["per_task"].values()) == list(range(ITEMS, 2 * ITEMS))
    assert told["left_out"] == {"tasks": 2 * ITEMS, "per_task": ITEMS}


@pytest.mark.parametrize("limit", [200, 2_000, 50_000])
def test_the_limit_holds_however_small(limit: int) -> None:
    """Down to the plain figures, which always stay."""
    told = bounded({**HUGE, "task": "t"}, limit)
    assert len(encode({k: v for k, v in told.items() if k != "left_out"})) <= limit
    assert told["records_trained"] == 7


_json = st.recursive(
    st.none() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=80) | st.dictionaries(st.text(max_size=5), inner, max_size=80),
    max_leaves=120,
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), _json, max_size=6))
def test_any_tree_is_bounded(status: dict[str, Any]) -> None:
    """Whatever its shape, a status ends within the limit or with nothing but plain figures."""
    told = bounded(status, 500)
    counts = told.pop("left_out")
    assert len(encode(told)) <= 500 or not any(isinstance(value, dict | list) for value in told.values())
    assert all(count > 0 for count in counts.values())
