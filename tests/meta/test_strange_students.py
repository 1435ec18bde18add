"""Students whose operators have no forward mode: attention, LSTM and EmbeddingBag learn, and their gate adapts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamkd import config as configuration
from streamkd.errors import ConfigError
from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema
from streamkd.testing import check_student
from streamkd.wiring import open_source, schema_of


class Attention(nn.Module):
    """Fused scaled-dot-product attention over the rows of an image as tokens."""

    def __init__(self, options: Options, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.widen, self.head = nn.Linear(shape[-1], 16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.widen(x).unsqueeze(1)
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.head(torch.relu(mixed.squeeze(1)).mean(1))


class Recurrent(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self, options: Options, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(shape[-1], 16, batch_first=True), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Bag(nn.Module):
    """An EmbeddingBag over integer inputs, each place with words of its own.

    A student's input has gone through its normalisation: of an integer column with scale 1, mean 0 and std 1 these are
    the same whole numbers in float32, exact below 2²⁴.
    """

    def __init__(self, options: Options, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.places = int(torch.tensor(shape).prod())
        self.bag, self.head = nn.EmbeddingBag(128 * self.places, 16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        words = x.flatten(1).long() + 128 * torch.arange(self.places, device=x.device)
        return self.head(torch.relu(self.bag(words)))


KINDS = {
    "attention": Kind("attention", Attention, Options),
    "recurrent": Kind("recurrent", Recurrent, Options),
    "bag": Kind("bag", Bag, Options),
}
WHOLE = RecordSchema(inputs=(InputColumn(name="image", shape=(8, 8), dtype="uint8"),))


@hookimpl
def streamkd_students() -> Any:
    yield from KINDS.values()


def registry() -> Registry:
    found = Registry.load()
    found.register(SimpleNamespace(streamkd_students=streamkd_students), "strange")
    return found


def learned(student: str, **adapt: Any) -> Learner:
    """After 300 digits of two tasks, which come as whole numbers."""
    here = registry()
    tree = {
        "stream": {"source": {"name": "replay", "dataset": "digits", "classes_per_task": 2, "limit": 300}},
        "student": {"name": student},
        "optimizer": {"learning_rate": 0.005},
        "memory": {"size": 60, "replay": 20},
        "adapt": {"every": 5, "on_task_steps": 3, **adapt},
        "device": "cpu",
    }
    config = configuration.from_tree(tree, here)
    schema = schema_of(config, here)
    if student == "bag":
        inputs = tuple(column.model_copy(update={"scale": 1.0, "mean": 0.0, "std": 1.0}) for column in schema.inputs)
        schema = schema.model_copy(update={"inputs": inputs})
    source, _ = open_source(config, here, schema)
    learner = Learner(config, here, source, schema)
    while learner.advance():
        pass
    return learner


@pytest.mark.parametrize("student", KINDS)
def test_the_engine_auto_trains_it(student: str) -> None:
    """It learns well above chance, its gate is adapted by finite difference, and the gate has moved."""
    learner = learned(student)
    assert learner.prequential.student.overall > 0.5
    adapter = learner.adapter
    assert adapter.lacking
    assert adapter.adaptations > 5
    assert any(not torch.equal(p.detach(), o) for p, o in zip(adapter.parameters, adapter.origin, strict=True))


@pytest.mark.parametrize("student", KINDS)
def test_the_engine_forward_does_not_turn_into_another(student: str) -> None:
    """Asked for by name, it says that an operator has no forward mode."""
    with pytest.raises((NotImplementedError, RuntimeError)):
        learned(student, engine="forward")


@pytest.mark.parametrize("student", KINDS)
def test_it_keeps_the_contract_with_whole_numbers(student: str) -> None:
    """Raw uint8 rows to logits: what is published and asked is what was learned, whatever the element type."""
    check_student(KINDS[student], schema=WHOLE)


def test_an_engine_that_cannot_unroll_the_optimiser_is_refused_at_the_start() -> None:
    """`maml` beside the default Adam is an error of the configuration, with the way out."""
    with pytest.raises(ConfigError, match="plain SGD"):
        learned("attention", engine="maml")
