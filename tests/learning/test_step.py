"""A step: its order, what it asks and stores, and layers that losses name."""

import copy
import gc
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import toys
from torch import Tensor

from streamkd.errors import PluginError
from streamkd.gates.likelihood import LikelihoodGate, LikelihoodOptions
from streamkd.learning.batch import StepBatch
from streamkd.learning.host import Hosted
from streamkd.learning.step import Step
from streamkd.learning.terms import Term
from streamkd.losses.match_gate import LossInputs, MatchGate, MatchGateOptions
from streamkd.replay.memory import Memory
from streamkd.replay.rows import StepRows
from streamkd.teachers.answers import Answers
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import EmaOptions, EmaTeacher


class Reads:
    """A loss that reads layers of the student and of a teacher."""

    def __init__(self, layers: tuple[str, ...], teacher_layers: Mapping[str, tuple[str, ...]]) -> None:
        self.layers, self.teacher_layers = layers, teacher_layers
        self.seen: list[LossInputs] = []

    def __call__(self, lesson: LossInputs) -> Tensor:
        self.seen.append(lesson)
        return sum(v.pow(2).flatten(1).mean(1) for v in lesson.features.values())  # type: ignore[return-value]


def with_terms(*terms: Term) -> Step:
    student = toys.mlp()
    memory = Memory(20, 0.25, 8, 0)
    pool = Pool([EmaTeacher(EmaOptions(), toys.context_of("ema", student))], None, memory, limit=8, limit_bytes=1 << 30)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return Step(student, optimizer, memory, pool, toys.scorer(), terms, replay=5)


def test_fresh_rows_come_first_and_replayed_ones_behind() -> None:
    """The plan's rows are the batch as it arrived, then remembered rows, with their labels."""
    step = toys.make_step()
    for x, y in toys.batches(5):
        toys.train(step, x, y)
    x, y = toys.batches(1, seed=9)[0]
    plan = step.begin(x, y, 3)
    assert plan.fresh == len(y)
    assert plan.task == 3
    assert torch.equal(plan.x[:8], x)
    assert torch.equal(plan.y[:8], y)
    held = {tuple(row) for row in step.memory.replayed.x.tolist()}
    assert len(plan.x) == 8 + 6
    assert {tuple(row) for row in plan.x[8:].tolist()} <= held


def test_the_gate_is_told_how_often_each_label_was_learned() -> None:
    """Never for fresh rows and drawn ones; a remembered one as it came, and once a step that replayed it."""
    step = toys.make_step(replay=4)
    counts: Counter[tuple[float, ...]] = Counter()
    for x, y in toys.batches(8):
        plan = step.begin(x, y, 0)
        evidence = step.evidence(plan, step.student(plan.x))
        assert evidence.met is not None
        end = plan.records
        rows = [tuple(row) for row in plan.x[:end].tolist()]
        assert evidence.met[end:].tolist() == [0] * (len(plan.y) - end)
        assert evidence.met[:end].tolist() == [counts[row] for row in rows]
        counts.update(row for number, row in enumerate(rows) if number not in plan.offer.untaught)
        step.finish(plan, step.student(plan.x))


def test_the_memory_keeps_what_the_student_said_before_it_learned() -> None:
    """Remembered logits are those that the arriving rows met, not those after the update."""
    step = toys.make_step(size=1000, holdout_ratio=0.0, replay=0)
    x, y = toys.batches(1)[0]
    before = step.student(x).detach()
    toys.train(step, x, y)
    torch.testing.assert_close(step.memory.replayed.logits[:8].float(), before, rtol=2e-3, atol=2e-3)


def test_the_loss_is_the_weighted_mean_of_its_terms() -> None:
    """Σ weight · mean over rows."""
    reads = Reads(("body.hidden.0",), {})
    gate_loss = MatchGate(MatchGateOptions())
    step = with_terms(Term(gate_loss, 0.5), Term(reads, 2.0))
    x, y = toys.batches(1)[0]
    plan = step.begin(x, y, 0)
    lesson = step.weigh(plan, step.forward(plan))
    torch.testing.assert_close(step.loss(lesson), 0.5 * gate_loss(lesson).mean() + 2 * reads(lesson).mean())


def test_losses_get_the_layers_that_they_name() -> None:
    """The student's for all rows, with gradient; the teacher's for fresh rows, without."""
    reads = Reads(("body.hidden.0",), {"ema": ("body.head",)})
    step = with_terms(Term(MatchGate(MatchGateOptions()), 1.0), Term(reads, 1.0))
    for x, y in toys.batches(4):
        toys.train(step, x, y)
    lesson = reads.seen[-1]
    assert lesson.features["body.hidden.0"].shape == (8 + 5, 8)
    assert lesson.features["body.hidden.0"].requires_grad
    assert lesson.teacher_features["ema"]["body.head"].shape == (8, 3)
    assert not lesson.teacher_features["ema"]["body.head"].requires_grad


def test_a_layer_that_the_student_lacks_is_refused_at_once() -> None:
    """Not at the first step, but when the parts are wired."""
    with pytest.raises(PluginError, match=r"no layer 'body\.tail'"):
        with_terms(Term(Reads(("body.tail",), {}), 1.0))


def test_what_will_be_replayed_is_written_after_it_was_learned() -> None:
    """A row does not stand beside itself in its own step."""
    step = toys.make_step()
    x, y = toys.batches(1)[0]
    plan = step.begin(x, y, 0)
    step.weigh(plan, step.forward(plan))
    assert step.memory.replayed.x is None
    assert len(plan.x) == 8


def test_rows_that_are_held_out_teach_nobody() -> None:
    """They have no weight, so that the student's gradient is that of the other rows; teachers do not observe them."""
    step = toys.make_step(holdout_ratio=0.5)
    observed: list[Tensor] = []
    step.pool.observe = lambda x, y, learn, then: observed.append(x[learn])  # type: ignore[method-assign]
    for x, y in toys.batches(5):
        plan = step.begin(x, y, 0)
        lesson = step.weigh(plan, logits := step.forward(plan))
        held = list(plan.offer.held.values())
        assert not lesson.weights[held].any()
        step.loss(lesson).backward()
        step.finish(plan, logits)
        assert len(observed[-1]) == 8 - len(held)
    holdout = step.memory.holdout
    assert holdout.filled > 5
    assert not any((row == seen).all() for row in holdout.x[: holdout.filled] for seen in torch.cat(observed))


def test_what_is_held_out_no_more_is_learned_then() -> None:
    """Who makes room teaches those that learn whenever rows come, once, and may be replayed from then on."""
    step = toys.make_step(size=24, holdout_ratio=0.5)
    taught: list[Tensor] = []
    step.pool.observe_released = lambda x, y: taught.append(x)  # type: ignore[method-assign]
    step.pool.observe = lambda x, y, learn, then: None  # type: ignore[method-assign]
    held: set[tuple[float, ...]] = set()
    for x, y in toys.batches(12):
        *_, (_, step_taken) = step.take(x, y, 0)
        held |= {tuple(row) for row in x[step_taken.plan.offer.untaught].tolist()}
    released = [tuple(row) for row in torch.cat(taught).tolist()]
    assert len(released) == len(set(released)) > 10
    memory = step.memory
    holdout, replayed = (
        {tuple(row) for row in ring.x[: ring.filled].tolist()} for ring in (memory.holdout, memory.replayed)
    )
    assert held - holdout >= {*released}
    assert replayed & {*released}


def test_an_abandoned_step_leaves_the_memory_as_it_was() -> None:
    """Rows of a step whose loss was not finite are neither held out nor replayed."""
    step = toys.make_step(size=80)
    x, y = toys.batches(1)[0]
    toys.train(step, x, y)
    before = {
        ring: (ring.filled, ring.x[: ring.filled].clone()) for ring in (step.memory.replayed, step.memory.holdout)
    }
    x, y = toys.batches(1, seed=1)[0]
    plan = step.begin(x, y, 0)
    step.weigh(plan, step.forward(plan))
    step.abandon(plan)
    for ring, (filled, rows) in before.items():
        assert ring.filled == filled
        assert torch.equal(ring.x[:filled], rows)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_clipping_is_torchs_global_norm(clip: Any) -> None:
    """With ``clip_norm`` the gradients' global norm is at most that."""
    step = toys.make_step(clip_norm=clip)
    x, y = toys.batches(1)[0]
    plan = step.begin(x, y, 0)
    step.loss(step.weigh(plan, step.forward(plan))).backward()
    free = torch.stack([p.grad.norm() for p in step.parameters]).norm()
    step.clip()
    norm = torch.stack([p.grad.norm() for p in step.parameters]).norm()
    assert norm <= clip if clip else norm == free


def test_of_a_row_without_label_those_speak_who_know_every_class() -> None:
    """A teacher that lacks a class would take its rows for others; only where nobody knows all, any speaks."""
    step = toys.make_step(classes=3, snapshots=0)
    x, y = toys.batches(1)[0]
    y[:4] = -1
    answers = torch.zeros(len(y), 2, 3)
    known = torch.ones(len(y), 2, 3, dtype=torch.bool)
    known[:, 1, 2] = False
    known[2:4, 0, 0] = False
    plan = StepBatch(StepRows.of(x, y), {"arrived": len(y)}, 0, Answers(answers, known), unlabelled=True)
    heard = step.evidence(plan, torch.zeros(len(y), 3)).heard
    assert heard[:4].tolist() == [[True, False], [True, False], [True, True], [True, True]]
    assert heard[4:, 1].tolist() == (y[4:] != 2).tolist()


def test_what_is_said_of_records_that_came_before_tells_nothing_of_their_labels() -> None:
    """The first pass is heard, where a gate asks of label noise; the second, of records learned by then, is not."""
    step = toys.make_step(gate=toys.scorer(), size=80)
    drawn = toys.batches(12)
    for x, y in drawn:
        toys.train(step, x, y)
    heard = step.pool.label_noise.state_dict()["count"]
    assert heard > 0
    for x, y in drawn:
        toys.train(step, x, y)
    assert step.pool.label_noise.state_dict()["count"] == heard


EVENTS = ["before_training_iteration", "before_forward", "after_forward", "before_backward", "after_backward"]
UPDATE = ["before_update", "after_update"]


def test_a_step_has_one_order_and_a_listener_may_add_to_its_loss() -> None:
    """The events by Avalanche's names; what is added before the backward pass moves the student."""
    plain, heavier = toys.make_step(), toys.make_step()
    x, y = toys.batches(1)[0]
    heard = []
    for (event, _), (_, taken) in zip(plain.take(x, y, 0), heavier.take(x, y, 0), strict=True):
        heard.append(event)
        if event == "before_backward":
            taken.loss = taken.loss + sum((p**2).sum() for p in heavier.parameters)
    assert heard == [*EVENTS, *UPDATE, "after_training_iteration"]
    assert not torch.equal(*(next(iter(step.student.parameters())) for step in (plain, heavier)))


@pytest.mark.parametrize("near", [0, 6])
def test_in_a_hosts_loop_it_is_the_same_step(near: int) -> None:
    """Who goes forward, back and on itself ends where the step does that goes on its own: student, average, memory.

    With rows from the vicinity too, and looks at held-out records.
    """
    alone, hosted = (toys.make_step(gate=LikelihoodGate(LikelihoodOptions())) for _ in range(2))
    for step in (alone, hosted):
        toys.vicinal(step, near, seed=1)
        toys.spare(step, 0.5)
    drawn = set()
    for x, y in toys.batches(16):
        drawn.add(alone.learn(x, y).plan.origins.get("vicinal", 0))
        hosted.optimizer.zero_grad()
        for event, taken in hosted.take(x, y, 0, Hosted(hosted.student(x), len(y))):
            if event == "before_backward":
                taken.loss.backward()
            if event == "before_update":
                hosted.optimizer.step()
    for one, other in ((alone.student, hosted.student), (alone.pool.average.student, hosted.pool.average.student)):
        for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert torch.equal(alone.memory.replayed.y, hosted.memory.replayed.y)
    assert torch.equal(alone.memory.holdout.x, hosted.memory.holdout.x)
    assert max(drawn) == near


def test_a_host_says_which_rows_the_memory_is_offered() -> None:
    """The others are taught on like any, and never seen again."""
    step = with_terms(Term(MatchGate(MatchGateOptions()), 1.0))
    (x, y), *_ = toys.batches(1)
    *_, (_, taken) = step.take(x, y, 0, Hosted(step.student(x), 3))
    assert taken.fresh == len(y) > 3
    assert len(step.memory) == 3


def test_nobody_is_weighed_for_a_hosts_answers() -> None:
    """They are its own model's; and it may have no answer at all to a row whose task has no head."""
    step = with_terms(Term(MatchGate(MatchGateOptions()), 1.0))
    (x, y), *_ = toys.batches(1)
    step.learn(x, y)
    before = step.mixture.last
    *_, (_, taken) = step.take(x, y, 0, Hosted(step.student(x), len(y)))
    assert not taken.skipped
    assert step.mixture.last is before is not None


def test_a_step_whose_loss_is_not_finite_has_no_update() -> None:
    """Nothing moves, and it is said; no graph is left."""
    step = toys.make_step()
    before = copy.deepcopy(step.student.state_dict())
    x, y = toys.batches(1)[0]
    heard = []
    for event, taken in step.take(x, y, 0):
        heard.append(event)
        if event == "before_backward":
            taken.loss = taken.loss * torch.inf
    assert heard == [*EVENTS, "after_training_iteration"]
    assert taken.skipped
    assert not taken.logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in step.student.state_dict().items())


@pytest.mark.parametrize("skipped", [False, True])
def test_a_step_that_is_over_leaves_no_graph(skipped: bool) -> None:
    """Taken or not: a graph that lives on would pin the shapes of parameters that grow."""
    step = toys.make_step(gate=toys.scorer(), adapter=toys.adapter_of(toys.scorer()))
    x, y = toys.batches(1)[0]
    for event, taken in step.take(x, y, 0):
        if event == "after_forward":
            graph = weakref.ref(taken.logits)  # what was computed, with how
        if event == "before_backward" and skipped:
            taken.loss = taken.loss * torch.inf
    gc.collect()
    assert graph() is None


def test_a_rehearsal_teaches_the_student_what_is_remembered_and_nobody_else() -> None:
    """By the gradient of its loss on those rows; the average follows; memory, gate and sources of what is new stay."""
    step = toys.make_step()
    for x, y in toys.batches(5):
        toys.train(step, x, y)
    twin = copy.deepcopy(step)
    kept = step.memory.replayed.x.clone()
    gate = copy.deepcopy(step.gate.state_dict())
    before = [p.detach().clone() for p in step.student.parameters()]
    average = [p.detach().clone() for p in step.pool.average.student.parameters()]
    assert step.rehearse(0)
    remembered = twin.memory.sample(twin.replay)
    assert remembered is not None
    moved = [p.detach() for p in step.student.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, moved, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(average, step.pool.average.student.parameters(), strict=True))
    assert torch.equal(step.memory.replayed.x, kept)
    assert all(torch.equal(gate[name], value) for name, value in step.gate.state_dict().items())
    loss = [_loss_on(one, remembered.x, remembered.y) for one in (twin, step)]
    assert loss[1] < loss[0]


def _loss_on(step: Step, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(step.student(x), y))


def test_there_is_nothing_to_rehearse_before_anything_is_remembered() -> None:
    """Nor is a step taken whose loss is not finite."""
    step = toys.make_step()
    assert not step.rehearse(0)
    for x, y in toys.batches(5):
        toys.train(step, x, y)
    with torch.no_grad():
        step.student.head.bias.fill_(torch.nan)
    before = [p.detach().clone() for p in step.student.body.hidden.parameters()]
    assert not step.rehearse(0)
    assert all(torch.equal(a, b) for a, b in zip(before, step.student.body.hidden.parameters(), strict=True))
