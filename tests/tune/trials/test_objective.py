"""Objectives: figures of a curve, by hand."""

import pytest

from streamkd.errors import ConfigError
from streamkd.tune.trials.objective import OBJECTIVES, Curve, Point, objective

SPANS = {"a": (0, 100), "b": (100, 200)}
POINTS = (
    Point(50, {"a": 0.92}, place="within"),
    Point(100, {"a": 0.9}, {"a": 0.7}),
    Point(150, {"b": 0.5}, place="within"),
    Point(200, {"a": 0.6, "b": 0.8}, {"a": 0.5, "b": 0.6}),
)
CURVE = Curve(POINTS, SPANS)


def test_accuracy_is_the_mean_over_marks_of_the_mean_over_tasks_begun() -> None:
    """(0.9 + (0.6 + 0.8) / 2) / 2; points within tasks are not marks."""
    assert objective("accuracy").of(CURVE) == pytest.approx(0.8)


def test_final_accuracy_is_that_of_the_last_point() -> None:
    """(0.6 + 0.8) / 2."""
    assert objective("final-accuracy").of(CURVE) == pytest.approx(0.7)


def test_forgetting_is_what_tasks_that_are_over_have_lost() -> None:
    """a had 0.9 and has 0.6; b has just ended, so it can have lost nothing."""
    assert objective("forgetting").of(CURVE) == pytest.approx(0.3)
    assert objective("forgetting").of(Curve(POINTS[:2], SPANS)) == 0.0


def test_records_to_ninety_counts_from_each_tasks_beginning() -> None:
    """a was there after 50; b, begun at 100, is not there after 100 more."""
    assert objective("records-to-90").of(CURVE) == pytest.approx((50 + 100) / 2)


def test_student_accuracy_is_the_students() -> None:
    """(0.7 + (0.5 + 0.6) / 2) / 2."""
    assert objective("student-accuracy").of(CURVE) == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("prediction", "step", "worth"), [(0.01, 0.01, 0.8), (0.04, 0.01, 0.4), (0.01, 0.2, 0.4), (0.04, 0.2, 0.2)]
)
def test_latency_takes_off_in_proportion_to_what_is_too_slow(prediction: float, step: float, worth: float) -> None:
    """Within 20 ms a prediction and 100 ms a step it is the accuracy; twice as slow is worth half, each."""
    curve = Curve(POINTS, SPANS, step_seconds=step, prediction_seconds=prediction)
    assert objective("latency").of(curve) == pytest.approx(worth)


def test_latency_takes_limits_of_its_own() -> None:
    """`latency:10:50` is a prediction within 10 ms, a step within 50 ms; one number is the prediction's."""
    curve = Curve(POINTS, SPANS, step_seconds=0.1, prediction_seconds=0.02)
    assert objective("latency:10:50").of(curve) == pytest.approx(0.2)
    assert objective("latency:10").of(curve) == pytest.approx(0.4)
    assert objective("latency:10").timed


@pytest.mark.parametrize("name", ["acuracy", "latency:soon", "latency:0", "latency:1:2:3", "accuracy:3"])
def test_an_objective_that_there_is_not_is_refused(name: str) -> None:
    """The known ones are named, and the nearest."""
    with pytest.raises(ConfigError, match="no objective") as raised:
        objective(name)
    assert "records-to-90" in raised.value.fix


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_a_number_before_anything_was_measured(name: str) -> None:
    """A trial that was stopped at once is not judged by an exception; each says what it is and which way is better."""
    assert objective(name).of(Curve(())) == 0.0
    assert objective(name).direction in ("max", "min")
