"""Copies of who followed the stream best: frozen, few, part of the state, and heard at once when they fit again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import toys

from streamkd import config as configuration
from streamkd.errors import ConfigError
from streamkd.incremental.crossed import CrossedOptions, CrossedTeacher
from streamkd.incremental.forgetting import ForgettingOptions, ForgettingTeacher
from streamkd.incremental.linear import LinearOptions, LinearTeacher
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.tree import pack, unpack
from streamkd.teachers.former import NEVER, FormerMaker, FormerOptions, FormerTeacher, superfluous
from streamkd.teachers.served import Served
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()
MADE = {
    "crossed": lambda: CrossedTeacher(CrossedOptions(sets=4), toys.context_of("crossed", toys.mlp())),
    "linear": lambda: LinearTeacher(LinearOptions(), toys.context_of("linear", toys.mlp())),
    "forgetting": lambda: ForgettingTeacher(ForgettingOptions(width=16), toys.context_of("forgetting", toys.mlp())),
}
EVERY = pytest.mark.parametrize("kind", MADE)


def maker() -> FormerMaker:
    return FormerMaker(FormerOptions(), toys.context_of("former", toys.mlp()))


def taught(kind: str, batches: int = 80) -> Any:
    one = MADE[kind]()
    for x, y in toys.batches(batches):
        one.test_then_train(x, y, torch.ones_like(y, dtype=torch.bool))
    return one


@EVERY
def test_a_copy_stays_as_it_was(kind: str) -> None:
    """Whatever the teacher learns after that; the copy itself learns nothing of what it answers."""
    one = taught(kind)
    copy, x = maker().take(one.part()), toys.batches(1, seed=9)[0][0]
    before = copy.logits(x)
    torch.testing.assert_close(before.softmax(1), one.logits(x).softmax(1), rtol=1e-3, atol=1e-4)
    for x2, y in toys.batches(20, seed=7):
        one.test_then_train(x2, 1 - y.clamp(max=1), torch.ones_like(y, dtype=torch.bool))
        copy.test_then_train(x2, y, torch.ones_like(y, dtype=torch.bool))
    assert torch.equal(copy.logits(x), before)
    assert not torch.equal(one.logits(x), before)


def test_labels_that_came_later_are_unknown_to_it() -> None:
    """It says never of them, and is no part of a version that needs answers to them."""
    copy, x = maker().take(taught("linear").part()), toys.batches(1)[0][0]
    before, classes = copy.logits(x), len(copy.known())
    copy.grow(range(classes + 2))
    assert torch.equal(copy.logits(x)[:, :classes], before)
    assert (copy.logits(x)[:, classes:] == NEVER).all()
    assert copy.known().tolist()[classes:] == [False, False]
    assert copy.part() is None


@EVERY
def test_a_copy_comes_back_with_the_state(kind: str) -> None:
    """Through a checkpoint, by the files that a version has: the same bits; without one that nobody can read now."""
    copy, x = maker().take(taught(kind).part()), toys.batches(1)[0][0]
    tree = unpack(pack({"copy": copy.state_dict()}))
    (again,) = maker().restored({copy.key: tree["copy"], "former-1": {**tree["copy"], "teacher": "gone"}})
    assert torch.equal(again.logits(x), copy.logits(x))
    assert torch.equal(again.known(), copy.known())
    assert again.key == copy.key == "former-0"


class Says(torch.nn.Module):
    """A part that answers a label for each of four rows."""

    teacher = "says"

    def __init__(self, *labels: int) -> None:
        super().__init__()
        self.labels, self.known = torch.tensor(labels), torch.ones(3, dtype=torch.bool)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(self.labels, 3).float()

    def write(self, directory: Path) -> dict[str, Any]:
        return {}


def test_of_the_two_most_alike_the_older_goes() -> None:
    """Alike in what they answer; where nothing is remembered, it is the oldest."""
    said = [(0, 0, 0, 0), (1, 1, 1, 2), (0, 1, 2, 0), (1, 1, 2, 2), (2, 2, 0, 0)]
    copies = [FormerTeacher("copy", Says(*labels), {}) for labels in said]
    assert superfluous(copies, toys.batches(1)[0][0][:4]) is copies[1]
    assert superfluous(copies, None) is copies[0]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 records by one rule, as many by its opposite, and 1,200 by the first again."""
    path = tmp_path_factory.mktemp("former") / "table.parquet"
    x = np.random.default_rng(0).normal(size=(3_600, 3))
    label = (x[:, 0] + x[:, 1] > 0) ^ (np.arange(3_600) // 1_200 == 1)
    pq.write_table(pa.table({**{f"c{n}": column for n, column in enumerate(x.T)}, "label": label.astype(int)}), path)
    return path


def learner(table: Path, *teachers: dict[str, Any]) -> Learner:
    """A small student that learns slowly, as the linear teacher beside it does."""
    tree = {
        "stream": {
            "source": {"name": "replay", "path": str(table), "order": "given", "test_ratio": 0.0},
            "records": {"inputs": [{"name": f"c{number}", "dtype": "float64"} for number in range(3)]},
        },
        "student": {"name": "mlp", "hidden": [4]},
        "optimizer": {"learning_rate": 0.0001},
        "memory": {"size": 40, "replay": 4},
        "vicinal": {"rows": 0},
        "adapt": {"every": 0, "on_task_steps": 0},
        "gate": {"name": "fixed"},
        "teachers": [{"name": "ema"}, {"name": "linear", "rates": [0.03]}, *teachers],
        "device": "cpu",
    }
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    source, _ = open_source(config, REGISTRY, schema)
    return Learner(config, REGISTRY, source, schema)


FORMER = {"name": "former", "every": 200, "limit": 4}


def answered(one: Learner, look: Callable[[], object] = lambda: None) -> np.ndarray:
    """Of every record whether it was answered rightly as it came; ``look`` is called after every step."""
    right = []
    while one.advance():
        look()
        assert one.last is not None
        assert one.step.mixture.last is not None
        right.append(one.step.mixture.last.mixed.argmax(1) == one.last.plan.y[: one.last.fresh].numpy())
    return np.concatenate(right)


def until(right: np.ndarray, level: float = 0.9, window: int = 50) -> int:
    """Records to the end of the first window of that accuracy."""
    means = np.convolve(right, np.ones(window) / window, "valid")
    return int(np.flatnonzero(means >= level)[0]) + window


@dataclass
class Followed:
    """A learner with copies at the end of the table, and what it was after 2,600 records."""

    right: np.ndarray
    copies: list[str]
    served: Any


@pytest.fixture(scope="module")
def followed(table: Path) -> Followed:
    one, found = learner(table, FORMER), Followed(np.empty(0), [], None)

    def look() -> None:
        if one.records == 2_600:
            found.copies = [teacher.key for teacher in one.step.pool.witnesses if isinstance(teacher, FormerTeacher)]
            found.served = one.served

    found.right = answered(one, look)
    return found


def test_a_rule_that_comes_again_is_known_at_once(table: Path, followed: Followed) -> None:
    """Within a quarter of the records that the opposite rule takes to be learned; without copies it takes as many."""
    for right, most in ((followed.right, 0.25), (answered(learner(table)), None)):
        new, again = until(right[1_200:2_400]), until(right[2_400:])
        assert new > 300
        assert again <= most * new if most else again > 300


def test_copies_are_few_and_may_be_served(followed: Followed) -> None:
    """A version holds the copy that fits, and is made of files."""
    assert len(followed.copies) == 4
    assert isinstance(followed.served, Served)
    assert set(followed.served.names) & set(followed.copies)


def test_stopped_and_resumed_it_is_as_if_never_stopped(table: Path) -> None:
    """Copies, when the next is due, weights and student: to the bit."""
    whole, stopped, resumed = (learner(table, FORMER) for _ in range(3))
    for one, records in ((whole, 1_270), (stopped, 1_070)):
        while one.records < records:
            one.advance()
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    while resumed.records < 1_270:
        resumed.advance()
    assert [t.key for t in resumed.step.pool.everybody] == [t.key for t in whole.step.pool.everybody]
    assert resumed.step.mixture.now.weights == whole.step.mixture.now.weights
    for ours, theirs in zip(resumed.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_there_is_one_keeper_of_copies(table: Path) -> None:
    """Two would keep the same."""
    one = learner(table, FORMER, {**FORMER, "id": "more"})
    with pytest.raises(ConfigError, match="at most one teacher of the kind former"):
        one.advance()
