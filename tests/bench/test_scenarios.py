"""The scenarios of the gate: pools that can be built, and teachers that are wrong where they are said to be."""

from typing import Any

import pytest
import torch
from torch import Tensor

from streamkd import config as configuration
from streamkd.bench import scenarios, streams
from streamkd.plugins import Registry
from streamkd.teachers.teacher import TeacherContext
from streamkd.wiring import student_of

REGISTRY = Registry.load()


DATA = streams.arrays(streams.config_of(scenarios.tree("clean", "digits", chosen_on=True), REGISTRY, 0), REGISTRY)
X, Y = (torch.cat([getattr(part, name) for part in DATA.test]) for name in ("x", "y"))


def _logits(nature: str, **changed: Any) -> Tensor:
    """What an outside teacher says of the test records of digits, under a changed configuration."""
    return _teacher(nature, **changed).logits(X)


def _teacher(nature: str, **changed: Any) -> Any:
    made = {**scenarios.tree("clean", "digits", chosen_on=True), **changed}
    registry = scenarios.registry_for(made, 0)
    student = student_of(streams.config_of(made, registry, 0), registry, DATA.schema, 2)
    context = TeacherContext(nature, student, DATA.schema, DATA.labels, torch.device("cpu"))
    options = scenarios.OutsideOptions(nature=nature, task=1)
    return registry.kind("teachers", "outside", "teachers.2").make(options, context)


@pytest.mark.parametrize("stream", ["digits", "split-mnist-5k"])
@pytest.mark.parametrize("scenario", scenarios.NAMES)
def test_every_scenario_is_a_configuration(scenario: str, stream: str) -> None:
    """Its teachers are known to its registry, the base pool comes first, and the gate is the default."""
    made = scenarios.tree(scenario, stream)
    config = configuration.from_tree({**made, "seed": 0}, scenarios.registry_for(made, 0))
    assert [teacher.name for teacher in config.teachers[:2]] == ["ema", "memory"]
    assert "gate" not in made


def test_a_scenario_changes_only_what_it_names() -> None:
    """Beside teachers and pool, label noise and growth alone touch anything: their source."""
    plain = scenarios.tree("clean", "digits")
    for scenario in scenarios.NAMES:
        made = scenarios.tree(scenario, "digits")
        changed = {key for key in made if made[key] != plain[key]}
        assert changed <= ({"stream"} if scenario in ("label-noise", "growth") else {"teachers"}) | {"teachers"}


def test_the_permuted_teacher_is_sure_and_wrong() -> None:
    """It is confident, and nearly never right."""
    said = torch.softmax(_logits("permuted"), 1).max(1)
    assert (said.indices == Y).double().mean() < 0.1
    assert said.values.mean() > 0.8


def test_the_half_teacher_is_right_on_half_of_the_classes() -> None:
    """Of ten classes it knows five well, and the others not at all."""
    said = _logits("half").argmax(1)
    right = torch.tensor([float((said[c == Y] == c).double().mean()) for c in range(10)])
    assert (right > 0.7).sum() == 5
    assert (right < 0.15).sum() == 5


def test_the_partial_teacher_knows_half_of_the_classes_and_says_so() -> None:
    """Five of ten, and of these it is right."""
    known = _teacher("partial").known()
    assert int(known.sum()) == 5
    said = _logits("partial").masked_fill(~known, -torch.inf).argmax(1)
    assert (said[known[Y]] == Y[known[Y]]).double().mean() > 0.85


def test_an_expert_is_right_on_its_task_alone() -> None:
    """The teacher of the second task is right on its two classes and on no others."""
    right = _logits("expert").argmax(1) == Y
    mine = torch.isin(Y, DATA.test[1].y)
    assert right[mine].double().mean() > 0.85
    assert right[~mine].double().mean() < 0.1


def test_the_random_teacher_learned_nothing() -> None:
    """It is near chance, and no less confident than chance is."""
    said = torch.softmax(_logits("random"), 1).max(1)
    assert (said.indices == Y).double().mean() < 0.35
    assert said.values.mean() > 0.2


def test_other_gates_hear_the_same_teacher() -> None:
    """A teacher from outside is made of stream, student and seed: not of the gate that listens."""
    first, second = (_logits("permuted", gate=gate) for gate in ({"name": "per-sample"}, {"name": "fixed"}))
    assert torch.equal(first, second)
