"""The pool: cached answers are the asked ones, budgets hold, slots are never stale, a step costs no more with more."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from streamkd.errors import ConfigError, PluginError
from streamkd.incremental.linear import LinearOptions, LinearTeacher
from streamkd.learning.step import Step
from streamkd.losses.match_gate import soft_answers
from streamkd.strikes import STRIKES
from streamkd.teachers.admission import Worth, WorthOptions
from streamkd.teachers.guard import Guard
from streamkd.teachers.pool import Pool
from streamkd.teachers.snapshot import SnapshotTeacher
from streamkd.teachers.teacher import Role, copy_of


class Counted:
    """A frozen teacher as a plugin would bring it, that counts how often it is asked, and about which records."""

    role: Role = "frozen"

    def __init__(self, key: str, student: Any) -> None:
        self.key, self.fresh = key, False
        self.student = copy_of(student)
        self.asked: list[tuple[float, ...]] = []
        self.calls = 0
        self._width = student.classes

    def logits(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.asked += [tuple(row) for row in x.tolist()]
        return nn.functional.pad(self.student(x), (0, self._width - self.student.classes))

    def known(self) -> Tensor:
        return torch.arange(self._width) < self.student.classes

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {}

    def grow(self, labels: Sequence[Any]) -> None:
        self._width = len(labels)

    def after_step(self, student: Any) -> None: ...

    def size_bytes(self) -> int:
        return 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def frozen(count: int, classes: int = 3) -> list[Counted]:
    return [Counted(f"f{k}", toys.mlp(classes, seed=10 + k)) for k in range(count)]


def run(step: Step, count: int, *, seed: int = 0, classes: int = 3, task: int = 0) -> None:
    for x, y in toys.batches(count, seed=seed, classes=classes):
        toys.train(step, x, y, task)


def test_cached_answers_are_what_the_teacher_would_say() -> None:
    """On remembered rows a frozen teacher's cached logits equal its own within float16."""
    teachers = frozen(2)
    step = toys.make_step(teachers=teachers, snapshots=0)
    run(step, 30)
    remembered = step.memory.sample(20)
    assert remembered is not None
    answers = step.pool.answers(remembered.x, 0, remembered, 3)
    assert answers.known.all()
    for k, teacher in enumerate(teachers):
        torch.testing.assert_close(answers.logits[:, k], teacher.student(remembered.x), rtol=2e-3, atol=2e-3)


def test_a_frozen_teacher_is_never_asked_twice_about_a_record() -> None:
    """However often a remembered record is replayed, it costs one question."""
    teachers = frozen(2)
    step = toys.make_step(teachers=teachers, snapshots=0)
    run(step, 80)
    for teacher in teachers:
        assert teacher.asked
        assert len(teacher.asked) == len(set(teacher.asked))


def test_questions_do_not_grow_with_the_pool() -> None:
    """Each frozen teacher is asked once a step at most, however many others there are."""
    for count in (1, 6):
        teachers = frozen(count)
        step = toys.make_step(teachers=teachers, snapshots=0)
        run(step, 64)
        assert {t.calls for t in teachers} == {teachers[0].calls}
        assert teachers[0].calls <= 64


def test_questions_do_not_grow_with_the_memory() -> None:
    """One who joins is asked about rows as they are replayed, not about all that is remembered."""
    step = toys.make_step(snapshots=2, size=2_000, replay=6, holdout_ratio=0.0)
    run(step, 150)
    step.pool.end_task(step.student)
    [snapshot] = [t for t in step.pool.teachers if isinstance(t, SnapshotTeacher)]
    asked = 0
    for x, y in toys.batches(20, seed=1):
        toys.train(step, x, y)
        slot = step.pool.cache.slots[snapshot.key]
        answered = int((step.memory.replayed.asked[:, slot] > 0).sum())
        assert 0 < answered <= asked + 6
        asked = answered


def test_fresh_rows_are_asked_only_of_those_who_want_it() -> None:
    """A frozen teacher with ``fresh`` answers arriving rows; without, it is masked there."""
    teachers = frozen(2)
    teachers[1].fresh = True
    step = toys.make_step(teachers=teachers, snapshots=0)
    x, y = toys.batches(1)[0]
    answers = step.begin(x, y, 0).answers
    assert not answers.known[:, 0].any()
    assert answers.known[:, 1].all()
    assert torch.equal(answers.logits[:, 1], teachers[1].student(x))


def test_the_memory_teacher_says_what_the_student_said() -> None:
    """Remembered rows carry the student's logits at arrival, masked to the classes that it had then."""
    step = toys.make_step(classes=2)
    x, y = toys.batches(1, classes=2)[0]
    said = step.student(x).detach()
    toys.train(step, x, y)
    step.student.grow(3)
    step.pool.grow([0, 1, 2])
    remembered = step.memory.sample(8)
    assert remembered is not None
    answers = step.pool.answers(remembered.x, 0, remembered, 3)
    which = step.pool.keys.index("memory")
    rows = [int((x == row).all(1).nonzero()) for row in remembered.x]
    torch.testing.assert_close(answers.logits[:, which, :2], said[rows], rtol=2e-3, atol=2e-3)
    assert answers.known[:, which].tolist() == [[True, True, False]] * len(rows)


def test_new_rows_are_masked_until_a_frozen_teacher_was_asked() -> None:
    """A replaced place never shows the answer that its former record had."""
    teachers = frozen(1)
    step = toys.make_step(teachers=teachers, snapshots=0, size=10, replay=8)
    for x, y in toys.batches(60):
        plan = step.begin(x, y, 0)
        known = plan.answers.known[plan.fresh :, 0].any(1)
        wanted = teachers[0].student(plan.x[plan.fresh :])
        torch.testing.assert_close(plan.answers.logits[plan.fresh :, 0][known], wanted[known], rtol=2e-3, atol=2e-3)
        step.finish(plan, step.forward(plan))


class Growing(Counted):
    """Versioned: whenever it has observed ``patience`` more rows, its answers change and its version rises."""

    role: Role = "versioned"

    def __init__(self, key: str, student: Any, patience: int = 40) -> None:
        super().__init__(key, student)
        self.version, self.patience = 0, patience
        self.observed: list[tuple[tuple[float, ...], int]] = []

    def observe(self, x: Tensor, y: Tensor) -> None:
        self.observed += zip([tuple(row) for row in x.tolist()], y.tolist(), strict=True)
        if len(self.observed) // self.patience > self.version:
            self.version += 1
            with torch.no_grad():
                self.student.body.head.weight.mul_(1.1)

    def end_task(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"student": self.student.state_dict(), "version": self.version, "observed": list(self.observed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.version, self.observed = state["version"], list(state["observed"])


def test_a_settled_teachers_cached_answers_are_never_those_of_an_older_version() -> None:
    """Whatever counts as known is what it says now, on fresh rows and on remembered ones."""
    teacher = Growing("g", toys.mlp())
    step = toys.make_step(teachers=[teacher], snapshots=0)
    cached = 0
    for x, y in toys.batches(60):
        plan = step.begin(x, y, 0)
        known = plan.answers.known[:, 0].any(1)
        assert known[: plan.fresh].all()
        cached += int(known[plan.fresh :].sum())
        torch.testing.assert_close(plan.answers.logits[known, 0], teacher.student(plan.x)[known], rtol=5e-3, atol=5e-3)
        toys.train(step, x, y)
    assert teacher.version == 11  # of 60 batches, less what was held out
    assert cached > 200


def test_a_settled_teacher_is_asked_about_remembered_rows_once_a_version() -> None:
    """About each row as it comes and as it is replayed first, and not again before it has changed."""
    teacher = Growing("g", toys.mlp(), patience=1000)
    step = toys.make_step(teachers=[teacher], snapshots=0)
    run(step, 40)
    assert max(Counter(teacher.asked).values()) == 2


def test_observing_teachers_see_the_fresh_rows_of_every_step_once() -> None:
    """Fresh rows with their columns, in order, never remembered ones."""
    teacher = Growing("g", toys.mlp())
    step = toys.make_step(teachers=[teacher], snapshots=0, holdout_ratio=0.0)
    run(step, 12, seed=4)
    rows = [(tuple(x), y) for xs, ys in toys.batches(12, seed=4) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]
    assert teacher.observed == rows


def test_a_teacher_that_fails_to_observe_hurts_only_itself() -> None:
    """Its failure is a strike; learning goes on."""

    class Deaf(Growing):
        def observe(self, x: Tensor, y: Tensor) -> None:
            raise RuntimeError("no")

    step = toys.make_step(teachers=[Deaf("deaf", toys.mlp())], snapshots=0)
    run(step, STRIKES + 1)
    assert step.pool.guard.of("deaf").failures.total() == STRIKES


class Tally(Counted):
    """Counts labels record by record, of whatever rows."""

    role: Role = "prequential"

    def __init__(self, key: str, student: Any) -> None:
        super().__init__(key, student)
        self.fresh, self.counts = True, torch.zeros(student.classes)

    def test_then_train(self, x: Tensor, y: Tensor, learn: Tensor) -> Tensor:
        said = []
        for label, learned in zip(y.tolist(), learn.tolist(), strict=True):
            said.append(self.counts.clone())
            if learned:
                self.counts[label] += 1
        return torch.stack(said)


def test_record_by_record_everything_taught_is_learned_once() -> None:
    """Rows that are held out or have no label are answered and not learned; the pool keeps the step's answers."""
    tally = Tally("t", toys.mlp(seed=10))
    step = toys.make_step(teachers=[tally], holdout_ratio=0.5)
    taught = 0
    for x, y in toys.batches(20):
        y[0] = -1
        before = tally.counts.clone()
        taken = [taken for _, taken in step.take(x, y, 0)][-1]
        rows = [row for row in range(1, 8) if row not in taken.plan.offer.untaught]
        taught += len(rows)
        assert tally.counts.sum() == taught
        assert torch.equal(step.pool.prequential["t"][: rows[0] + 1], before.repeat(rows[0] + 1, 1))


def test_a_prequential_teacher_is_asked_about_fresh_rows_alone() -> None:
    """Nobody asks it about remembered or held-out rows, so it has neither a worth nor an accuracy on them."""
    tally = Tally("t", toys.mlp(seed=10))
    step = toys.make_step(teachers=[*toys.make_step().pool.teachers, tally])
    drawn = toys.batches(20)
    for x, y in drawn:
        taken = [taken for _, taken in step.take(x, y, 0)][-1]
    known = taken.plan.answers.known[:, 2]
    assert known[:8].all()
    assert not known[8:].any()
    assert tally.asked == [tuple(row) for x, _ in drawn for row in x.tolist()]
    step.pool.end_task(step.student)
    assert set(step.pool.accuracy) & {"ema", "t"} == {"ema"}
    assert step.pool.facts(torch.device("cpu"))[2, 0] == 0.5


def test_a_step_that_is_not_taken_teaches_nobody() -> None:
    """No record of it is learned, and the answers are none of the step before."""
    tally = Tally("t", toys.mlp(seed=10))
    step = toys.make_step(teachers=[tally], holdout_ratio=0.0)
    first, second = toys.batches(2)
    for _ in step.take(*first, 0):
        pass
    for _ in step.take(torch.full_like(second[0], torch.inf), second[1], 0):
        pass
    assert tally.counts.sum() == len(first[1])
    assert step.pool.prequential == {}


@pytest.mark.parametrize("said", [torch.zeros(8, 2), torch.zeros(7, 3)])
def test_answers_of_another_shape_are_none(said: Tensor) -> None:
    """Who gives a row or a column too few is told, counted, and hurts nobody else."""

    class Short(Tally):
        def test_then_train(self, x: Tensor, y: Tensor, learn: Tensor) -> Tensor:
            return said

    step = toys.make_step(teachers=[Short("s", toys.mlp(seed=10)), Tally("t", toys.mlp(seed=11))])
    run(step, 5)
    assert set(step.pool.prequential) == {"t"}
    assert step.pool.guard.of("s").failures.total() == STRIKES


def test_a_settled_teachers_cache_goes_round() -> None:
    """A restored pool knows of what version its cached answers are: it asks neither too often nor too late."""
    step = toys.make_step(teachers=[Growing("g", toys.mlp())], snapshots=0)
    run(step, 30)
    other = restored(step, teachers=[Growing("g", toys.mlp())])
    for one in (step, other):
        run(one, 20, seed=3)
    ours, theirs = (one.pool.teachers[0] for one in (step, other))
    assert ours.asked[-len(theirs.asked) :] == theirs.asked
    for a, b in zip(step.student.parameters(), other.student.parameters(), strict=True):
        assert torch.equal(a, b)


class Broken(Counted):
    """A teacher that answers with numbers that are none."""

    def logits(self, x: Tensor) -> Tensor:
        said = super().logits(x)
        said[0] = torch.nan
        said[-1] = torch.inf
        return said


def test_answers_that_are_not_finite_are_not_heard() -> None:
    """A teacher's NaN or infinity is no knowledge: the row is masked, and the loss stays finite."""
    broken = Broken("b", toys.mlp())
    broken.fresh = True
    step = toys.make_step(teachers=[broken], snapshots=0, gate=toys.scorer(), holdout_ratio=0.0)
    for x, y in toys.batches(20):
        plan = step.begin(x, y, 0)
        lesson = step.weigh(plan, step.forward(plan))
        assert not plan.answers.known[0].any()
        assert (lesson.weights[0] == torch.tensor([1.0, 0.0])).all()
        assert step.loss(lesson).isfinite()
        step.finish(plan, lesson.logits)


def test_answers_beyond_float16_are_not_heard_from_the_cache() -> None:
    """What overflows the cache is masked, not infinite."""
    teacher = Counted("big", toys.mlp())
    with torch.no_grad():
        teacher.student.body.head.weight.mul_(1e8)
    step = toys.make_step(teachers=[teacher], snapshots=0)
    run(step, 20)
    remembered = step.memory.sample(10)
    assert remembered is not None
    answers = step.pool.answers(remembered.x, 0, remembered, 3)
    assert soft_answers(answers.logits, answers.known, 2.0).isfinite().all()
    assert answers.logits[answers.known].isfinite().all()


def snapshots_of(step: Step) -> list[str]:
    return [t.key for t in step.pool.teachers if isinstance(t, SnapshotTeacher)]


def end_tasks(step: Step, count: int) -> None:
    for task in range(count):
        run(step, 10, seed=task, task=task)
        step.pool.end_task(step.student)


def test_no_more_snapshots_than_their_limit() -> None:
    """After each task the pool has at most ``limit`` snapshots, the budget in count."""
    step = toys.make_step(snapshots=2)
    for task in range(6):
        end_tasks(step, 1)
        assert len(snapshots_of(step)) == min(task + 1, 2)
        assert len(step.pool.teachers) <= step.pool.limit


def test_no_more_teachers_than_the_pools_limit() -> None:
    """The pool's own limit holds for all teachers together; the configured ones stay."""
    step = toys.make_step(snapshots=5, limit=4)
    end_tasks(step, 6)
    assert step.pool.keys[:2] == ("ema", "memory")
    assert len(step.pool.teachers) == 4


def test_a_teacher_of_the_present_takes_no_place() -> None:
    """It is asked now and then and nothing of it is recorded: an average and its logits still fit a pool of two."""
    linear = LinearTeacher(LinearOptions(), toys.context_of("linear", toys.mlp()))
    step = toys.make_step(snapshots=5, limit=2)
    Pool([*step.pool.teachers, linear], None, step.memory, limit=2, limit_bytes=1 << 30)
    with pytest.raises(ConfigError, match="2 teachers are configured, the pool takes 1"):
        Pool([*step.pool.teachers, linear], None, step.memory, limit=1, limit_bytes=1 << 30)


def test_no_more_bytes_than_the_budget() -> None:
    """A pool over its bytes gives up snapshots until it fits."""
    one = toys.make_step()
    size = one.pool.bytes_of(one.pool.teachers[0])
    step = toys.make_step(snapshots=5, limit_bytes=3 * size)
    end_tasks(step, 6)
    assert sum(map(step.pool.bytes_of, step.pool.teachers)) <= 3 * size
    assert len(snapshots_of(step)) == 2


def test_a_snapshot_that_was_not_kept_is_not_announced() -> None:
    """Where the budget leaves no room at all, ``end_task`` says that nobody was admitted."""
    step = toys.make_step(snapshots=5, limit_bytes=1)
    run(step, 10)
    assert step.pool.end_task(step.student) is None
    assert snapshots_of(step) == []


def test_frozen_teachers_that_take_every_slot_leave_none_for_snapshots() -> None:
    """A pool full of configured teachers goes on without snapshots."""
    step = toys.make_step(teachers=frozen(3), limit=3, snapshots=2)
    end_tasks(step, 2)
    assert step.pool.keys == ("f0", "f1", "f2")


def test_a_candidate_below_chance_is_not_admitted() -> None:
    """Admission asks for held-out accuracy above chance by the margin."""
    step = toys.make_step()
    step.pool.admission = Worth(WorthOptions(margin=0.5))
    run(step, 8)
    for p in step.pool.average.student.parameters():
        p.zero_()
    step.pool.average.student.body.head.bias[0] = -1.0
    assert step.pool.end_task(step.student) is None
    step.pool.admission = Worth(WorthOptions())
    run(step, 60, seed=1)
    assert step.pool.end_task(step.student) == "snapshot-1"


def test_the_least_worthy_snapshot_goes_first() -> None:
    """Over the limit, whom the pool would miss least is evicted, the oldest only among equals."""
    step = toys.make_step(snapshots=3)
    end_tasks(step, 3)
    step.pool.snapshots.limit = 2
    step.pool.worth |= {"snapshot-0": 0.2, "snapshot-1": 0.1, "snapshot-2": 0.3}
    step.pool._evict(step.pool._too_many)
    assert snapshots_of(step) == ["snapshot-0", "snapshot-2"]
    step.pool.snapshots.limit = 1
    step.pool.worth |= {"snapshot-0": 0.2, "snapshot-2": 0.2}
    step.pool._evict(step.pool._too_many)
    assert snapshots_of(step) == ["snapshot-2"]


def test_more_teachers_than_the_pool_takes_are_refused() -> None:
    """The error names the key and the way out."""
    with pytest.raises(ConfigError, match="3 teachers are configured, the pool takes 2") as caught:
        toys.make_step(teachers=frozen(3), limit=2)
    assert caught.value.where == "pool.limit"


def test_a_reused_slot_serves_no_stale_answer() -> None:
    """Over many evictions, every answer that counts as known is the teacher's own."""
    step = toys.make_step(snapshots=2, limit=4, size=30)
    for task in range(8):
        run(step, 5, seed=task, task=task)
        step.pool.end_task(step.student)
        for batch in range(10):
            x, y = toys.batches(1, seed=100 + batch)[0]
            plan = step.begin(x, y, task)
            for k, teacher in enumerate(step.pool.teachers):
                if isinstance(teacher, SnapshotTeacher):
                    known = plan.answers.known[:, k].any(1)
                    wanted = teacher.student(plan.x)
                    torch.testing.assert_close(plan.answers.logits[known, k], wanted[known], rtol=5e-3, atol=5e-3)
            toys.train(step, x, y, task)


def test_worth_is_what_the_pool_would_lose() -> None:
    """Of two equal teachers neither is missed; one that alone knows is worth its likelihood."""
    good = _expert()
    same = Counted("a", good), Counted("b", good)
    poor = Counted("c", toys.mlp(seed=3))
    for teachers, missed in (([*same, poor], {"a": False, "b": False}), ([same[0], poor], {"a": True})):
        step = toys.make_step(teachers=teachers, snapshots=0, holdout_ratio=0.5)
        run(step, 20)
        step.pool.assess(step.student)
        for key, is_missed in missed.items():
            assert (step.pool.worth[key] > 0.1) == is_missed
        assert step.pool.accuracy["a"] > 0.85 > step.pool.accuracy["c"]


def _expert() -> Any:
    step = toys.make_step(teachers=[], snapshots=0, optimizer=("sgd", {"lr": 0.2}))
    run(step, 80, seed=8)
    return step.student


def test_facts_follow_the_pool() -> None:
    """One row per teacher, whoever comes and goes: held-out accuracy and 1 / (1 + age)."""
    step = toys.make_step(snapshots=2)
    for task in range(4):
        run(step, 10, seed=task)
        step.pool.end_task(step.student)
        facts = step.pool.facts(torch.device("cpu"))
        wanted = [[step.pool.accuracy[k], 1 / (1 + step.pool.ages[k])] for k in step.pool.keys]
        torch.testing.assert_close(facts, torch.tensor(wanted))


def test_without_teachers_there_is_only_the_label() -> None:
    """An empty pool is plain cross entropy."""
    step = toys.make_step(teachers=[], snapshots=0, replay=0, holdout_ratio=0.0)
    x, y = toys.batches(1)[0]
    wanted = torch.nn.functional.cross_entropy(step.student(x), y)
    torch.testing.assert_close(toys.train(step, x, y), wanted.detach())


def test_a_loss_that_reads_an_absent_teacher_is_told_so() -> None:
    """The error names the teacher and those that are there."""
    step = toys.make_step()
    with pytest.raises(PluginError, match="'cnn', which is not in the pool") as caught:
        step.pool.features(toys.batches(1)[0][0], {"cnn": ("head",)})
    assert caught.value.fix == "teachers here: ema, memory"


def restored(step: Step, **settings: Any) -> Step:
    """A fresh step that took the old one's memory, pool and student."""
    state = copy.deepcopy((step.student.state_dict(), step.memory.state_dict(), step.pool.state_dict()))
    other = toys.make_step(classes=step.student.classes, seed=50, **settings)
    other.student.load_state_dict(state[0])
    other.memory.load_state_dict(state[1], torch.device("cpu"))
    other.pool.load_state_dict(state[2], lambda n: toys.mlp(n), list(range(step.student.classes)))
    return other


def test_state_goes_round() -> None:
    """A restored pool has the same teachers in the same order, slots, worth, facts and answers, and the same future."""
    settings = {"snapshots": 3, "limit": 5, "size": 30}
    step = toys.make_step(**settings)
    end_tasks(step, 5)
    other = restored(step, **settings)
    assert other.pool.keys == step.pool.keys
    assert torch.equal(other.pool.facts(torch.device("cpu")), step.pool.facts(torch.device("cpu")))
    for task in range(3):
        for one in (step, other):
            run(one, 10, seed=20 + task)
            one.pool.end_task(one.student)
        assert other.pool.keys == step.pool.keys
        assert other.pool.cache.slots == step.pool.cache.slots
        assert other.pool.worth == step.pool.worth
        for a, b in zip(step.student.parameters(), other.student.parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_state_is_the_state_at_that_moment() -> None:
    """What a state says of the books does not change when learning goes on."""
    step = toys.make_step()
    end_tasks(step, 2)
    books = ("snapshots", "slots", "worth", "accuracy", "ages", "taken", "tickets")
    state = step.pool.state_dict()
    said = copy.deepcopy({k: state[k] for k in books})
    end_tasks(step, 2)
    assert said == {k: state[k] for k in books}


@pytest.mark.parametrize(("snapshots", "limit"), [(3, 3), (1, 5), (3, 8), (0, 5)])
def test_a_restart_may_change_the_budget(snapshots: int, limit: int) -> None:
    """With fewer places the least worthy snapshots go; with more, or none, learning goes on as well."""
    step = toys.make_step(snapshots=3, limit=5, size=30)
    end_tasks(step, 5)
    other = restored(step, snapshots=snapshots, limit=limit, size=30)
    assert len(snapshots_of(other)) == min(snapshots, limit - 2, 3)
    end_tasks(other, 3)
    assert len(other.pool.teachers) <= limit


def test_a_teacher_that_raises_is_off_after_three_strikes() -> None:
    """A failing teacher gives no answer, and it is not asked a fourth time."""

    class Broken(Counted):
        def logits(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    questions, broken = Guard(), Broken("broken", toys.mlp())
    answers = [questions.ask(broken, torch.zeros(2, 3), 3) for _ in range(STRIKES + 2)]
    assert answers == [None] * (STRIKES + 2)
    assert questions.of("broken").failures.total() == questions.of("broken").requests == STRIKES


def test_an_answer_of_another_shape_is_a_failure() -> None:
    """Logits that do not fit the label space are none."""
    questions, teacher = Guard(), Counted("wide", toys.mlp())
    assert questions.ask(teacher, torch.zeros(2, 3), classes=7) is None
    assert questions.of("wide").failures.total() == 1


def test_snapshots_are_tallied_together() -> None:
    """However many snapshots come and go, they are counted under one name, that of their choice."""
    step = toys.make_step(snapshots=2)
    for seed in range(5):
        run(step, 20, seed=seed)
        step.pool.end_task(step.student)
    assert set(step.pool.guard.tallies) <= {"ema", "memory", "snapshot"}
    assert step.pool.guard.of("snapshot").requests > 0


def test_a_candidate_makes_room_only_where_it_is_worth_as_much() -> None:
    """With every slot taken, a snapshot that the pool would miss is not given up for one that adds nothing."""
    step = toys.make_step(teachers=[], snapshots=1, limit=1, holdout_ratio=0.5, optimizer=("sgd", {"lr": 0.2}))
    for task in range(4):
        run(step, 10, seed=task, task=task)
        step.pool.end_task(step.student)
    [kept] = [t for t in step.pool.teachers if isinstance(t, SnapshotTeacher)]
    worth = step.pool.worth[kept.key]
    with torch.no_grad():
        for parameter in step.student.parameters():
            parameter.mul_(0.05)
    assert worth > 0.5
    assert step.pool.end_task(step.student) is None
    assert [t.key for t in step.pool.teachers] == [kept.key]
