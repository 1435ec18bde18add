"""Spaces: what is drawn lies inside, what is applied is what stands there, and what does not fit says where and why."""

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from baselines import REGISTRY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamkd.config import Config, from_tree
from streamkd.document import Document
from streamkd.errors import ConfigError
from streamkd.tune.space import defaults, file
from streamkd.tune.space.domains import Categorical, Interval, Parameter
from streamkd.tune.space.places import Places
from streamkd.tune.space.space import Space
from streamkd.tune.study import suggest

STREAM: dict[str, Any] = {"source": {"name": "replay", "dataset": "digits"}}
CONFIG = from_tree({"stream": STREAM}, REGISTRY)
DEFAULT = file.load(None, CONFIG, REGISTRY)
GATES = """\
gate.name: {choice: [per-sample, fixed]}
gate.hard: {uniform: [0.1, 0.9], when: {gate.name: fixed}}
gate.floor: {uniform: [0.1, 0.5], when: {gate.name: [per-sample]}}
adapt.every: {loguniform: [2, 50], when: {gate.name: per-sample}}
"""


def configured(**tree: Any) -> Config:
    """The digits with other keys."""
    return from_tree({"stream": STREAM, **tree}, REGISTRY)


def space(text: str, config: Config = CONFIG) -> Space:
    """The space that a text writes."""
    return file.of(Document.parse(text, "space.yaml"), config, REGISTRY)


def one(text: str, config: Config = CONFIG) -> Parameter:
    """The only parameter of a space."""
    (parameter,) = space(text, config).parameters
    return parameter


def drawn(space: Space, seed: int) -> dict[str, Any]:
    """Values that Optuna draws."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
    return space.drawn(lambda one: suggest(trial, one))


def inside(space: Space, values: dict[str, Any]) -> bool:
    """Whether these are values of exactly the parameters that count, each of its domain."""
    active = {one.path: one for one in space.active(values)}
    return active.keys() == values.keys() and all(active[path].contains(values[path]) for path in values)


@st.composite
def intervals(draw: st.DrawFn) -> Parameter:
    """Parameters over intervals of every kind that can be written."""
    log, integer = draw(st.booleans()), draw(st.booleans())
    stepped = not log and draw(st.booleans())
    low = draw(st.integers(1 if log else -50, 50)) if integer else draw(st.floats(1e-6 if log else -50, 50))
    span = draw(st.integers(1, 200)) if integer else draw(st.floats(1e-3, 200))
    step = (max(1, span // 7) if integer else span / draw(st.integers(1, 9))) if stepped else None
    return Parameter("x", Interval(low, low + span, step, log), integer)


SEEDS = st.integers(0, 2**32 - 1)
KINDS = intervals() | st.lists(st.integers(), min_size=1, unique=True).map(
    lambda v: Parameter("x", Categorical(tuple(v)))
)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@pytest.mark.filterwarnings("ignore:The distribution is specified by")  # Optuna, of steps that miss the upper end
@given(KINDS, SEEDS)
def test_what_optuna_draws_lies_inside(parameter: Parameter, seed: int) -> None:
    """Whatever is drawn is of the domain, whole where the parameter has whole numbers alone, and told as it was."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
    value = suggest(trial, parameter)
    assert parameter.contains(value)
    assert isinstance(value, int) or not parameter.integer
    assert parameter.told(value) == pytest.approx(trial.params["x"])


@given(KINDS)
def test_the_ends_are_inside(parameter: Parameter) -> None:
    """Both ends and what is between are of the domain."""
    assert all(parameter.contains(value) for value in parameter.ends())


@pytest.mark.parametrize(
    ("value", "there"), [(1, True), (3, True), (2.0, True), (2.5, False), (4, False), (True, False), ("2", False)]
)
def test_what_is_inside_is_said_of_any_value(value: Any, there: bool) -> None:
    """Whole numbers of a whole interval are inside; fractions, switches, words and what is beyond it are not."""
    parameter = Parameter("x", Interval(1, 3), integer=True)
    assert parameter.contains(value) is there
    assert (parameter.told(value) is not None) is there


@few
@given(SEEDS)
def test_what_is_applied_is_what_stands_there(seed: int) -> None:
    """Values drawn of the default space are taken by the configuration, and read back from it."""
    values = drawn(DEFAULT, seed)
    assert inside(DEFAULT, values)
    assert DEFAULT.values_of(DEFAULT.apply(CONFIG, values, REGISTRY), REGISTRY) == values


@few
@given(SEEDS)
def test_conditional_values_are_there_under_their_condition(seed: int) -> None:
    """A parameter has a value exactly where its condition holds, and the configuration takes it."""
    gates = space(GATES)
    values = drawn(gates, seed)
    assert inside(gates, values)
    assert ("gate.hard" in values) == (values["gate.name"] == "fixed") != ("gate.floor" in values)
    assert gates.values_of(gates.apply(CONFIG, values, REGISTRY), REGISTRY) == values


CONFIGS = {
    "defaults": CONFIG,
    "sgd": configured(optimizer={"name": "sgd", "learning_rate": 2.0, "momentum": 0.9}),
    "fixed gate": configured(gate={"name": "fixed", "hard": 0.95}, vicinal={"rows": 7}),
    "two losses": configured(
        losses=[{"name": "kd"}, {"name": "feature", "weight": 30, "student": "body", "teacher": {"ema": "body"}}]
    ),
    "two of a name": configured(losses=[{"name": "kd"}, {"name": "kd", "weight": 0.5}], memory={"size": 10}),
    "an average by another name": configured(teachers=[{"name": "ema", "id": "slow", "decay": 0.9999}]),
    "no teachers": configured(teachers=[], memory={"replay": 0}),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_is_a_point_of_its_default_space(config: Config) -> None:
    """It stands inside every domain, and applying where it stands changes nothing at all."""
    found = file.load(None, config, REGISTRY)
    values = found.values_of(config, REGISTRY)
    assert found.parameters
    assert inside(found, values)
    assert found.apply(config, values, REGISTRY) == config
    for seed in range(3):
        found.apply(config, drawn(found, seed), REGISTRY)


def test_the_default_space_has_what_the_configuration_has() -> None:
    """What is switched off or has nothing to move is not searched; names that are shared become positions."""
    paths = {name: {p.path for p in file.load(None, config, REGISTRY).parameters} for name, config in CONFIGS.items()}
    assert paths["no teachers"] == {"optimizer.learning_rate"}
    assert {"gate.hard", "vicinal.rows"} <= paths["fixed gate"]
    assert not any(path.startswith("adapt.") for path in paths["fixed gate"])
    assert {"losses.0.temperature", "losses.1.temperature", "losses.1.weight"} <= paths["two of a name"]
    assert "losses.feature.weight" in paths["two losses"]
    assert "teachers.slow.decay" in paths["an average by another name"]
    assert {p.path for p in DEFAULT.parameters} == {
        "optimizer.learning_rate", "adapt.learning_rate", "adapt.every", "adapt.horizon", "gate.floor", "gate.hard",
        "losses.match-gate.temperature", "teachers.ema.decay", "memory.replay", "vicinal.rows",
    }  # fmt: skip


def test_the_document_lists_the_default_space() -> None:
    """Each suggestion has its row in docs/tune.md, with its domain as it is."""
    rows = (Path(__file__).parents[3] / "docs" / "tune.md").read_text("utf-8")
    for suggestion in (defaults.ADAM, defaults.SGD, defaults.REPLAY, *defaults.ADAPTING, *defaults.TAUGHT):
        if isinstance(suggestion.domain, Categorical):
            domain = ", ".join(f"{value:g}" for value in suggestion.domain.values)
        else:
            log = "log" if suggestion.domain.log else "even"
            domain = f"{suggestion.domain.low:g} to {suggestion.domain.high:g}, {log}"
        assert any(f"`{suggestion.path}`" in row and domain in row for row in rows.splitlines()), suggestion.path


def test_the_documents_space_is_one() -> None:
    """The example in docs/tune.md is taken as it stands, and its error is said in these words."""
    document = (Path(__file__).parents[3] / "docs" / "tune.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)
    assert len(space(block).parameters) == len(block.splitlines())
    with pytest.raises(ConfigError) as fault:
        space("optimizer.learning_rat: {loguniform: [1e-4, 1e-2]}")
    said = str(fault.value).splitlines()
    assert f"    {said[0]}\n" in document
    assert said[1].split("momentum")[0] in document


def test_a_grid_without_end_is_refused() -> None:
    """An interval without steps has no end of values."""
    with pytest.raises(ConfigError, match="no end of values") as raised:
        DEFAULT.refuse_endless()
    assert raised.value.where == "optimizer.learning_rate"


def test_another_plugin_takes_none_of_the_options_before_it() -> None:
    """A gate of another name has its own defaults, beside what the values say."""
    config = configured(gate={"name": "per-sample", "trust": 3.0})
    applied = space(GATES, config).apply(config, {"gate.name": "fixed", "gate.hard": 0.25}, REGISTRY)
    assert applied.gate.model_dump() == {"name": "fixed", "hard": 0.25}


def test_what_does_not_count_any_more_has_its_default() -> None:
    """SGD's momentum does not stay behind where the trial takes Adam."""
    config = configured(optimizer={"name": "sgd", "learning_rate": 0.1, "momentum": 0.9})
    text = (
        "optimizer.name: {choice: [adam, sgd]}\noptimizer.momentum: {uniform: [0.1, 0.9], when: {optimizer.name: sgd}}"
    )
    applied = space(text, config).apply(config, {"optimizer.name": "adam"}, REGISTRY)
    assert (applied.optimizer.name, applied.optimizer.momentum) == ("adam", 0.0)


def test_a_plugin_that_changes_its_name_is_found_by_the_one_it_began_with() -> None:
    """A loss is chosen, and its options are reached through the name that the configuration has."""
    text = """\
losses.match-gate.name: {choice: [match-gate, kd]}
losses.match-gate.temperature: {uniform: [1, 4]}
losses.match-gate.labels: {choice: [yes, no], when: {losses.match-gate.name: kd}}
"""
    values = {"losses.match-gate.name": "kd", "losses.match-gate.temperature": 3.5, "losses.match-gate.labels": False}
    applied = space(text).apply(CONFIG, values, REGISTRY)
    assert applied.losses[0].model_dump(exclude={"weight", "gate"}) == {
        "name": "kd", "temperature": 3.5, "labels": False,
    }  # fmt: skip


def test_whole_ends_where_fractions_are_taken_are_an_interval() -> None:
    """A temperature between 1 and 4 may be 1.5, an interval of steps may not; with a step both are counted out."""
    assert not one("losses.match-gate.temperature: {uniform: [1, 4]}").integer
    assert one("adapt.every: {uniform: [1, 4]}").integer
    assert one("losses.match-gate.temperature: {uniform: [1, 4], step: 1}").ends() == (1, 4, 2)
    assert one("losses.match-gate.temperature: {uniform: [0.5, 2], step: 0.5}").ends() == (0.5, 2.0, 1.0)


def test_numbers_are_read_as_people_write_them() -> None:
    """1e-4 without a dot is a number, in an interval and in a choice, and a choice of numbers is in order."""
    assert one("optimizer.learning_rate: {loguniform: [1e-4, 1e-2]}").domain == Interval(1e-4, 1e-2, log=True)
    assert one("optimizer.learning_rate: {choice: [1e-2, 1e-3]}").domain == Categorical((1e-3, 1e-2))


def test_lists_and_whole_parts_may_be_chosen() -> None:
    """A choice may be of lists, or of a plugin with its options."""
    text = "student.hidden: {choice: [[100], [256, 256]]}\ngate: {choice: [{name: fixed, hard: 0.5}, {name: scalar}]}"
    found = space(text)
    applied = found.apply(CONFIG, {"student.hidden": [100], "gate": {"name": "scalar"}}, REGISTRY)
    assert applied.student.values["hidden"] == [100]
    assert applied.gate.name == "scalar"


WRONG = {
    "a misspelt key": (
        "optimizer.learning_rat: {uniform: [0.1, 1]}",
        ":1: optimizer.learning_rat",
        "did you mean 'learning_rate'?",
    ),
    "a teacher that is not there": (
        "teachers.emma.decay: {uniform: [0.9, 0.99]}",
        "unknown entry 'emma'",
        "did you mean 'ema'?",
    ),
    "a place of another gate": ("\ngate.others: {uniform: [0.1, 0.9]}", ":2: gate.others", "known in gate"),
    "a place below a value": ("adapt.every.more: {uniform: [1, 2]}", "nothing below 'adapt.every'", ""),
    "a misspelt domain": ("adapt.every: {unifrm: [1, 2]}", ":1: adapt.every.unifrm", "did you mean 'uniform'?"),
    "no domain": ("adapt.every: [1, 2]", "needed a domain, got [1, 2]", "{uniform: [0.1, 0.9]}"),
    "two domains": ("adapt.every: {uniform: [1, 2], choice: [1]}", "needed one of", "uniform and choice"),
    "ends turned round": ("adapt.every: {uniform: [9, 1]}", ":1: adapt.every", "low end below"),
    "the logarithm of nothing": ("adapt.every: {loguniform: [0, 9]}", "low end above 0", ""),
    "an endless interval": ("optimizer.learning_rate: {uniform: [0.1, .inf]}", "finite", ""),
    "a step that is too wide": ("adapt.every: {uniform: [1, 3], step: 5}", "needed a step above 0 and at most 2", ""),
    "a step of a choice": ("adapt.every: {choice: [1, 3], step: 2}", "not to choice", ""),
    "nothing to choose from": ("adapt.every: {choice: []}", "empty list", ""),
    "a choice twice": ("adapt.every: {choice: [1, 2, 1]}", "1 is there twice", ""),
    "an end that is refused": ("adapt.every: {uniform: [-1, 9]}", "-1 is refused", "greater than or equal to 0"),
    "another end": ("memory.holdout_ratio: {uniform: [0.1, 1.0]}", "1.0 is refused", "less than 1"),
    "fractions of what is counted": ("adapt.every: {uniform: [1.0, 9.0]}", "is refused", "valid integer"),
    "a choice that is refused": (
        "\n\ngate.name: {choice: [per-sampel]}",
        ":3: gate.name",
        "did you mean 'per-sample'?",
    ),
    "a word for a number": ("memory.size: {choice: ['100', 200]}", "makes 100 of it", ""),
    "a switch for a number": ("adapt.every: {uniform: [no, 4]}", "needed a number, got no", ""),
    "one place twice": (
        "teachers.0.decay: {uniform: [0.9, 0.99]}\nteachers.ema.decay: {uniform: [0.9, 0.99]}",
        "the same place as",
        "",
    ),
    "what every trial shares": ("seed: {uniform: [0, 9]}", "the same in every trial", "--seeds"),
    "the data": ("stream.source.per_class: {choice: [10, 20]}", "the same in every trial", ""),
    "a condition that never holds": (
        GATES.replace("fixed}}", "fixd}}"),
        ":2: gate.hard.when.gate.name",
        "did you mean 'fixed'?",
    ),
    "a condition on an interval": (
        "memory.replay: {uniform: [1, 9]}\nadapt.every: {choice: [1], when: {memory.replay: 1}}",
        "needed a choice",
        "",
    ),
    "a condition on nothing": ("adapt.every: {choice: [1], when: {gate.nam: x}}", "gate.nam", "choices above it: none"),
    "a condition that is written below": (
        "gate.hard: {uniform: [0.1, 0.9], when: {gate.name: fixed}}\ngate.name: {choice: [per-sample, fixed]}",
        ":1: gate.hard.when.gate.name",
        "written above",
    ),
    "no YAML": ("adapt.every: {uniform: [1", ":1: is not YAML", ""),
    "nothing": ("{}", "has no parameters", "docs/tune.md"),
}


@pytest.mark.parametrize(("text", "said", "more"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_says_where_and_why(text: str, said: str, more: str) -> None:
    """File and line, the dotted path, what was needed and got, the nearest key."""
    with pytest.raises(ConfigError) as fault:
        space(text)
    assert str(fault.value).startswith("space.yaml")
    assert said in str(fault.value)
    assert more in str(fault.value)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    """The file is named."""
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read"):
        file.load(tmp_path / "no.yaml", CONFIG, REGISTRY)


def test_a_bound_of_the_memory_takes_the_place_of_the_other() -> None:
    """One of the two decides: a space over one leaves nothing of the other, whatever the configuration has."""
    for path, value in (("memory.size", 100), ("memory.bytes", 1 << 20)):
        changed = Places(CONFIG, REGISTRY).changed({path: value})
        found = {"memory.size": changed.memory.size, "memory.bytes": changed.memory.bytes}
        assert {name: bound for name, bound in found.items() if bound is not None} == {path: value}
