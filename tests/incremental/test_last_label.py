"""No change: the label that was learned last, before anything is known of the row."""

import torch
import toys
from torch import Tensor

from streamkd.incremental.last_label import LastLabel, LastLabelOptions
from streamkd.incremental.linear import LinearOptions, LinearTeacher
from streamkd.teachers.teacher import Incremental


def teacher(classes: int = 3) -> LastLabel:
    return LastLabel(LastLabelOptions(probability=0.8), toys.context_of("last", toys.mlp(classes)))


def said(who: LastLabel, labels: list[int], learn: list[bool] | None = None) -> Tensor:
    """Probabilities [n, classes] of each label as it came."""
    y = torch.tensor(labels)
    taught = torch.tensor(learn) if learn else y >= 0
    return who.test_then_train(torch.zeros(len(y), toys.FEATURES), y, taught).softmax(1)


def test_the_last_label_has_its_probability() -> None:
    """And the other learned labels share the rest evenly; before any label has come, all are alike."""
    answers = said(teacher(), [2, 0, 1, 1])
    expected = [[1 / 3, 1 / 3, 1 / 3], [0, 0, 1], [0.8, 0, 0.2], [0.1, 0.8, 0.1]]
    torch.testing.assert_close(answers, torch.tensor(expected), rtol=0, atol=1e-6)


def test_what_is_held_out_is_not_the_last_label() -> None:
    """A row that is not learned, or has no label, changes nothing for the next one."""
    answers = said(teacher(), [0, 1, 1, -1, 1], [True, True, False, False, False])
    assert answers.argmax(1).tolist()[2:] == [1, 1, 1]
    answers = said(teacher(), [0, 1, 0, -1, 1], [True, True, False, False, False])
    assert answers.argmax(1).tolist()[2:] == [1, 1, 1]


def test_it_is_never_asked_about_a_row() -> None:
    """Neither about replayed nor about fresh ones: it is a witness in the pool, and no gate has a place for it."""
    step = toys.make_step(teachers=[toys.make_step().pool.teachers[0], teacher()])
    for x, y in toys.batches(6):
        taken = [taken for _, taken in step.take(x, y, 0)][-1]
        assert taken.plan.answers.known.shape[1] == 1
        assert taken.weights.shape[1] == 2
    assert step.pool.guard.of("last").requests <= 1  # about held-out records, which it does not know either
    assert [witness.key for witness in step.pool.witnesses] == ["last"]
    assert step.pool.prequential["last"].shape == (8, 3)


def test_both_are_incremental() -> None:
    """The built-in teachers of this kind show it by their method."""
    assert isinstance(teacher(), Incremental)
    assert isinstance(LinearTeacher(LinearOptions(), toys.context_of("linear", toys.mlp())), Incremental)
