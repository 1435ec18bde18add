"""The mixture: who is asked, with what answers, and the weights of what is served."""

import numpy as np
import torch
import toys

from streamkd.incremental.heads import Heads
from streamkd.learning.mixture import Held, completed
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
    assert sum(step.mixture.share.weights.values()) == 1


def test_who_was_not_asked_about_held_out_records_stands_where_the_student_does() -> None:
    """Until the next look."""
    held = Held(("student", "ema"), np.array([[0.3, 0.6], [0.1, 0.2]]), np.array([0, 1]), np.array([True, False]))
    probabilities, labels, away = held.of(("student", "new", "ema"))
    assert probabilities.tolist() == [[0.3, 0.3, 0.6], [0.1, 0.1, 0.2]]
    assert labels.tolist() == [0, 1]
    assert away.tolist() == [True, False]


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
        torch.testing.assert_close(torch.softmax(model(x), 1), wanted)


def test_a_part_that_hardly_counts_is_not_served() -> None:
    """The student alone is a student; without any weights the average is served."""
    alone = candidates(student=0.99, average=0.005)
    assert MixtureSelector().choose(alone) is alone.student
    nothing = candidates()
    assert MixtureSelector().choose(nothing) is nothing.average
    assert isinstance(MixtureSelector().choose(candidates(student=0.5, average=0.5)).student, Student)


def test_average_and_closed_form_teacher_together_are_a_source_too() -> None:
    """Their geometric pool by halves, with a weight of its own beside theirs."""
    student, average = toys.mlp(), toys.mlp(seed=1)
    weights = {"student": 0.0, "average": 0.1, "closed": 0.3, "ensemble": 0.6}
    numbers = {"weight": torch.randn(1, toys.FEATURES + 1, 3), "share": torch.ones(1)}
    moments = {"mean": torch.zeros(toys.FEATURES), "gain": torch.ones(toys.FEATURES)}
    other = Heads("linear", {**numbers, **moments, "known": torch.ones(3, dtype=torch.bool)})
    given = Candidates(student, average, {"closed": other}, None, 0.0, weights, ("average", "closed"))
    model = MixtureSelector().choose(given)
    x = torch.randn(5, toys.FEATURES)
    with torch.no_grad():
        first, second = (torch.softmax(part(x), 1) for part in (average, other))
        both = (first * second).sqrt()
        wanted = 0.1 * first + 0.3 * second + 0.6 * both / both.sum(1, keepdim=True)
        torch.testing.assert_close(torch.softmax(model(x), 1), wanted)
