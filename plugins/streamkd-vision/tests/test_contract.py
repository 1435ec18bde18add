"""Both kinds keep the contracts that streamkd checks."""

from pathlib import Path

import pytest
from streamkd_vision import teacher, transfer

from streamkd import testing
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema


@pytest.fixture(scope="module")
def registry() -> Registry:
    """What an installation would bring."""
    found = Registry()
    assert found.register(teacher, "vision-teachers") == ["teachers/torchvision"]
    assert found.register(transfer, "vision-losses") == ["losses/attention-transfer"]
    return found


@pytest.mark.parametrize("classes", [(0, 1, 2), (1, 5, 2), (7, 8, 9)])
def test_the_teacher_keeps_its_contract(registry: Registry, weights: Path, classes: tuple[int, ...]) -> None:
    """Knowing all labels, some, or none of them."""
    schema = RecordSchema(inputs=(InputColumn(name="image", shape=(8, 8), dtype="uint8"),))
    options = {"network": "mobilenet_v3_small", "weights": weights, "classes": classes, "size": 32}
    kind = registry.kind("teachers", "torchvision")
    testing.check_teacher(kind, options, schema, layers=("features.1", "features.3"))


@pytest.mark.parametrize("shape", [(4, 6, 6), (1, 3, 5)])
def test_the_loss_keeps_its_contract(registry: Registry, shape: tuple[int, ...]) -> None:
    """Over several pairs that share layers, and maps that are not square."""
    options = {"teacher": "eye", "pairs": [["body.a", "x"], ["body.b", "y"], ["body.b", "x"]]}
    testing.check_loss(registry.kind("losses", "attention-transfer"), options, feature_shape=shape)
