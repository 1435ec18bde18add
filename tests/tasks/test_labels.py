"""The label space: by order of arrival, for strings and numbers, and back from its state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkd.tasks.labels import LabelSpace

labels = st.one_of(st.lists(st.text(max_size=3)), st.lists(st.integers(-3, 3)))


@given(labels, labels)
def test_a_new_label_never_moves_an_old_one(before: list, after: list) -> None:
    """Columns are given by arrival: what sorts first, but comes later, takes a later column."""
    space = LabelSpace(before)
    known = list(dict.fromkeys(before))
    assert space.labels == known
    new = space.learn(after)
    assert space.labels[: len(known)] == known
    assert space.labels[len(known) :] == new == [x for x in dict.fromkeys(after) if x not in known]
    assert space.indices(space.labels) == list(range(len(space)))


@given(labels)
def test_learning_batch_by_batch_is_learning_at_once(stream: list) -> None:
    """Incremental equals batch at every prefix."""
    space = LabelSpace()
    for end, label in enumerate(stream, 1):
        space.learn([label])
        assert space.labels == LabelSpace(stream[:end]).labels


def test_a_label_that_was_never_learned_has_no_column() -> None:
    """Asking for it is a mistake of the caller, not a silent column."""
    with pytest.raises(KeyError):
        LabelSpace(["a"]).indices(["b"])


def test_state_goes_round() -> None:
    """Labels keep their columns over a restart."""
    space = LabelSpace(["z", "a", "m"])
    other = LabelSpace(["something"])
    other.load_state_dict(space.state_dict())
    assert other.labels == ["z", "a", "m"]
    assert other.learn(["b", "a"]) == ["b"]
    assert other.indices(["z", "b"]) == [0, 3]
