"""What holds of every teacher with answers side by side."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import toys
from pydantic import ValidationError

from streamkd.errors import StateConflict
from streamkd.gates.fixed_share import NOBODY
from streamkd.incremental.crossed import CrossedOptions, CrossedTeacher
from streamkd.incremental.forgetting import ForgettingOptions, ForgettingTeacher
from streamkd.incremental.linear import LinearOptions, LinearTeacher
from streamkd.incremental.side_by_side import SideBySide
from streamkd.records import InputColumn, RecordSchema
from streamkd.serve.processes.publisher import against_weights

Made = Callable[[], SideBySide]


def linear(*rates: float) -> SideBySide:
    return LinearTeacher(LinearOptions(rates=rates or (0.1, 0.01)), toys.context_of("linear", toys.mlp()))


def forgetting(*half_lives: int, bins: int = 4) -> SideBySide:
    options = ForgettingOptions(half_lives=half_lives or (40, 1_000), width=16, bins=bins)
    return ForgettingTeacher(options, toys.context_of("forgetting", toys.mlp()))


def crossed(*rates: float, sets: int = 20) -> SideBySide:
    options = CrossedOptions(rates=rates or (0.5, 2), sets=sets)
    return CrossedTeacher(options, toys.context_of("crossed", toys.mlp()))


EVERY = pytest.mark.parametrize("made", [linear, forgetting, crossed])


def stream(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and labels, one after the other."""
    drawn = toys.batches(count)
    return torch.cat([x for x, _ in drawn]), torch.cat([y for _, y in drawn])


def every(y: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(y, dtype=torch.bool)


@EVERY
def test_however_the_stream_is_cut_it_learns_the_same(made: Made) -> None:
    """Batches of up to forty learn record by record; products round by shape."""
    x, y = stream(70)
    learn = torch.arange(len(y)) % 4 > 0
    one, cut = made(), made()
    said, parts = (
        torch.cat([who.test_then_train(*part) for part in zip(*(t.split(rows) for t in (x, y, learn)), strict=True)])
        for who, rows in ((one, 1), (cut, 7))
    )
    torch.testing.assert_close(parts, said, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut.logits(x), one.logits(x), rtol=1e-5, atol=1e-5)


@EVERY
def test_a_larger_batch_is_learned_in_forty_lessons(made: Made) -> None:
    """Once every class is known, and the bins are fitted: of 160 records four are answered alike, then learned."""
    x, y = stream(110)
    more, labels = x[:160], y[:160]
    once, parts = made(), made()
    for who in (once, parts):
        who.test_then_train(x, y, every(y))
    said = once.test_then_train(more, labels, every(labels))
    wanted = []
    for rows, columns in zip(more.split(4), labels.split(4), strict=True):
        raw = parts.read(parts._rows(parts._flat(rows)))
        wanted.append(parts._said(raw))
        parts.learn(raw, columns.numpy())
    shared = parts.share.test(parts.names, np.concatenate(wanted), labels.numpy(), *NOBODY)
    torch.testing.assert_close(said.softmax(1).double(), torch.from_numpy(shared), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(once.logits(more), parts.logits(more), rtol=1e-5, atol=1e-5)


@EVERY
def test_what_is_served_answers_as_the_teacher_does(made: Made) -> None:
    """Before it has learned nothing is served of it."""
    x, y = stream(70)
    one = made()
    assert one.part() is None
    one.test_then_train(x, y, every(y))
    torch.testing.assert_close(one.part()(x).softmax(1), one.logits(x).softmax(1), rtol=1e-3, atol=1e-4)


@EVERY
def test_what_is_served_may_be_published(made: Made) -> None:
    """Every number of it is finite: a version with another one is refused."""
    x, y = stream(150)
    one = made()
    one.test_then_train(x, y, every(y))
    assert against_weights(one.part().state_dict(), one.part().state_dict()) is None


@EVERY
def test_it_goes_on_from_its_state(made: Made) -> None:
    """To the same bits, wherever it was stopped."""
    x, y = stream(80)
    for cut in (0, 33, 550):
        whole, other = made(), made()
        whole.test_then_train(x[:cut], y[:cut], every(y[:cut]))
        other.load_state_dict(whole.state_dict())
        said = [one.test_then_train(x[cut:], y[cut:], every(y[cut:])) for one in (whole, other)]
        assert torch.equal(*said)


@EVERY
def test_heads_are_weighed_by_what_they_said_then(made: Made) -> None:
    """Opinions that were given when records came decide the shares; whose answers came to nothing decide nothing."""
    x, y = stream(40)
    late, told = made(), made()
    for teacher in (late, told):
        teacher.test_then_train(x, y, every(y))
    before = late.share.weights
    late.test_then_train(x[:30], y[:30], every(y[:30]), np.full_like(late.opinion(x[:30]), np.nan))
    assert late.share.weights == before
    opinion = told.opinion(x[:30])
    opinion[:, 1 : len(told.names)] = 1 / 3  # the others said nothing of use
    opinion[:, 0] = np.eye(3)[y[:30]]
    told.test_then_train(x[:30], y[:30], every(y[:30]), opinion)
    weights = [*told.share.weights.values()]
    assert weights[0] == max(weights) > before[told.names[0]]


@EVERY
@pytest.mark.parametrize("before", [(), ("before",)], ids=["an image", "some columns"])
def test_an_opinion_is_of_what_is_read(made: Made, before: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images, and where a student does not read all columns, what is said is what is said of the flat numbers."""
    x, y = stream(150)
    shape = (toys.FEATURES,) if before else (1, toys.FEATURES)
    inputs = (*(InputColumn(name=name) for name in before), InputColumn(name="x", shape=shape))
    flat, other = made(), x.view(len(x), *shape)
    whole = torch.cat([torch.randn(len(x), 1), x], 1) if before else other
    monkeypatch.setattr(toys, "schema_of", lambda _: RecordSchema(inputs=inputs, student=("x",) if before else ()))
    shaped = made()
    for teacher, rows in ((flat, x), (shaped, whole)):
        teacher.test_then_train(rows[:-50], y[:-50], every(y[:-50]))
    np.testing.assert_array_equal(shaped.opinion(whole[-50:]), flat.opinion(x[-50:]))


@pytest.mark.parametrize("logit", [1e4, 1e30, float("inf"), float("nan")])
def test_however_far_weights_have_gone_answers_are_probabilities(logit: float) -> None:
    """A class that was never learned may have the greatest logit, and rates that are too high diverge."""
    teacher = linear()
    x, y = stream(3)
    teacher.test_then_train(x, torch.zeros_like(y), every(y))
    teacher._weights[0, 1:, -1] = logit  # of classes that were not learned
    teacher._weights[1, 0, -1] = logit
    said = teacher.logits(x).exp()
    torch.testing.assert_close(said.sum(1), torch.ones(len(x)))
    assert said[:, 0].min() > 0.9


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (linear, lambda: linear(0.1)),
        (forgetting, lambda: forgetting(40)),
        (forgetting, lambda: forgetting(bins=0)),
        (crossed, lambda: crossed(0.5, 8)),
        (crossed, lambda: crossed(sets=5)),
    ],
)
def test_other_heads_do_not_go_on_from_a_state(before: Made, now: Made) -> None:
    """The two are named, with the way out."""
    with pytest.raises(StateConflict, match=r"heads|sets"):
        now().load_state_dict(before().state_dict())


@pytest.mark.parametrize(
    ("options", "key", "wrong"),
    [
        (LinearOptions, "rates", (0.1, 0.1)),
        (LinearOptions, "rates", (-1.0,)),
        (LinearOptions, "rates", ()),
        (CrossedOptions, "rates", (2.0, 2.0)),
        (ForgettingOptions, "half_lives", (5, 5)),
        (ForgettingOptions, "half_lives", (0,)),
    ],
)
def test_numbers_that_tell_no_heads_apart_are_refused(options: type, key: str, wrong: tuple) -> None:
    """Twice the same, none, or none above 0."""
    with pytest.raises(ValidationError, match=key):
        options(**{key: wrong})
