"""Rows from the vicinity of remembered ones, and what they may count."""

import functools

import pytest
import torch
import toys

from streamkd.learning.held_out import EVERY
from streamkd.learning.step import Step
from streamkd.replay.rows import HeldOutFigures, RowsContext, StepRows
from streamkd.replay.vicinal import VicinalOptions, VicinalRows


def source(rows: int = 8, shift: int = 2, seed: int = 0, weight: float = 1.0) -> VicinalRows:
    options = VicinalOptions(rows=rows, shift=shift, weight=weight)
    return VicinalRows(options, RowsContext("vicinal", toys.schema_of(toys.FEATURES), seed))


def near(x: torch.Tensor, one: VicinalRows | None = None, **settings: int) -> torch.Tensor:
    """Inputs that are drawn near these, where the teachers know better."""
    drawn = (one or source(**settings)).draw(StepRows.of(x), lambda: HeldOutFigures(0.5, 1.0))
    assert drawn is not None
    assert (drawn.y == -1).all()
    return drawn.x


def test_a_drawn_row_lies_between_two_rows_of_the_step() -> None:
    """Of vectors, each drawn row is one point of the line between two given ones."""
    x = torch.tensor([[0.0, 0.0], [1.0, 10.0]])
    drawn = near(x, rows=50)
    assert drawn.shape == (50, 2)
    torch.testing.assert_close(drawn[:, 1], 10 * drawn[:, 0])
    assert float(drawn.min()) >= 0
    assert float(drawn[:, 0].max()) <= 1


def test_bytes_stay_bytes() -> None:
    """Images of bytes give images of bytes, so that they can stand in one batch."""
    x = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    drawn = near(x)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (8, 28, 28)


def test_an_image_moves_as_a_whole_and_repeats_its_edge() -> None:
    """Mixing an image with itself leaves shifts alone: each row is the image moved by at most ``shift``."""
    image = torch.arange(10 * 10, dtype=torch.float32).reshape(10, 10)
    drawn = near(image.expand(2, -1, -1).clone(), rows=30)
    rows = torch.arange(10)
    possible = [
        image[(rows + down).clamp(0, 9)][:, (rows + across).clamp(0, 9)]
        for down in range(-2, 3)
        for across in range(-2, 3)
    ]
    for moved in drawn:
        assert any(torch.allclose(moved, one, atol=1e-4) for one in possible)
    assert len({tuple(moved.flatten().tolist()) for moved in drawn.round()}) > 5


@pytest.mark.parametrize("x", [torch.zeros(4, 3, dtype=torch.int64), torch.zeros(1, 3)])
def test_between_names_and_beside_one_row_there_is_nothing(x: torch.Tensor) -> None:
    """Whole numbers other than bytes are tokens; one row has no other to be mixed with."""
    assert source().draw(StepRows.of(x), lambda: HeldOutFigures(0.5, 1.0)) is None


def test_the_state_brings_back_the_next_rows() -> None:
    """A restored source draws what the other one draws."""
    one, other, x = source(), source(seed=9), torch.rand(6, 3)
    near(x, one)
    other.load_state_dict(one.state_dict())
    assert torch.equal(near(x, one), near(x, other))


def test_where_nobody_knows_better_nothing_is_drawn_and_nothing_random_is_used() -> None:
    """Mass 0 costs nothing and leaves the generator where it was."""
    one = source()
    before = one.state_dict()["generator"].clone()
    assert one.draw(StepRows.of(torch.rand(4, 3)), HeldOutFigures) is None
    assert torch.equal(one.state_dict()["generator"], before)


def test_a_row_counts_its_weight_times_what_is_spared() -> None:
    """A third of the mistakes spared, weight 3: as a record; where half of the moved images are known, a sixteenth."""
    vectors, pictures, known = torch.zeros(2, 5), torch.zeros(2, 10, 10), HeldOutFigures(1 / 3, 0.5)
    for x, shift, counts in ((vectors, 2, 1.0), (pictures, 2, 1 / 16), (pictures, 0, 1.0)):
        drawn = source(shift=shift, weight=3.0).draw(StepRows.of(x), lambda: known)
        assert drawn is not None
        assert drawn.mass.tolist() == pytest.approx([counts] * 8)


class Oracle:
    """A live teacher that knows the label of every record, wherever it lies."""

    key, role, fresh, version = "oracle", "live", True, 0

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.asked = 0

    @torch.no_grad()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += len(x)
        return self.network(x)

    def known(self) -> torch.Tensor:
        return torch.ones(3, dtype=torch.bool)

    def features(self, x: torch.Tensor, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return {}

    def grow(self, labels: object) -> None: ...

    def observe(self, x: torch.Tensor, y: torch.Tensor) -> None: ...

    def after_step(self, student: object) -> None: ...

    def size_bytes(self) -> int:
        return 0

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


@functools.cache
def learned() -> torch.nn.Module:
    """A network that has learned the toys' records; to be asked alone."""
    step = toys.make_step(size=100)
    for x, y in toys.batches(300, batch=20):
        toys.train(step, x, y)
    return step.student


def taught_by(oracle: Oracle, rows: int) -> Step:
    """A fresh step whose only teacher is the oracle."""
    step = toys.make_step(teachers=[oracle], snapshots=0, seed=3)
    toys.vicinal(step, rows, shift=2)
    return step


def test_rows_are_drawn_where_a_teacher_knows_better() -> None:
    """Beside an untrained student and a teacher that knows; not where the teacher makes the student's mistakes."""
    for knows in (True, False):
        step = taught_by(Oracle(learned() if knows else toys.mlp(seed=3)), rows=12)
        for x, y in toys.batches(EVERY + 2, batch=4):
            plan = step.begin(x, y, 0)
            step.memory.insert(x, y, 0, step.student(x).detach())
        assert plan.origins.get("vicinal", 0) == (12 if knows else 0)


def test_drawn_rows_have_no_label_and_the_weight_of_the_advantage() -> None:
    """The drawn rows come last: label -1, nothing on the hard label, the mass on the teachers."""
    step = taught_by(Oracle(learned()), rows=12)
    for x, y in toys.batches(10):
        step.memory.insert(x, y, 0, step.student(x).detach())
    toys.spare(step, 0.25)
    x, y = toys.batches(11)[-1]
    plan = step.begin(x, y, 0)
    lesson = step.weigh(plan, step.forward(plan))
    assert plan.unlabelled
    assert (plan.y[-12:] == -1).all()
    torch.testing.assert_close(lesson.weights[-12:, 0], torch.zeros(12))
    counted = torch.ones(len(plan.y))
    counted[list(plan.offer.held.values())] = 0
    counted[-12:] = 0.25
    torch.testing.assert_close(lesson.weights.sum(1), counted * len(counted) / counted.sum())


def test_rows_that_count_nothing_do_not_make_the_step_smaller() -> None:
    """The loss is the mean over what the rows count: drawn rows without weight leave the gradient as it is."""

    def gradient(rows: int) -> torch.Tensor:
        step = taught_by(Oracle(learned()), rows)
        for x, y in toys.batches(10):
            step.memory.insert(x, y, 0, step.student(x).detach())
        toys.spare(step, 1e-9)
        plan = step.begin(*toys.batches(1)[0], task=0)
        assert plan.origins.get("vicinal", 0) == rows
        loss = step.loss(step.weigh(plan, step.forward(plan)))
        return torch.autograd.grad(loss, step.parameters)[0]

    torch.testing.assert_close(gradient(rows=12), gradient(rows=0))


def test_frozen_snapshots_say_nothing_of_drawn_rows() -> None:
    """A snapshot knows the labels of its time and would claim every drawn row for them."""
    step = toys.make_step(snapshots=2)
    for x, y in toys.batches(20):
        toys.train(step, x, y)
    step.pool.end_task(step.student)
    toys.vicinal(step, 5, shift=2)
    toys.spare(step, 1.0)
    plan = step.begin(*toys.batches(1)[0], task=1)
    place = step.pool.keys.index("snapshot-0")
    assert plan.origins.get("vicinal", 0) == 5
    assert not plan.answers.known[-5:, place].any()
    assert plan.answers.known[-5:, step.pool.keys.index("ema")].all()


def test_before_the_first_snapshot_a_pool_of_snapshots_has_nothing_to_say() -> None:
    """Nobody is there to be asked about held-out records: nothing is drawn, and the steps go on."""
    step = toys.make_step(teachers=[], snapshots=1)
    toys.vicinal(step, 12, shift=2)
    for x, y in toys.batches(EVERY + 2, batch=4):
        assert step.begin(x, y, 0).origins.get("vicinal", 0) == 0
        step.memory.insert(x, y, 0, step.student(x).detach())


def test_a_student_learns_what_the_memory_does_not_show() -> None:
    """With six remembered records and a teacher that knows all, drawn rows bring the student nearer to the teacher."""
    oracle = Oracle(learned())
    x, _ = (torch.cat(part) for part in zip(*toys.batches(50, seed=5), strict=True))

    def apart(rows: int) -> float:
        step = toys.make_step(teachers=[oracle], snapshots=0, seed=3, size=8, replay=6)
        toys.vicinal(step, rows)
        for part in toys.batches(1, batch=6, seed=1) * 200:
            toys.spare(step, 1.0)
            toys.train(step, *part)
        with torch.no_grad():
            return float((torch.softmax(step.student(x), 1) - torch.softmax(oracle.logits(x), 1)).abs().mean())

    assert apart(20) < apart(0)
