"""Memory: bounded, disjoint, fair, its own tensors, and the same future after a round trip."""

import copy
import random
import time
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamkd.errors import ConfigError, PluginError
from streamkd.replay.memory import MOST_HELD_OUT, Memory
from streamkd.replay.policy import ClassBalanced, Contents, Offered, Policy, Reservoir
from streamkd.replay.ring import Ring, whole

CPU = torch.device("cpu")
policies = pytest.mark.parametrize("policy", [Reservoir, ClassBalanced])


def memory(size: int = 50, policy: type[Policy] = ClassBalanced, ratio: float = 0.2, seed: int = 0) -> Memory:
    return Memory(size, ratio, 2, seed, policy())


def numbered(labels: list[int], start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x carries each record's number, so that it can be told again; logits carry its label."""
    x = torch.arange(start, start + len(labels), dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(labels, dtype=torch.int64)
    return x, y, torch.nn.functional.one_hot(y, 6).float()


def fill(target: Memory, labels: list[int], batch: int = 7) -> None:
    for start in range(0, len(labels), batch):
        x, y, logits = numbered(labels[start : start + batch], start)
        target.insert(x, y, 0, logits)


def numbers(ring: Ring) -> list[int]:
    return [] if ring.x is None else [int(v) for v in ring.x[: ring.filled, 0]]


def labels_of(ring: Ring) -> list[int]:
    return [] if ring.x is None else ring.y[: ring.filled].tolist()


def drawn(seed: int, count: int, classes: int = 4, skew: float = 1.0) -> list[int]:
    chances = torch.tensor([skew**c for c in range(classes)])
    return torch.multinomial(chances, count, True, generator=torch.Generator().manual_seed(seed)).tolist()


@policies
@given(seed=st.integers(0, 1000), size=st.integers(1, 60), ratio=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]))
def test_sizes_never_exceed_what_was_asked_for(policy: type[Policy], seed: int, size: int, ratio: float) -> None:
    """Replayed and held-out part together hold at most ``size``, at every prefix of the stream."""
    target = memory(size, policy, ratio, seed)
    labels = drawn(seed, 150)
    for start in range(0, 150, 10):
        x, y, logits = numbered(labels[start : start + 10], start)
        target.insert(x, y, 0, logits)
        assert len(target) <= size
        assert len(target.replayed) <= target.replayed.capacity
        assert len(target.holdout) <= target.holdout.capacity
    assert target.replayed.capacity + target.holdout.capacity == size


@policies
@given(seed=st.integers(0, 1000))
def test_held_out_records_are_never_replayed(policy: type[Policy], seed: int) -> None:
    """No record that is held out was ever in the replayed part, and what is drawn says where it is from."""
    target = memory(30, policy, 0.3, seed)
    replayed: set[int] = set()
    for start in range(0, 300, 10):
        x, y, logits = numbered(drawn(seed + start, 10), start)
        target.insert(x, y, 0, logits)
        replayed |= set(numbers(target.replayed))
        sample, query = target.sample(8), target.query(8)
        assert sample is None or {int(v) for v in sample.x[:, 0]} <= replayed
        assert query is None or not {int(v) for v in query.x[:, 0]} & replayed


@policies
@given(seed=st.integers(0, 1000), batch=st.integers(1, 40))
def test_each_record_is_learned_once_or_held_out(policy: type[Policy], seed: int, batch: int) -> None:
    """As it comes, or when it makes room; never both, and never neither."""
    target = memory(30, policy, 0.3, seed)
    learned: list[int] = []
    for start in range(0, 200, batch):
        x, y, logits = numbered(drawn(seed + start, batch), start)
        offer = target.hold(x, y, 0, lambda rows, logits=logits: logits[rows])  # type: ignore[misc]
        learned += [start + row for row in range(batch) if row not in offer.untaught]
        learned += [] if offer.released is None else offer.released.x[:, 0].int().tolist()
    assert sorted([*learned, *numbers(target.holdout)]) == [*range(start + batch)]


def test_who_makes_room_may_be_replayed_with_its_own_task() -> None:
    """In the turn of who took its place, its label and task beside it; what newer records contradict is let go."""
    target = Memory(40, 0.5, 2, 0, Reservoir())
    for task in range(20):
        x, y, logits = numbered(drawn(task, 10), 10 * task)
        if task == 10:
            target.holdout.contradicted[:] = True
            gone = set(numbers(target.holdout))
        target.insert(x, y, task, logits)
        tasks = target.replayed.task[: target.replayed.filled].tolist()
        assert tasks == [number // 10 for number in numbers(target.replayed)]
    assert any(number % 10 and number // 10 < 10 for number in numbers(target.replayed))
    assert not gone & set(numbers(target.replayed))


@policies
def test_rows_stay_together(policy: type[Policy]) -> None:
    """Each place holds one record's input, label, logits and task, whatever has been replaced."""
    target = memory(20, policy, 0.3)
    labels = drawn(3, 400)
    fill(target, labels)
    for ring in (target.replayed, target.holdout):
        rows = whole(ring)
        assert rows is not None
        assert [labels[int(v)] for v in rows.x[:, 0]] == rows.y.tolist()
        assert rows.logits().argmax(1).tolist() == rows.y.tolist()
        assert not isinstance(ring.policy, ClassBalanced) or [*ring.policy._labels] == rows.y.tolist()
        assert len(set(numbers(ring))) == ring.filled


def test_class_balance_follows_the_stream() -> None:
    """Two classes at a time: the memory is shared out evenly among the classes so far, however many of each came."""
    target = memory(61, ratio=0.0)
    for task, classes in enumerate([(0, 1), (2, 3), (4, 5)]):
        g = torch.Generator().manual_seed(task)
        labels = [classes[int(i)] for i in torch.randint(2, (400,), generator=g)]
        fill(target, labels)
        counts = Counter(labels_of(target.replayed))
        assert len(counts) == 2 * task + 2
        assert max(counts.values()) - min(counts.values()) <= 1
        assert sum(counts.values()) == 61


def test_a_rare_class_is_kept_whole() -> None:
    """CBRS: of a class that comes less often than its share nothing is lost."""
    target = memory(40, ratio=0.0)
    labels = [0] * 300
    rare = list(range(20, 300, 35))
    for place in rare:
        labels[place] = 1
    fill(target, labels)
    assert {n for n in numbers(target.replayed) if labels[n] == 1} == set(rare)


def test_a_class_that_was_pushed_out_comes_back() -> None:
    """With fewer places than classes, a class without a place takes one when it returns."""
    target = memory(3, ratio=0.0)
    fill(target, [0, 1, 2, 3, 4, 5] * 10)
    for label in range(6):
        fill(target, [label])
        assert label in labels_of(target.replayed)


def _chi_square(counts: list[int], expected: float) -> float:
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize(("policy", "classes"), [(Reservoir, 4), (ClassBalanced, 1), (ClassBalanced, 3)])
def test_every_record_has_the_same_chance(policy: type[Policy], classes: int) -> None:
    """A full memory is a uniform sample of the stream (within each class), early records and late ones alike.

    Chi-square over ten equal stretches of the stream; 27.9 is the 0.1 % quantile of nine degrees of freedom.
    """
    counts = [0] * 10
    total = 0
    for seed in range(60):
        target = memory(16, policy, 0.0, seed)
        fill(target, [i % classes for i in range(300)], batch=10)
        for number in numbers(target.replayed):
            counts[number // 30] += 1
            total += 1
    assert _chi_square(counts, total / 10) < 27.9


def test_the_held_out_share_is_a_fair_draw() -> None:
    """About ``holdout_ratio`` of the arriving records are offered to the held-out part."""
    target = Memory(100_000, 0.2, 2, 0, most_held_out=5000)
    fill(target, [0] * 5000, batch=500)
    assert abs(len(target.holdout) / 5000 - 0.2) < 0.02


def test_of_a_large_memory_a_few_hundred_records_are_held_out() -> None:
    """So that what is looked at does not grow with it, and all else is learned."""
    target = memory(100_000, ratio=0.2)
    fill(target, [0] * 5000, batch=500)
    assert len(target.holdout) == target.holdout.capacity == MOST_HELD_OUT
    assert target.replayed.capacity == 100_000 - MOST_HELD_OUT


@policies
def test_incremental_is_the_same_however_batches_are_cut(policy: type[Policy]) -> None:
    """Which records are kept depends on the stream and the seed, at every prefix, not on the batches."""
    one, many = memory(20, policy), memory(20, policy)
    labels = drawn(4, 120)
    for start in range(0, 120, 12):
        x, y, logits = numbered(labels[start : start + 12], start)
        one.insert(x, y, 0, logits)
        for row in range(12):
            many.insert(x[row : row + 1], y[row : row + 1], 0, logits[row : row + 1])
        assert numbers(one.replayed) == numbers(many.replayed)
        assert numbers(one.holdout) == numbers(many.holdout)


def test_a_batch_is_not_held_on_to() -> None:
    """The memory owns its rows: a huge batch may go, and later changes to it do not reach the memory."""
    target = memory(10)
    x, y, logits = numbered([0, 1] * 500)
    target.insert(x, y, 0, logits)
    for ring in (target.replayed, target.holdout):
        for tensor in columns_of(ring):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            assert len(tensor) == ring.capacity
    kept = numbers(target.replayed)
    x.zero_()
    assert numbers(target.replayed) == kept


def columns_of(ring: Ring) -> list[Tensor]:
    return [column for table in ring._tables.values() for column in table.columns.values()]


def test_what_is_drawn_is_a_copy() -> None:
    """Rows that were drawn stay as they are when their places are taken by others."""
    target = memory(10)
    fill(target, drawn(1, 50))
    sample = target.sample(6)
    assert sample is not None
    before = sample.x.clone()
    fill(target, drawn(2, 300))
    assert torch.equal(sample.x, before)


def test_draws_are_different_records() -> None:
    """A sample holds no record twice and at most what is there."""
    target = memory(30, ratio=0.0)
    assert target.sample(5) is None
    assert target.query(5) is None
    fill(target, drawn(1, 12))
    sample = target.sample(100)
    assert sample is not None
    assert len(set(sample.slots.tolist())) == len(sample.slots) == 12
    assert target.sample(0) is None


@policies
def test_it_is_counted_how_often_each_record_was_learned(policy: type[Policy]) -> None:
    """Once as it came or was released, and whenever it was sampled; one in a place that is taken over begins anew."""
    target = memory(10, policy, ratio=0.3)
    counts: Counter[int] = Counter()
    for start in range(0, 120, 6):
        x, y, logits = numbered(drawn(start, 6), start)
        before = set(numbers(target.replayed))
        target.insert(x, y, 0, logits)
        counts.update(set(numbers(target.replayed)) - before)
        sample = target.sample(4)
        target.query(2)
        assert sample is not None
        came = [int(number) for number in sample.x[:, 0]]
        assert sample.met().tolist() == [counts[number] for number in came]
        counts.update(came)


def test_a_memory_of_before_records_were_counted_restores(  # a state directory may be older than the counts
) -> None:
    """Its records count as not met again yet."""
    target, other = memory(20), memory(20)
    fill(target, drawn(5, 100))
    target.sample(8)
    state = as_of_old(target)
    del state["replayed"]["met"], state["holdout"]["met"]
    other.load_state_dict(state, CPU)
    sample = other.sample(8)
    assert sample is not None
    assert sample.met().tolist() == [1] * 8


def as_of_old(target: Memory) -> dict[str, Any]:
    """A state in the form that it had when it was one tensor for each column, and places were lists."""
    state = copy.deepcopy(target.state_dict())
    for ring in (state["replayed"], state["holdout"]):
        del ring["slots"]
        columns = dict(ring.pop("taken").columns) | dict(ring.pop("answers").columns) | ring.pop("noted")
        ring |= columns | {"answered": columns.pop("asked") > 0}
        if "sizes" in ring["policy"]:
            labels, sizes = zip(*ring["policy"].pop("sizes"), strict=True)
            parts = ring["policy"]["places"].split(sizes)
            ring["policy"]["places"] = [[label, *part.tolist()] for label, part in zip(labels, parts, strict=True)]
    return state


def test_growing_pads_what_is_cached() -> None:
    """New classes add columns of zeros; what was cached, and how wide the student was then, stays."""
    target = memory(20)
    x, y, logits = numbered([0, 1] * 30)
    target.insert(x, y, 0, logits[:, :2])
    before = copy.deepcopy(target.replayed.logits)
    target.grow(5)
    for ring in (target.replayed, target.holdout):
        assert ring.logits.shape[1] == ring.frozen.shape[2] == 5
        assert (ring.width[: ring.filled] == 2).all()
    assert torch.equal(target.replayed.logits[:, :2], before)
    assert (target.replayed.logits[:, 2:] == 0).all()
    x, y, logits = numbered([3, 4] * 30, 60)
    target.insert(x, y, 1, logits[:, :5])
    assert set(target.replayed.width[: target.replayed.filled].tolist()) == {2, 5}


def test_growing_an_empty_memory_is_nothing() -> None:
    """Classes may come before the first record is kept."""
    target = memory()
    target.grow(4)
    fill(target, [0, 1, 2])
    assert len(target) == 3


@policies
@pytest.mark.parametrize("before", [0, 5, 90])
def test_a_restored_memory_has_the_same_future(policy: type[Policy], before: int) -> None:
    """State → fresh memory: the same rows, the same draws, the same replacements from there on."""
    target, other = memory(20, policy, seed=1), memory(20, policy, seed=99)
    target.open(1)
    labels = drawn(5, 300)
    fill(target, labels[:before])
    other.load_state_dict(copy.deepcopy(target.state_dict()), CPU)
    for start in range(before, 300, 10):
        x, y, logits = numbered(labels[start : start + 10], start)
        for one in (target, other):
            one.insert(x, y, 0, logits)
        assert _same(target.sample(6), other.sample(6))
        assert _same(target.query(6), other.query(6))
        assert numbers(target.replayed) == numbers(other.replayed)
        assert numbers(target.holdout) == numbers(other.holdout)


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    parts = ((r.slots, r.x, r.y, r.logits(), r.width(), r.met(), *r.frozen(0)) for r in (one, other))
    return all(torch.equal(a, b) for a, b in zip(*parts, strict=True))


def test_a_restored_memory_may_have_more_or_fewer_places_for_answers() -> None:
    """The pool's limit may change at a restart; rows survive, and answers that still have their place."""
    target = memory(20)
    target.open(2)
    fill(target, drawn(5, 100))
    target.replayed.frozen[:, 1] = 3.0
    target.replayed.asked[:] = 1
    for state in (target.state_dict(), as_of_old(target)):
        for slots in (1, 4):
            other = Memory(20, 0.2, slots, 0)
            other.load_state_dict(copy.deepcopy(state), CPU)
            assert numbers(other.replayed) == numbers(target.replayed)
            assert other.replayed.asked[: other.replayed.filled].sum(1).unique().tolist() == [min(slots, 2)]


@policies
@pytest.mark.parametrize("seed", range(5))
def test_withdrawn_rows_leave_no_trace_among_the_others(policy: type[Policy], seed: int) -> None:
    """After any withdrawals, labels, places and rows of a memory still belong together, and it fills up again."""
    target = memory(20, policy, 0.25, seed)
    generator = torch.Generator().manual_seed(seed)
    for turn in range(30):
        y = torch.randint(4, (6,), generator=generator)
        x = y.float().unsqueeze(1).expand(-1, 3) + torch.rand(6, 3, generator=generator) / 2
        offer = target.hold(x, y, 0, lambda rows: torch.zeros(len(rows), 4))
        if turn % 3 == 1:
            target.withdraw(offer)
        else:
            left = offer.released
            x, y = (x, y) if left is None else (torch.cat([x, left.x]), torch.cat([y, left.y]))
            target.remember(offer, x, y, 0, torch.zeros(len(y), 4))
        for ring in (target.replayed, target.holdout):
            assert ring.filled <= ring.capacity
            if isinstance(ring.policy, ClassBalanced):
                places = sorted(place for mine in ring.policy._places.values() for place in mine)
                assert places == list(range(ring.filled))
                assert labels_of(ring) == [*ring.policy._labels]
            if ring.filled:
                assert torch.equal(ring.x[: ring.filled, 0].long(), ring.y[: ring.filled])
    assert len(target) == 20


def passes(target: Memory, rows: int, times: int, batch: int = 7) -> tuple[set[int], list[set[int]]]:
    """A stream of numbered records over and over, each time in another order: what was learned, and each held out."""
    learned: set[int] = set()
    both: list[set[int]] = []
    for turn in range(times):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(turn)).float().unsqueeze(1)
        for start in range(0, rows, batch):
            x = order[start : start + batch]
            y = (x[:, 0] % 3).long()
            offer = target.hold(x, y, 0, lambda of: torch.zeros(len(of), 3))
            learned |= {int(v) for row, v in enumerate(x[:, 0]) if row not in offer.untaught}
            if (left := offer.released) is not None:
                x, y = torch.cat([x, left.x]), torch.cat([y, left.y])
                learned |= {int(v) for v in left.x[:, 0]}
            target.remember(offer, x, y, 0, torch.zeros(len(y), 3))
            both.append(learned & set(numbers(target.holdout)))
    return learned, both


def test_what_is_held_out_is_not_learned_when_it_comes_again() -> None:
    """Over six passes nobody ever learns, or has learned, what is held out; all else is learned."""
    target = memory(50, ratio=0.2)
    learned, both = passes(target, 500, 6)
    assert not any(both)
    assert len(target.holdout) == target.holdout.capacity
    assert len(learned) == 500 - len(target.holdout)


def test_where_few_values_are_all_that_comes_each_is_learned() -> None:
    """Forty different inputs in a memory of fifty: they are no records, and the held-out part fills as ever."""
    target = memory(50, ratio=0.2)
    learned, _ = passes(target, 40, 30)
    assert len(learned) == 40
    assert len(target.holdout) == target.holdout.capacity


def test_twins_of_a_batch_are_held_out_together() -> None:
    """Of records that come twice in a row, both or neither of a pair may be learned."""
    target = memory(100, ratio=0.5)
    for start in range(0, 60, 3):
        x = torch.arange(start, start + 3).float().repeat(2).unsqueeze(1)
        target.duplicates.common = 0.0  # such a source is taken for chance in time
        offer = target.hold(x, torch.zeros(6, dtype=torch.int64), 0, lambda of: torch.zeros(len(of), 1))
        assert {row % 3 for row in offer.untaught} == {row % 3 for row in offer.held.values()}
        assert len(offer.untaught) == 2 * len(offer.held)
        assert not set(offer.untaught) & set(offer.rows)


def test_an_older_memory_knows_its_own_rows() -> None:
    """A state without marks: what is held out is recognised all the same, and what is replayed not held out."""
    before, after = memory(50), memory(50)
    fill(before, drawn(0, 200))
    state = as_of_old(before)
    del state["recognition"]
    for ring in ("replayed", "holdout"):
        del state[ring]["mark"]
    after.load_state_dict(state, CPU)
    for ring, twins in ((after.holdout, len(after.holdout)), (after.replayed, 0)):
        assert ring.x is not None
        x, y = ring.x[: ring.filled].clone(), ring.y[: ring.filled].clone()
        offer = after.hold(x, y, 0, lambda of: torch.zeros(len(of), 6))
        assert len(offer.untaught) == twins
        assert not offer.held


class Oldest:
    """Replaces whoever is oldest; numbers each row as it comes, and notes what it was shown."""

    columns = 1

    def __init__(self) -> None:
        self.shown: list[Contents] = []

    def places(self, rows: Offered, ring: Contents) -> list[int | None]:
        self.shown.append(copy.deepcopy(ring))
        filled, found = len(ring.y), list[int | None]()
        for count in range(ring.offered, ring.offered + len(rows.labels)):
            place = filled if filled < ring.capacity else int(ring.numbers[:, 0].argmin())
            filled += filled < ring.capacity
            ring.numbers[place, 0] = count
            found.append(place)
        return found


def test_a_policy_sees_what_is_offered_and_what_is_there() -> None:
    """Inputs, labels and ages of the places, how many rows came, and its own numbers as it wrote them."""
    policy = Oldest()
    target = Memory(6, 0.0, 2, 0, policy)
    fill(target, [0, 1, 2, 0, 1, 2, 3, 4], batch=2)
    *_, seen = policy.shown
    assert (seen.capacity, seen.offered) == (6, 6)
    assert [int(v) for v in seen.x[:, 0]] == [0, 1, 2, 3, 4, 5]
    assert seen.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert seen.age.tolist() == [4, 4, 2, 2, 0, 0]
    assert target.replayed.numbers[:, 0].tolist() == [6, 7, 2, 3, 4, 5]
    assert numbers(target.replayed) == [6, 7, 2, 3, 4, 5]


def test_a_policys_numbers_go_with_their_rows_and_are_kept() -> None:
    """Where a row is withdrawn the last one brings its number; restored, the next replacement is the same."""
    target, other = Memory(6, 0.0, 2, 0, Oldest()), Memory(6, 0.0, 2, 9, Oldest())
    fill(target, list(range(6)))
    target.replayed.drop([1])
    assert target.replayed.numbers[:5, 0].tolist() == [0, 5, 2, 3, 4]
    other.load_state_dict(copy.deepcopy(target.state_dict()), CPU)
    for one in (target, other):
        fill(one, [3, 3, 3])
    assert torch.equal(target.replayed.y, other.replayed.y)
    assert target.replayed.numbers.tolist() == other.replayed.numbers.tolist() == [[7], [5], [8], [3], [4], [6]]


@pytest.mark.parametrize("place", [-1, 3, 6])
def test_a_place_that_there_is_not_is_refused(place: int) -> None:
    """A policy that names no filled place nor the next free one is told what there is, and nothing is taken."""

    class Lost(Oldest):
        def places(self, rows: Offered, ring: Contents) -> list[int | None]:
            return [place] * len(rows.labels)

    target = Memory(6, 0.0, 2, 0, Lost())
    with pytest.raises(PluginError, match=rf"of the 0 filled ones, or the next of 6, got {place}"):
        fill(target, [0])
    assert not len(target)


@policies
def test_a_memory_of_before_policies_had_a_state_of_their_own_restores(policy: type[Policy]) -> None:
    """What a checkpoint had beside the rows then is the policy's: its replacements go on."""
    target, other = memory(20, policy), memory(20, policy, seed=9)
    fill(target, drawn(5, 100))
    state = as_of_old(target)
    for ring, books in ((state["replayed"], target.replayed), (state["holdout"], target.holdout)):
        policy_state = ring.pop("policy") or {"seen": [[0, books.offered]], "places": [], "full": []}
        del ring["offered"], ring["since"], ring["numbers"]
        ring |= policy_state
    other.load_state_dict(state, CPU)
    for one in (target, other):
        fill(one, drawn(6, 100))
    assert numbers(other.replayed) == numbers(target.replayed)
    assert numbers(other.holdout) == numbers(target.holdout)


def taken_bytes(target: Memory) -> int:
    """What the tensors of both rings take, and the policies' own accounts."""
    tables = [table for ring in (target.replayed, target.holdout) for table in ring._tables.values()]
    accounts = sum(2 * 4 * ring.filled for ring in (target.replayed, target.holdout))
    stamps = sum(table.changes.stamps.nbytes for table in tables)
    return accounts + stamps + sum(column.nbytes for table in tables for column in table.columns.values())


def images(count: int, seed: int) -> Tensor:
    return torch.randint(256, (count, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def show(target: Memory, seed: int, classes: int, count: int = 12) -> None:
    y = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    target.insert(images(count, seed), y, 0, torch.nn.functional.one_hot(y, classes).float())


@policies
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), size=st.integers(4_000, 20_000), ratio=st.sampled_from([0.0, 0.2]))
def test_bytes_are_never_exceeded(policy: type[Policy], seed: int, size: int, ratio: float) -> None:
    """Whatever comes, records, classes, teachers: all that is kept is within the bytes, and still belongs together."""
    target = Memory(None, ratio, 8, 0, policy(), bytes=size)
    classes, slots, dice = 2, 0, random.Random(seed)
    for number in range(30):
        event = dice.choice(["records", "records", "records", "class", "teacher"])
        classes, slots = classes + (event == "class"), min(8, slots + (event == "teacher"))
        target.open(slots)
        target.grow(classes)
        show(target, number, classes)
        assert taken_bytes(target) <= size
        for ring in (target.replayed, target.holdout):
            assert ring.filled <= ring.capacity
            assert not ring.filled or ring.logits[: ring.filled].argmax(1).tolist() == labels_of(ring)
            assert not isinstance(ring.policy, ClassBalanced) or [*ring.policy._labels] == labels_of(ring)


def test_who_goes_when_places_do_is_the_policys_choice() -> None:
    """Of a class-balanced memory the largest classes give; nothing of a rare class is lost."""
    target = Memory(None, 0.0, 8, 0, bytes=30_000)
    labels = [0, 1] * 100 + [2] * 5
    for start in range(0, len(labels), 5):
        y = torch.tensor(labels[start : start + 5])
        target.insert(images(5, start), y, 0, torch.zeros(5, 3))
    before = Counter(labels_of(target.replayed))
    target.open(8)
    after = Counter(labels_of(target.replayed))
    assert before[2] == after[2] == 5
    assert before[0] > after[0] + 10
    assert abs(after[0] - after[1]) <= 1
    assert len(target) == target.replayed.capacity


def test_a_large_bound_costs_nothing_before_it_is_needed() -> None:
    """A gibibyte of which ten records have come takes some kilobytes."""
    target = Memory(None, 0.2, 8, 0, bytes=1 << 30)
    show(target, 0, 3)
    assert 0 < taken_bytes(target) < 50_000
    assert target.replayed.capacity > 1_000_000


def test_bytes_for_no_record_are_refused() -> None:
    """What one takes is said, and the way out."""
    target = Memory(None, 0.2, 8, 0, bytes=100)
    with pytest.raises(ConfigError, match=r"one remembered record takes \d+ bytes, got 100"):
        show(target, 0, 3)


@policies
@pytest.mark.parametrize("before", [0, 3, 40])
def test_a_restored_memory_of_bytes_has_the_same_future(policy: type[Policy], before: int) -> None:
    """Also where classes and teachers come later, and rows go for them."""
    target, other = (Memory(None, 0.2, 4, seed, policy(), bytes=20_000) for seed in (1, 99))
    for number in range(before):
        show(target, number, 3)
    other.load_state_dict(copy.deepcopy(target.state_dict()), CPU)
    for number in range(before, 60):
        for one in (target, other):
            one.open(number // 20)
            show(one, number, 3 + number // 15)
        assert not target.replayed.slots or _same(target.sample(6), other.sample(6))
        assert all(torch.equal(*pair) for pair in zip(rows_of(target), rows_of(other), strict=True))


def rows_of(target: Memory) -> list[Tensor]:
    return [ring.x[: ring.filled] for ring in (target.replayed, target.holdout) if ring.x is not None]


def test_another_bound_at_a_restart_keeps_what_it_has_places_for() -> None:
    """Records of 500 places go on in fewer, in more, and in bytes; what is kept still belongs together."""
    before = memory(500, ratio=0.2)
    fill(before, drawn(0, 900))
    for after in (Memory(100, 0.2, 2, 0), Memory(2_000, 0.2, 2, 0), Memory(None, 0.2, 2, 0, bytes=30_000)):
        after.load_state_dict(copy.deepcopy(before.state_dict()), CPU)
        assert set(numbers(after.replayed)) <= set(numbers(before.replayed))
        assert len(after) == min(500, after.replayed.capacity + after.holdout.capacity)
        fill(after, drawn(1, 50))
        for ring in (after.replayed, after.holdout):
            assert ring.filled <= ring.capacity
            assert ring.logits[: ring.filled].argmax(1).tolist() == labels_of(ring)


def test_of_many_records_those_drawn_are_different_and_not_contradicted() -> None:
    """Also where half of them are contradicted; each of the others is as likely."""
    target = memory(4_000, ratio=0.0)
    fill(target, [0] * 4_000, batch=500)
    target.replayed.contradicted[::2] = True
    counts: Counter[int] = Counter()
    for _ in range(100):
        sample = target.sample(100)
        assert sample is not None
        assert len(set(sample.slots.tolist())) == 100
        counts.update(slot // 400 for slot in sample.slots.tolist())
        assert all(slot % 2 for slot in sample.slots.tolist())
    assert _chi_square([*counts.values()], 1_000) < 27.9


@policies
def test_a_step_costs_the_same_however_much_is_remembered(policy: type[Policy]) -> None:
    """Taking rows of a new class and drawing some: of 100 times the records it takes less than five times as long."""
    seconds = []
    for size in (500, 50_000):
        target = memory(size, policy, ratio=0.0)
        fill(target, [0, 1] * (size // 2 + 100), batch=1_000)
        seconds.append(min(_seconds(target, turn) for turn in range(30)))
    assert seconds[1] < 5 * seconds[0]


def _seconds(target: Memory, turn: int) -> float:
    x, y, logits = numbered([turn % 4] * 10, 10 * turn)
    begun = time.perf_counter()
    target.insert(x, y, 0, logits)
    target.sample(10)
    return time.perf_counter() - begun


def test_places_of_the_held_out_part_stay_when_nothing_that_arrives_is_held_out() -> None:
    """A query of its own may fill them (as phase 2 does), whether records bound the memory or bytes."""
    for bound in ({"size": 100}, {"size": None, "bytes": 100_000}):
        memory = Memory(bound.get("size"), 0.2, 1, seed=0, bytes=bound.get("bytes", 0))
        places = memory.holdout.capacity
        memory.holdout_ratio = 0.0
        memory.insert(torch.randn(10, 3), torch.zeros(10, dtype=torch.int64), 0, torch.zeros(10, 1))
        assert memory.holdout.filled == 0
        assert memory.holdout.capacity == places > 0
