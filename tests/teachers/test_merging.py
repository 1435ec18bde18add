"""Merging: the closest two are found, their mean stands for both, and the pool does so only where nothing is lost."""

import copy
from typing import Any

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamkd.learning.step import Step
from streamkd.students.networks import Student
from streamkd.teachers import merging
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import SnapshotTeacher, copy_of


def answers(seed: int, teachers: int = 4, classes: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(12, teachers, classes, generator=g, dtype=torch.float64)
    return logits, torch.rand(12, teachers, classes, generator=g) < 0.8


def oracle(one: Tensor, other: Tensor, known: Tensor) -> float:
    """Row by row, class by class, in words of the definition."""
    values = []
    for p_row, q_row, mask in zip(one, other, known, strict=True):
        if mask.sum() < 2:
            continue
        p, q = (torch.softmax(row[mask] / merging.TEMPERATURE, 0) for row in (p_row, q_row))
        values.append(float(((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2))
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(4))
def test_divergence_is_the_mean_of_both_directions(seed: int) -> None:
    """Over the classes that both know, tempered, as its definition says."""
    logits, known = answers(seed)
    both = known[:, 0] & known[:, 1]
    assert merging.divergence(logits[:, 0], logits[:, 1], both) == pytest.approx(
        oracle(logits[:, 0], logits[:, 1], both)
    )


@given(st.integers(0, 1000))
def test_divergence_is_no_less_than_none(seed: int) -> None:
    """Never negative, the same both ways, 0 of a teacher and itself, however its logits are shifted."""
    logits, known = answers(seed)
    both = known[:, 0] & known[:, 1]
    apart = merging.divergence(logits[:, 0], logits[:, 1], both)
    assert apart is not None
    assert apart >= 0
    assert apart == pytest.approx(merging.divergence(logits[:, 1], logits[:, 0], both))
    assert merging.divergence(logits[:, 0], logits[:, 0] + 3.0, both) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 1000), st.permutations(range(4)))
def test_the_closest_two_are_so_in_any_order(seed: int, order: list[int]) -> None:
    """Permuting the teachers permutes the pair."""
    logits, known = answers(seed)
    pair, permuted = merging.closest(logits, known), merging.closest(logits[:, order], known[:, order])
    assert pair is not None
    assert permuted is not None
    assert {order[place] for place in permuted} == set(pair)


def test_teachers_without_a_class_in_common_are_not_compared() -> None:
    """Nor is one alone."""
    logits, known = answers(0, teachers=2, classes=4)
    known[:, 0] = torch.tensor([True, True, False, False])
    known[:, 1] = torch.tensor([False, True, True, True])
    assert merging.closest(logits, known) is None
    assert merging.closest(logits[:, :1], known[:, :1]) is None


def snapshot(key: str, classes: int, seed: int, tasks: int = 1) -> SnapshotTeacher:
    return SnapshotTeacher(key, copy_of(toys.mlp(classes, seed=seed)), tasks)


def test_the_merged_weights_are_the_mean_of_all_that_it_stands_for() -> None:
    """Two mergers give the mean of three; labels that only the younger knows keep its rows."""
    one, two, three = snapshot("s-0", 3, 0), snapshot("s-2", 3, 1), snapshot("s-5", 4, 2)
    both = merging.merged(merging.merged(one, two), three)
    assert (both.key, both.tasks, both.student.classes) == ("s-0+5", 3, 4)
    parts = [dict(each.student.named_parameters()) for each in (one, two, three)]
    for name, parameter in both.student.named_parameters():
        mean = torch.stack([part[name][:3] if "head" in name else part[name] for part in parts]).mean(0)
        torch.testing.assert_close(parameter[:3] if "head" in name else parameter, mean)
    torch.testing.assert_close(both.student.body.head.weight[3], three.student.body.head.weight[3])


def test_merging_changes_neither_of_the_two() -> None:
    """What is merged is a copy."""
    one, two = snapshot("s-0", 3, 0), snapshot("s-1", 3, 1)
    before = copy.deepcopy([one.state_dict(), two.state_dict()])
    merging.merged(one, two)
    for was, now in zip(before, (one, two), strict=True):
        for name, value in was["student"].items():
            assert torch.equal(value, now.student.state_dict()[name])


def snapshots_of(step: Step) -> list[SnapshotTeacher]:
    return [t for t in step.pool.teachers if isinstance(t, SnapshotTeacher)]


def end_task(step: Step, seed: int) -> str | None:
    for x, y in toys.batches(10, seed=seed):
        toys.train(step, x, y, seed)
    return step.pool.end_task(step.student)


def good_step() -> Step:
    """A student that knows its records, half of which are held out; room for one snapshot."""
    step = toys.make_step(snapshots=1, holdout_ratio=0.5, teachers=[], optimizer=("sgd", {"lr": 0.2}))
    for x, y in toys.batches(80):
        toys.train(step, x, y)
    return step


def with_snapshots(step: Step, *students: Student) -> None:
    for number, student in enumerate(students):
        step.pool._join(SnapshotTeacher(f"snapshot-{number}", copy_of(student)))
    step.pool.annotate()
    step.pool.assess(step.student)


def beside(student: Student, direction: float) -> Student:
    """The student, its weights moved along a fixed random direction."""
    moved, g = copy.deepcopy(student), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += direction * torch.randn(parameter.shape, generator=g)
    return moved


def reordered(student: Student) -> Student:
    """The same function from weights in another order: the mean of the two makes no sense."""
    other = copy.deepcopy(student)
    first, last = (m for m in other.body.modules() if isinstance(m, torch.nn.Linear))
    order = torch.arange(first.out_features).roll(3)
    with torch.no_grad():
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        last.weight.copy_(last.weight[:, order])
    return other


def test_two_whose_mean_is_better_than_both_become_one() -> None:
    """On two sides of a good student: the pool over its budget keeps the mean, which is the student again."""
    step = good_step()
    with_snapshots(step, beside(step.student, 0.4), beside(step.student, -0.4))
    worth = max(step.pool.accuracy.values())
    assert step.pool._merge_closest(step.student)
    [both] = snapshots_of(step)
    assert (both.key, both.tasks) == ("snapshot-0+1", 2)
    for ours, theirs in zip(both.student.parameters(), step.student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    step.pool.assess(step.student)
    assert step.pool.accuracy[both.key] >= worth


def test_two_whose_mean_is_worse_stay_two() -> None:
    """The closest possible pair, two of one function, is not merged where the mean of their weights knows less."""
    step = good_step()
    with_snapshots(step, step.student, reordered(step.student))
    before = [each.key for each in snapshots_of(step)]
    assert not step.pool._merge_closest(step.student)
    assert [each.key for each in snapshots_of(step)] == before


def noisy_step(**settings: Any) -> Step:
    """A student whose steps are so large that the mean of its selves is often better than each."""
    defaults = {"snapshots": 2, "holdout_ratio": 0.5, "teachers": [], "size": 80, "seed": 4}
    return toys.make_step(**{**defaults, "optimizer": ("sgd", {"lr": 1.0}), **settings})


def test_a_pool_over_its_budget_merges_by_itself() -> None:
    """When tasks end; whoever stands for many is named after the first and the last, and snapshots stay by age."""
    step, most = noisy_step(), 1
    for task in range(8):
        end_task(step, task)
        ours = snapshots_of(step)
        assert len(ours) <= 2
        assert all(("+" in each.key) == (each.tasks > 1) for each in ours)
        ages = [step.pool.ages[each.key] for each in ours]
        assert ages == sorted(ages, reverse=True)
        most = max(most, *(each.tasks for each in ours))
    assert most > 1


@pytest.mark.parametrize("merge", [True, False])
def test_a_merged_snapshots_answers_are_its_own(merge: bool) -> None:
    """Cached answers after any number of mergers are what each snapshot says of the record; none with ``merge`` off."""
    step = noisy_step()
    step.pool.merge = merge
    for task in range(6):
        end_task(step, task)
        x, y = toys.batches(1, seed=100 + task)[0]
        plan = step.begin(x, y, task)
        for k, teacher in enumerate(step.pool.teachers):
            if isinstance(teacher, SnapshotTeacher):
                known = plan.answers.known[:, k].any(1)
                wanted = teacher.student(plan.x)
                torch.testing.assert_close(plan.answers.logits[known, k], wanted[known], rtol=5e-3, atol=5e-3)
        toys.train(step, x, y, task)
    assert merge or all(each.tasks == 1 for each in snapshots_of(step))


def test_a_pool_with_mergers_goes_round() -> None:
    """Restored, it has the same snapshots of as many tasks, and the same future."""
    step, other = noisy_step(), noisy_step()
    for task in range(8):
        end_task(step, task)
    assert any(each.tasks > 1 for each in snapshots_of(step))
    state = copy.deepcopy((step.student.state_dict(), step.memory.state_dict(), step.pool.state_dict()))
    other.student.load_state_dict(state[0])
    other.memory.load_state_dict(state[1], torch.device("cpu"))
    other.pool.load_state_dict(state[2], lambda classes: toys.mlp(classes), [0, 1, 2])
    for task in range(8, 12):
        assert end_task(step, task) == end_task(other, task)
    told = [[(each.key, each.tasks) for each in snapshots_of(one)] for one in (step, other)]
    assert told[0] == told[1]
    for a, b in zip(step.student.parameters(), other.student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_candidate_makes_room_only_where_it_is_worth_as_much() -> None:
    """With every slot taken, a snapshot that the pool would miss is not given up for one that adds nothing."""
    step = toys.make_step(teachers=[], snapshots=1, limit=1, holdout_ratio=0.5, optimizer=("sgd", {"lr": 0.2}))
    for task in range(4):
        end_task(step, task)
    [kept] = snapshots_of(step)
    worth = step.pool.worth[kept.key]
    with torch.no_grad():
        for parameter in step.student.parameters():
            parameter.mul_(0.05)
    assert worth > 0.5
    assert step.pool.end_task(step.student) is None
    assert [each.key for each in snapshots_of(step)] == [kept.key]


def test_pool_types() -> None:
    """A pool merges unless it is told not to."""
    assert Pool([], None, toys.make_step().memory, limit=1, limit_bytes=1).merge
