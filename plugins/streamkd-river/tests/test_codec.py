"""The codec: what goes on after a round trip goes on as if never stopped, and nothing else is made or called."""

import math
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from river import drift, stats, tree
from river.proba import Gaussian
from river.utils import VectorDict
from streamkd_river import codec
from streamkd_river.models import MODELS
from streamkd_river.teacher import RiverTeacher
from torch import Tensor

from streamkd.api import StateError
from streamkd.testing.clauses import carried

Stream = Callable[..., Iterator[tuple[Tensor, Tensor, Tensor]]]


def back(thing: Any) -> Any:
    """Through a checkpoint."""
    return codec.decode(carried(codec.encode(thing)))


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (
        one["strings"] == other["strings"]
        and torch.equal(one["words"], other["words"])
        and torch.equal(one["bytes"], other["bytes"])
    )


@pytest.mark.parametrize("model", MODELS)
def test_it_trains_on_as_if_never_stopped(model: str, teacher: Callable[..., RiverTeacher], stream: Stream) -> None:
    """Across a drift, in which trees are replaced: brought back after every few batches, one says and is, to the bit,
    what the one that never stopped is.
    """
    few = {"parameters": {"n_models": 3}} if "n_models" in codec_parameters(model) else {}
    whole, stopped = teacher(model, **few), teacher(model, **few)
    for number, batch in enumerate(stream(24)):
        if number % 5 == 4:
            kept = carried(stopped.state_dict())
            stopped = teacher(model, **few)
            stopped.load_state_dict(kept)
        assert torch.equal(stopped.test_then_train(*batch), whole.test_then_train(*batch)), number
    assert is_same(codec.encode(stopped.model), codec.encode(whole.model))


def codec_parameters(model: str) -> list[str]:
    from streamkd_river.models import parameters_of

    return parameters_of(model)


def test_a_detector_goes_on() -> None:
    """ADWIN, whose windows are compiled, says the same after each round trip."""
    whole, stopped = drift.ADWIN(delta=0.01), drift.ADWIN(delta=0.01)
    generator, found = random.Random(1), 0
    for number in range(2_000):
        value = generator.random() + (number > 1_000)
        whole.update(value)
        stopped.update(value)
        assert (stopped.drift_detected, stopped.width, stopped.estimation) == (
            whole.drift_detected,
            whole.width,
            whole.estimation,
        )
        found += whole.drift_detected
        if number % 250 == 0:
            stopped = back(stopped)
    assert found


@pytest.mark.parametrize(
    "make",
    [lambda: stats.Quantile(0.3), lambda: stats.EWMean(0.1), lambda: stats.EWVar(0.1), stats.Kurtosis, stats.IQR],
)
def test_statistics_go_on(make: Callable[[], Any]) -> None:
    """Those that are compiled from Rust too."""
    whole, generator = make(), random.Random(2)
    for _ in range(50):
        whole.update(generator.random())
    stopped = back(whole)
    for _ in range(50):
        value = generator.random()
        whole.update(value)
        stopped.update(value)
        assert stopped.get() == whole.get()


def test_values_are_the_same_bits() -> None:
    """Floats of every kind, whole numbers of 64 bits, bytes, arrays and their scalars."""
    values = [0.0, -0.0, math.inf, 5e-324, True, 1, 1.0, -(2**63), 2**63 - 1, None, "", "é", b"\0", np.float32(0.1)]
    got = back(values)
    assert [(type(value), repr(value)) for value in got] == [(type(value), repr(value)) for value in values]
    assert math.isnan(back(math.nan))
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert back(array).dtype == array.dtype
    assert back(array).tolist() == array.tolist()


def test_containers_keep_kind_order_and_limits() -> None:
    """And a dictionary's factory."""
    things = {"o": OrderedDict(b=1, a=2), "d": defaultdict(list, x=[1]), "q": deque([1, 2], maxlen=2), "s": {3, 1}}
    got = back(things)
    assert got == things
    assert [type(value) for value in got.values()] == [type(value) for value in things.values()]
    assert (list(got["o"]), got["q"].maxlen, got["d"]["new"]) == (["b", "a"], 2, [])
    assert back(VectorDict({1: 0.5})) == VectorDict({1: 0.5})


def test_what_is_one_object_stays_one() -> None:
    """Also where it holds itself."""
    shared: list[Any] = [1]
    shared.append(shared)
    one, other = back((shared, {"again": shared}))
    assert other["again"] is one
    assert one[1] is one


def test_a_generator_draws_on() -> None:
    """And the one of a distribution that nobody seeded is left out of the state."""
    generator = random.Random(5)
    generator.gauss(0, 1)
    again = back(generator)
    assert [again.gauss(0, 1) for _ in range(3)] == [generator.gauss(0, 1) for _ in range(3)]
    assert len(codec.encode(Gaussian())["words"]) < 300 < len(codec.encode(Gaussian(seed=1))["words"])
    assert isinstance(back(Gaussian()).sample(), float)


class Stranger:
    """No part of River."""


@pytest.mark.parametrize(
    "thing", [Stranger(), Stranger, print, lambda: 0, 2**63, np.array([None]), drift.ADWIN().update]
)
def test_what_could_not_be_brought_back_is_refused(thing: Any) -> None:
    """When it is written, not when it is read."""
    with pytest.raises(StateError):
        codec.encode([thing])


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "builtins.getattr", "river.datasets.phishing.Phishing", "river.tree.base.math",
     "river.compat.sklearn_to_river.SKL2RiverClassifier", "river.utils.pretty.print_table", "river.nowhere.Thing"],
)  # fmt: skip
def test_a_state_names_nothing_else(name: str) -> None:
    """Neither functions nor classes of other parts are looked up, whatever a state says."""
    model = tree.HoeffdingTreeClassifier()
    state = codec.encode(model)
    at = state["strings"].index("river.tree.hoeffding_tree_classifier.HoeffdingTreeClassifier")
    assert type(codec.decode(state)) is type(model)
    state["strings"][at] = name
    with pytest.raises(StateError, match="cannot be read"):
        codec.decode(state)


def test_a_broken_state_is_told() -> None:
    """Cut short, pointing nowhere, without a part."""
    state = codec.encode(drift.ADWIN())
    for broken in (
        {**state, "words": state["words"][:-1]},
        {**state, "words": state["words"] + 1},
        {**state, "strings": []},
        {"words": state["words"]},
    ):
        with pytest.raises(StateError):
            codec.decode(broken)
