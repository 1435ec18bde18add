"""A small real network in a file, and a context of a stream of small images."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from streamkd.plugins import Registry
from streamkd.records import InputColumn, Label, RecordSchema
from streamkd.students import networks
from streamkd.teachers.teacher import TeacherContext

torch.set_num_threads(1)

NETWORK = "mobilenet_v3_small"
LABELS = (0, 1, 2)


@pytest.fixture(scope="session")
def network() -> nn.Module:
    """The network that was trained elsewhere: three outputs, drawn from seed 0."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.get_model(NETWORK, weights=None, num_classes=3).eval()


@pytest.fixture(scope="session")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights, with the labels of its outputs in the metadata."""
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_file(network.state_dict(), path, {"classes": json.dumps(["zero", "one", "two"])})
    return path


@pytest.fixture
def context() -> Callable[..., TeacherContext]:
    """The context of a stream whose records are 8×8 images."""

    def of(
        labels: Sequence[Label] = LABELS,
        shape: tuple[int, ...] = (8, 8),
        dtype: str = "uint8",
        key: str = "torchvision",
    ) -> TeacherContext:
        column = InputColumn.model_validate({"name": "image", "shape": shape, "dtype": dtype})
        schema = RecordSchema(inputs=(column,), label_type="string" if isinstance(labels[0], str) else "int")
        registry = Registry()
        registry.register(networks, "students")
        kind = registry.kind("students", "mlp")
        student = networks.build(kind, kind.options(), schema, len(labels), 0)
        return TeacherContext(key, student, schema, labels, torch.device("cpu"))

    return of
