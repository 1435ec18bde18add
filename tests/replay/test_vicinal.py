"""Rows from the vicinity of remembered ones, and what they may count."""

import pytest
import torch
import toys

from streamkd.learning.step import Step
from streamkd.replay.vicinal import EVERY, VicinalRows, advantage, steadiness
from streamkd.teachers.teacher import EmaOptions, EmaTeacher


def drawing(rows: int = 8, shift: int = 2, seed: int = 0, mass: float = 1.0) -> VicinalRows:
    vicinity = VicinalRows(rows, shift, seed)
    vicinity.mass = mass
    return vicinity


def test_a_drawn_row_lies_between_two_rows_of_the_step() -> None:
    """Of vectors, each drawn row is one point of the line between two given ones."""
    x = torch.tensor([[0.0, 0.0], [1.0, 10.0]])
    drawn = drawing(rows=50).draw(x)
    assert drawn is not None
    assert drawn.shape == (50, 2)
    torch.testing.assert_close(drawn[:, 1], 10 * drawn[:, 0])
    assert float(drawn.min()) >= 0
    assert float(drawn[:, 0].max()) <= 1


def test_bytes_stay_bytes() -> None:
    """Images of bytes give images of bytes, so that they can stand in one batch."""
    x = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    drawn = drawing().draw(x)
    assert drawn is not None
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (8, 28, 28)


def test_an_image_moves_as_a_whole_and_repeats_its_edge() -> None:
    """Mixing an image with itself leaves shifts alone: each row is the image moved by at most ``shift``."""
    image = torch.arange(10 * 10, dtype=torch.float32).reshape(10, 10)
    drawn = drawing(rows=30, shift=2).draw(image.expand(2, -1, -1).clone())
    assert drawn is not None
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
    assert drawing().draw(x) is None


def test_without_an_advantage_nothing_is_drawn_and_nothing_random_is_used() -> None:
    """Mass 0 costs nothing and leaves the generator where it was."""
    vicinity = drawing(mass=0.0)
    before = vicinity.state_dict()["generator"].clone()
    assert vicinity.draw(torch.rand(4, 3)) is None
    assert torch.equal(vicinity.state_dict()["generator"], before)


def test_the_state_brings_back_the_next_rows() -> None:
    """A restored vicinity draws what the other one draws."""
    one, x = drawing(), torch.rand(6, 3)
    one.draw(x)
    other = VicinalRows(8, 2, seed=9)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.draw(x), other.draw(x))
    assert other.mass == one.mass


def test_the_state_brings_back_what_is_moved_next() -> None:
    """A restored vicinity replays the images where the other one does."""
    one, other = (VicinalRows(0, 2, seed, moved=0.5) for seed in (0, 9))
    one.measured(0.0, 0.9)
    one.replayed(images(20))
    other.load_state_dict(one.state_dict())
    moved = one.replayed(images(20))
    assert moved is not None
    assert torch.equal(moved, other.replayed(images(20)))


def test_it_is_measured_now_and_then() -> None:
    """Due at the first step and every so many after it; never where no rows are wanted."""
    vicinity = VicinalRows(8, 2, seed=0)
    due = [vicinity.due(torch.rand(2, 5)) for _ in range(2 * EVERY + 1)]
    assert [place for place, is_due in enumerate(due) if is_due] == [0, EVERY, 2 * EVERY]
    for idle, x in ((VicinalRows(0, 2, seed=0), images(2)), (VicinalRows(0, 2, seed=0, moved=0.5), torch.rand(2, 5))):
        assert not any(idle.due(x) for _ in range(EVERY + 1))
    assert VicinalRows(0, 2, seed=0, moved=0.5).due(images(2))


def test_the_advantage_is_the_part_of_the_mistakes_that_is_spared() -> None:
    """1 - (e + 1)/(s + 1) of the mistakes e and s, and never below 0."""
    labels = torch.arange(10) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    wrong = 1 - right
    four = torch.cat([wrong[:4], right[4:]])
    assert advantage(right, four, labels) == pytest.approx(1 - 1 / 5)
    assert advantage(four, right, labels) == 0.0
    assert advantage(four, four, labels) == 0.0


def test_steadiness_is_what_is_still_known_after_a_move() -> None:
    """Of six records that were known five are known when moved; one that was not known does not count, one is added."""
    labels = torch.arange(10) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    wrong = 1 - right
    taught = torch.cat([right[:6], wrong[6:]])
    moved = torch.cat([wrong[:1], right[1:7], wrong[7:]])
    nobody = torch.zeros(10, dtype=torch.bool)
    assert steadiness(taught, moved, labels, nobody) == pytest.approx(5 / 7)
    assert steadiness(wrong, right, labels, nobody) == 0.0


def test_a_new_task_whose_images_cannot_be_moved_counts_more_than_all_before_it() -> None:
    """Of ninety-six records that can be moved and four of the newest task that cannot, the four decide."""
    labels = torch.arange(100) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    moved = torch.cat([right[:96], 1 - right[96:]])
    newest = torch.arange(100) >= 96
    assert steadiness(right, moved, labels, ~newest) == pytest.approx(96 / 101)
    assert steadiness(right, moved, labels, newest) == pytest.approx(2 * 96 / 101 / 6)


def test_only_images_move_and_only_where_a_shift_is_asked_for() -> None:
    """A vector and an image under ``shift: 0`` stay; an image that moves keeps its shape and type."""
    image = torch.arange(3 * 100, dtype=torch.uint8).reshape(3, 10, 10)
    assert drawing(shift=2).nudged(torch.zeros(3, 5)) is None
    assert drawing(shift=0).nudged(image) is None
    moved = drawing(shift=2).nudged(image)
    assert moved is not None
    assert (moved.shape, moved.dtype) == (image.shape, image.dtype)
    assert not torch.equal(moved, image)


def test_a_row_counts_its_weight_times_what_is_spared() -> None:
    """A third of the mistakes spared, weight 3: as a record; half of the moved images known: a sixteenth of it."""
    vicinity = VicinalRows(8, 2, 0, weight=3.0)
    vicinity.measured(1 / 3, None)
    assert vicinity.mass == pytest.approx(1.0)
    vicinity.measured(1 / 3, 0.5)
    assert vicinity.mass == pytest.approx(1 / 16)


def images(rows: int = 400) -> torch.Tensor:
    """Ten by ten, each with its number in one pixel near the middle."""
    x = torch.zeros(rows, 10, 10)
    x[:, 5, 5] = 1.0 + torch.arange(rows)
    return x


@pytest.mark.parametrize(("steady", "part"), [(0.0, 0.0), (0.75, 0.0), (0.8, 0.25), (0.85, 0.5), (1.0, 0.5)])
def test_images_are_replayed_moved_as_far_as_they_are_still_known(steady: float, part: float) -> None:
    """Half of them at most; each by one pixel at most, into any of eight directions."""
    vicinity = VicinalRows(0, 2, seed=0, moved=0.5)
    vicinity.steady = steady
    x = images()
    moved = vicinity.replayed(x)
    assert (moved is None) == (part == 0)
    moved = x if moved is None else moved
    at = moved.flatten(1).argmax(1)
    assert torch.equal(moved.flatten(1).max(1).values, x.flatten(1).max(1).values)
    away = torch.stack([at // 10 - 5, at % 10 - 5])
    assert int(away.abs().max()) == (1 if part else 0)
    assert float((away != 0).any(0).float().mean()) == pytest.approx(part * 8 / 9, abs=0.06)


def test_what_is_no_image_is_replayed_as_it_is() -> None:
    """Vectors, and images that are told to stay."""
    for vicinity, x in (
        (VicinalRows(0, 2, 0, moved=1.0), torch.rand(5, 6)),
        (VicinalRows(0, 0, 0, moved=1.0), images(5)),
    ):
        vicinity.steady = 1.0
        assert vicinity.replayed(x) is None


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


def learned() -> torch.nn.Module:
    """A network that has learned the toys' records."""
    step = toys.make_step(size=100)
    for x, y in toys.batches(300, batch=20):
        toys.train(step, x, y)
    return step.student


def taught_by(oracle: Oracle, rows: int) -> Step:
    """A fresh step whose only teacher is the oracle."""
    step = toys.make_step(teachers=[oracle], snapshots=0, seed=3)
    step.vicinal = VicinalRows(rows, 2, seed=0)
    return step


def test_rows_are_drawn_once_a_teacher_knows_better() -> None:
    """An untrained student with a teacher that knows: after the first records are held out, rows are drawn."""
    step = taught_by(Oracle(learned()), rows=12)
    drawn = []
    for x, y in toys.batches(2 * EVERY + 2, batch=4):
        drawn.append(step.begin(x, y, 0).drawn)
        step.memory.insert(x, y, 0, step.student(x).detach())
    assert drawn[0] == 0  # nothing is held out yet, so nothing is known of anybody
    assert drawn[-1] == 12


def test_drawn_rows_have_no_label_and_the_weight_of_the_advantage() -> None:
    """The drawn rows come last: label -1, nothing on the hard label, the mass on the teachers."""
    step = taught_by(Oracle(learned()), rows=12)
    for x, y in toys.batches(10):
        step.memory.insert(x, y, 0, step.student(x).detach())
    step.vicinal.mass, step.vicinal.age = 0.25, 1
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
        step.vicinal.mass, step.vicinal.age = 1e-9, 1
        plan = step.begin(*toys.batches(1)[0], task=0)
        assert plan.drawn == rows
        loss = step.loss(step.weigh(plan, step.forward(plan)))
        return torch.autograd.grad(loss, step.parameters)[0]

    torch.testing.assert_close(gradient(rows=12), gradient(rows=0))


def test_frozen_snapshots_say_nothing_of_drawn_rows() -> None:
    """A snapshot knows the labels of its time and would claim every drawn row for them."""
    step = toys.make_step(snapshots=2)
    for x, y in toys.batches(20):
        toys.train(step, x, y)
    step.pool.end_task(step.student)
    step.vicinal = VicinalRows(5, 2, seed=0)
    step.vicinal.mass, step.vicinal.age = 1.0, 1
    plan = step.begin(*toys.batches(1)[0], task=1)
    place = step.pool.keys.index("snapshot-0")
    assert plan.drawn == 5
    assert not plan.answers.known[-5:, place].any()
    assert plan.answers.known[-5:, step.pool.keys.index("ema")].all()


def test_a_moved_image_is_taught_as_it_lay() -> None:
    """Of a step's rows the remembered ones may move, with the label and the teachers' answers of where they lay."""
    schema = toys.schema_of(10, 10)
    student = toys.mlp(classes=3, schema=schema)
    ema = EmaTeacher(EmaOptions(), toys.context_of("ema", student))
    step = toys.make_step(student=student, teachers=[ema], snapshots=0, replay=12)
    for place in range(6):
        x = images(8) + place
        step.memory.insert(x, torch.arange(8) % 3, 0, student(x).detach())
    step.vicinal = VicinalRows(0, 2, seed=0, moved=1.0)
    step.vicinal.steady, step.vicinal.age = 1.0, 1
    fresh = images(4)
    before = step.memory.replayed.x.clone()
    plan = step.begin(fresh, torch.arange(4) % 3, 0)
    known = {row.numpy().tobytes() for row in before}
    stayed = [row.numpy().tobytes() in known for row in plan.x[4:]]
    assert len(stayed) == 12
    assert sum(stayed) < 6
    assert torch.equal(plan.x[:4], fresh)
    assert torch.equal(step.memory.replayed.x, before)
    with torch.no_grad():
        again = ema.logits(plan.x)
    apart = (again - plan.answers.logits[:, 0]).abs().amax(1)
    assert float(apart[:4].max()) < 1e-5
    assert [bool(far < 1e-5) for far in apart[4:]] == stayed


def test_before_the_first_snapshot_a_pool_of_snapshots_has_nothing_to_say() -> None:
    """Nobody is there to be asked about held-out records: nothing is drawn, and the steps go on."""
    step = toys.make_step(teachers=[], snapshots=1)
    step.vicinal = VicinalRows(12, 2, seed=0)
    for x, y in toys.batches(EVERY + 2, batch=4):
        assert step.begin(x, y, 0).drawn == 0
        step.memory.insert(x, y, 0, step.student(x).detach())


def test_a_student_learns_what_the_memory_does_not_show() -> None:
    """With six remembered records and a teacher that knows all, drawn rows bring the student nearer to the teacher."""
    oracle = Oracle(learned())
    x, _ = (torch.cat(part) for part in zip(*toys.batches(50, seed=5), strict=True))

    def apart(rows: int) -> float:
        step = toys.make_step(teachers=[oracle], snapshots=0, seed=3, size=8, replay=6)
        step.vicinal = VicinalRows(rows, 0, seed=0)
        for part in toys.batches(1, batch=6, seed=1) * 200:
            step.vicinal.mass, step.vicinal.age = 1.0, 1
            toys.train(step, *part)
        with torch.no_grad():
            return float((torch.softmax(step.student(x), 1) - torch.softmax(oracle.logits(x), 1)).abs().mean())

    assert apart(20) < apart(0)
