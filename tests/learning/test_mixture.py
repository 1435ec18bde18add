"""The mixture: who is asked, with what answers, and the weights of what is served."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys

from streamkd.learning.mixture import Held, Weighing, completed
from streamkd.students.networks import Student
from streamkd.teachers.mixture import MixtureSelector
from streamkd.teachers.served import Candidates, Served


def test_what_a_source_does_not_know_is_the_students() -> None:
    """Its own classes share what the student leaves them; all sum to 1."""
    logits = torch.randn(6, 4, dtype=torch.float64)
    known = torch.tensor([True, False, True, False]).expand(6, 4)
    student = torch.softmax(torch.randn(6, 4, dtype=torch.float64), 1)
    whole = completed(logits, known, student)
    torch.testing.assert_close(whole.sum(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(whole[:, [1, 3]], student[:, [1, 3]])
    mine = torch.softmax(logits[:, [0, 2]], 1)
    torch.testing.assert_close(whole[:, [0, 2]], mine * (student[:, 0] + student[:, 2]).unsqueeze(1))


def test_everybody_who_speaks_of_fresh_rows_is_weighed() -> None:
    """Student and average, not the memory, whose answers are about remembered rows; as given."""
    step = toys.make_step()
    for x, y in toys.batches(12):
        toys.train(step, x, y)
    said = step.mixture.last
    assert said.names == ("student", "ema")
    assert said.probabilities.shape == (len(y), 2, 3)
    np.testing.assert_allclose(said.probabilities.sum(2), 1.0, atol=1e-6)
    assert sum(step.mixture.share.weights.values()) == pytest.approx(1)


def test_who_was_not_asked_about_held_out_records_stands_where_the_student_does() -> None:
    """Until the next look."""
    told = np.array([[[0.25, 0.75], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]], np.float32)
    held = Held(("student", "ema"), told, np.array([0, 1]), np.array([True, False]))
    found = held.of(("student", "new", "ema"), 3)
    np.testing.assert_array_equal(found[:, 0], [[0.25, 0.75, 0], [1, 0, 0]])  # a label that is new since then: nothing
    np.testing.assert_array_equal(found[:, 1], found[:, 0])
    np.testing.assert_array_equal(found[:, 2, :2], told[:, 1])


def candidates(**weights: float) -> Candidates:
    student, average = toys.mlp(), toys.mlp(seed=1)
    return Candidates(student, average, {}, None, 0.0, weights)


def test_what_is_served_is_weighed_as_the_mixture_is() -> None:
    """Σ w p of the parts, whose weights are their shares among those that can be served."""
    given = candidates(student=0.3, average=0.6, elsewhere=0.1)
    model = MixtureSelector().choose(given)
    assert isinstance(model, Served)
    x = torch.randn(5, toys.FEATURES)
    with torch.no_grad():
        wanted = sum(w * torch.softmax(part(x), 1) for w, part in ((1 / 3, given.student), (2 / 3, given.average)))
        torch.testing.assert_close(torch.softmax(model(x), 1), wanted, rtol=2e-3, atol=1e-3)


def test_a_part_that_hardly_counts_is_not_served() -> None:
    """The student alone is a student; without any weights the average is served."""
    alone = candidates(student=0.99, average=0.005)
    assert MixtureSelector().choose(alone) is alone.student
    nothing = candidates()
    assert MixtureSelector().choose(nothing) is nothing.average
    assert isinstance(MixtureSelector().choose(candidates(student=0.5, average=0.5)).student, Student)


def test_a_part_is_as_sure_as_it_may_be() -> None:
    """Its probabilities go by its exponent before they are weighed."""
    given = replace(candidates(student=0.5, average=0.5), exponents={"student": 2.0})
    model = MixtureSelector().choose(given)
    x = torch.randn(5, toys.FEATURES)
    with torch.no_grad():
        first, second = (torch.softmax(part(x), 1) for part in (given.student, given.average))
        wanted = 0.5 * first**2 / (first**2).sum(1, keepdim=True) + 0.5 * second
        torch.testing.assert_close(torch.softmax(model(x), 1), wanted, rtol=0.02, atol=2e-3)


def weighed(said: np.ndarray, labels: np.ndarray, held: Held | None = None) -> Weighing:
    one = Weighing()
    for start in range(0, len(labels), 10):
        one.test(("sure", "modest"), said[start : start + 10], labels[start : start + 10], held)
    return one


def test_who_is_modest_and_right_is_not_outvoted_by_who_is_sure() -> None:
    """One is right on nine of ten and says 0.55, the other on seven and says 0.999: the former has the answer."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 2_000)
    said = np.empty((2_000, 2, 2))
    for place, (right, sure) in enumerate(((0.7, 0.999), (0.9, 0.55))):
        chosen = np.where(draw.random(2_000) < right, labels, 1 - labels)
        said[:, place] = 1 - sure
        said[np.arange(2_000), place, chosen] = sure
    one = weighed(said, labels)
    assert one.exponents["sure"] < 0.5 < 2 < one.exponents["modest"]
    answers = one.mixed(("sure", "modest"), said[-500:]).argmax(1)
    assert (answers == labels[-500:]).mean() > 0.85


def test_held_out_records_make_a_source_less_sure_too() -> None:
    """Of a class that does not come now, which it takes for others, it learns to be less sure than of what comes."""
    labels = np.ones(600, dtype=np.int64)
    said = np.tile([[0.02, 0.98], [0.4, 0.6]], (600, 1, 1))
    kept = np.tile(np.array([[0.1, 0.9], [0.6, 0.4]], np.float32), (20, 1, 1))
    held = Held(("sure", "modest"), kept, np.zeros(20, dtype=np.int64), np.ones(20, dtype=bool))
    assert weighed(said, labels, held).exponents["sure"] < weighed(said, labels).exponents["sure"]


def test_it_goes_on_from_its_state() -> None:
    """To the same bits."""
    draw = np.random.default_rng(1)
    said, labels = draw.dirichlet(np.ones(3), (60, 2)), draw.integers(0, 3, 60)
    one = weighed(said[:30], labels[:30])
    other = Weighing()
    other.load_state_dict(one.state_dict())
    answers = [each.test(("sure", "modest"), said[30:], labels[30:], None) for each in (one, other)]
    assert np.array_equal(*answers)
