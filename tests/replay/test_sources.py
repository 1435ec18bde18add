"""Sources of a step's further rows: what a step makes of them, and of those that break."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import toys

from streamkd.learning.step import Step
from streamkd.replay.rows import HeldOutFigures, StepRows
from streamkd.replay.sources import RowSources
from streamkd.strikes import STRIKES


class Fixed:
    """Brings the same rows at each step, and notes what it was shown."""

    def __init__(self, brought: Any) -> None:
        self.brought, self.shown = brought, list[StepRows]()

    def draw(self, rows: StepRows, held_out: Callable[[], HeldOutFigures]) -> Any:
        self.shown.append(rows)
        if isinstance(self.brought, Exception):
            raise self.brought
        return self.brought

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def step_with(*sources: Any, **settings: Any) -> Step:
    step = toys.make_step(**settings)
    step.sources = RowSources({f"source-{number}": source for number, source in enumerate(sources)})
    return step


def some(count: int, **more: Any) -> StepRows:
    return StepRows.of(torch.full((count, toys.FEATURES), 0.5), **more)


def test_rows_stand_in_the_order_of_their_sources_and_each_is_accounted_for() -> None:
    """Arrived, replayed, then each source's; the weights that are told of are those of records."""
    step = step_with(Fixed(some(3)), Fixed(None), Fixed(some(2, y=torch.tensor([0, 1]), mass=0.5)))
    for x, y in toys.batches(4):
        *_, (_, taken) = step.take(x, y, 0)
    plan = taken.plan
    assert plan.origins == {"arrived": 8, "replayed": 6, "source-0": 3, "source-2": 2}
    assert plan.y[-5:].tolist() == [-1, -1, -1, 0, 1]
    assert len(taken.weights) == plan.records == 14
    assert plan.unlabelled
    assert plan.rows.mass[-1] == 0.5 * plan.rows.mass[-3]
    assert float(plan.rows.mass.sum()) == pytest.approx(len(plan.y))


def test_a_source_is_shown_what_is_learned_and_nothing_that_is_held_out() -> None:
    """The rows of the sources before it, too."""
    first, second = Fixed(some(3)), Fixed(None)
    step = step_with(first, second, holdout_ratio=0.5)
    for x, y in toys.batches(6):
        plan = step.begin(x, y, 0)
        held = len(plan.offer.untaught)
        assert len(first.shown[-1]) == plan.records - held
        assert len(second.shown[-1]) == plan.records - held + 3
        known = first.shown[-1].x.tolist()
        assert not any(row in known for row in x[plan.offer.untaught].tolist())
        step.finish(plan, step.student(plan.x).detach())


def test_what_a_source_brings_is_learned_and_not_remembered() -> None:
    """With its label it moves the student; the memory, and teachers that learn from labels, get none."""
    rows = some(4, y=torch.zeros(4, dtype=torch.int64))
    with_rows, without = step_with(Fixed(rows)), step_with()
    for x, y in toys.batches(3):
        for step in (with_rows, without):
            toys.train(step, x, y)
    assert not torch.equal(with_rows.student.head.weight, without.student.head.weight)
    assert torch.equal(with_rows.memory.replayed.x, without.memory.replayed.x)


@pytest.mark.parametrize(
    ("brought", "said"),
    [
        (ValueError("no more"), "no more"),
        (torch.zeros(2, toys.FEATURES), "needed streamkd.api.StepRows, got Tensor"),
        (StepRows.of(torch.zeros(2, 5)), r"needed x torch.float32 \[6\] on cpu, got x torch.float32 \[5\] on cpu"),
        (StepRows.of(torch.zeros(2, toys.FEATURES).double()), "got x torch.float64"),
        (some(2, y=torch.tensor([0, 3])), r"needed columns in \[0, 3\) or -1, got \[0, 3\]"),
        (some(2, mass=-1.0), "needed a mass of 0 or more"),
        (StepRows.of(torch.full((2, toys.FEATURES), torch.inf)), "needed finite inputs"),
        (StepRows(torch.zeros(2, toys.FEATURES), *[torch.zeros(1)] * 3), r"needed y, mass and met of \[2\]"),
    ],
    ids=["raises", "tensor", "shape", "type", "label", "mass", "infinite", "length"],
)
def test_a_broken_source_hurts_only_itself(brought: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    """The step goes on without its rows, says why, and after three strikes does not ask any more; a restart neither."""
    broken, whole = Fixed(brought), Fixed(some(2))
    step = step_with(broken, whole)
    for x, y in toys.batches(STRIKES + 2):
        assert toys.train(step, x, y).isfinite()
    assert len(broken.shown) == STRIKES
    assert len(whole.shown) == STRIKES + 2
    assert "source of rows source-0, draw" in caplog.text
    assert "(3 of 3, then it is off)" in caplog.text
    assert re.search(said, caplog.text)
    again = RowSources({"source-0": broken, "source-1": whole})
    again.load_state_dict(copy.deepcopy(step.sources.state_dict()))
    assert again.strikes.counts == {"source-0": STRIKES}
