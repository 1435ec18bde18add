"""A student that draws random numbers and moves running means: watched, stopped or resumed, it ends in the same."""

from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from streamkd import config as configuration
from streamkd.errors import PluginError
from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.tree import pack, unpack
from streamkd.wiring import open_source, rehearse, schema_of


class Restless(nn.Module):
    """Dropout from the global generator, batch normalisation, a head."""

    def __init__(self, options: Options, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        width = shape[0] * shape[1]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class RestlessPlugin:
    """Brings the student, and a gate that cannot be built."""

    @hookimpl
    def streamkd_students(self) -> list[Kind]:
        return [Kind("restless", Restless)]

    @hookimpl
    def streamkd_gates(self) -> list[Kind]:
        return [Kind("absent", lambda options: open("/no/such/weights"))]


REGISTRY = Registry.load()
REGISTRY.register(RestlessPlugin(), "restless")


def learner(**changes: Any) -> Learner:
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "limit": 300}
    tree = {
        "stream": {"source": source},
        "student": {"name": "restless"},
        "memory": {"size": 60, "replay": 20},
        "teachers": toys.TEACHERS,
        "publish": {"model": "student"},
        "device": "cpu",
        **changes,
    }
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    source_, _ = open_source(config, REGISTRY, schema)
    return Learner(config, REGISTRY, source_, schema)


def weights(one: Learner) -> str:
    return weights_sha256(one.student.state_dict())


def run(one: Learner, batches: int | None = None, looks: int = 0) -> Learner:
    done = 0
    while (batches is None or done < batches) and one.advance():
        done += 1
        if looks and done % looks == 0:
            one.measure()
    return one


@pytest.mark.parametrize("stop", [1, 13])
def test_looking_and_resuming_change_no_bit(stop: int) -> None:
    """Measured by the clock, stopped and restored: the weights are those of a run that nobody looked at."""
    whole = weights(run(learner()))
    assert weights(run(learner(), looks=3)) == whole
    stopped = run(learner(), stop, looks=2)
    parts = pack(stopped.state())
    torch.rand(7)  # whatever else the process drew
    resumed = learner()
    resumed.restore(unpack(parts), dict(stopped.offsets), stopped.config)
    assert weights(run(resumed)) == whole


def test_a_part_that_cannot_be_built_is_named_before_the_first_record() -> None:
    """The rehearsal fails in words: where the configuration names it, the plugin's name, what it raised."""
    one = learner(gate={"name": "absent"})
    with pytest.raises(PluginError) as caught:
        rehearse(one.config, REGISTRY, one.schema, one.device)
    assert "gate: 'absent' cannot be built: FileNotFoundError" in str(caught.value)


def test_a_rehearsal_leaves_no_trace() -> None:
    """What is learned after one is what is learned without."""
    one = learner()
    rehearse(one.config, REGISTRY, one.schema, one.device)
    assert weights(run(one)) == weights(run(learner()))
