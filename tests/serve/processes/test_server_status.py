"""How many records wait, by what the children said last."""

from streamkd.serve.processes.server_status import Lag


def test_the_lag_is_what_is_there_less_what_is_trained() -> None:
    """Summed over partitions; unknown until both sides of one are known, and where a source has no end."""
    lag = Lag()
    lag.hear({}, {"a/0": 10})
    assert lag.records() is None
    lag.hear({"a/0": 4, "a/1": 7})
    assert lag.records() == 6
    lag.hear({}, {"a/1": 8})
    assert lag.records() == 7


def test_ends_only_rise_and_offsets_follow_the_learner() -> None:
    """An older word on the end, from the other process, changes nothing; a learner that resumes has more to do."""
    lag = Lag()
    lag.hear({"a/0": 90}, {"a/0": 100})
    lag.hear({}, {"a/0": 95})
    assert lag.records() == 10
    lag.hear({"a/0": 50})
    assert lag.records() == 50
    lag.hear({"a/0": 120})
    assert lag.records() == 0
