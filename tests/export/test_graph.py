"""Versions as graphs: every built-in student and part answers in onnxruntime as in torch, for any number of rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from streamkd.analytic.ensemble import SHARES, Ensemble
from streamkd.analytic.teacher import AnalyticOptions, AnalyticTeacher
from streamkd.errors import PluginError
from streamkd.export import graph
from streamkd.export.loader import Exported
from streamkd.export.published import Published, encoded
from streamkd.incremental.crossed import CrossedOptions, CrossedTeacher
from streamkd.incremental.forgetting import ForgettingOptions, ForgettingTeacher
from streamkd.incremental.linear import LinearOptions, LinearTeacher
from streamkd.records import InputColumn, RecordSchema
from streamkd.students.networks import Student, build
from streamkd.teachers.mixture import MixtureSelector
from streamkd.teachers.served import Served
from streamkd.teachers.teacher import Part, Servable, TeacherContext

from .conftest import REGISTRY

SIZES = (1, 7, 64)


def student(name: str, schema: RecordSchema, classes: int = 3, x: Tensor | None = None, **options: Any) -> Student:
    kind = REGISTRY.kind("students", name)
    found = build(kind, kind.options.model_validate(options), schema, classes, seed=0)
    if x is not None:
        found.normalise.observe(x)
        found.eval()  # answers differ, and there is something to compare
        with torch.no_grad():
            found.head.weight.mul_(20)
            found.head.bias -= found(x).mean(0)
    return found.eval().requires_grad_(False)


def written(folder: Path, model: nn.Module, schema: RecordSchema, x: Tensor) -> Exported:
    """The artefact, after its answers were found to be the model's own."""
    path = folder / "model.onnx"
    graph.write(Published(model, ["a", "b", "c"], schema, 5, 70), path)  # type: ignore[arg-type]
    artefact = Exported(path)
    for size in SIZES:
        wanted = torch.softmax(model(x[:size]), 1)
        np.testing.assert_allclose(artefact.answer(x[:size].numpy()), wanted, atol=2e-4)
        assert torch.unique(wanted.argmax(1)).numel() > 1 or size == 1
    return artefact


def images(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Rows of two kinds, dark and bright."""
    x = torch.randint(0, 120, (64, *shape), generator=torch.Generator().manual_seed(0))
    x[::2] += 130
    return x.to(dtype)


def context(model: Student, schema: RecordSchema, classes: int = 3) -> TeacherContext:
    return TeacherContext("a", model, schema, list(range(classes)), torch.device("cpu"), REGISTRY)


def part_of(teacher: Servable) -> Part:
    part = teacher.part()
    assert part is not None
    return part


CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any], dict[str, Any]]] = {
    "images": (
        "convnet", (9, 8, 3),
        {"dtype": "uint8", "scale": 1 / 255, "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)},
        {"channels": [4, 6], "hidden": 8},
    ),
    "more-numbers-than-a-feature-reads": ("mlp", (4_200,), {"fit": 30}, {"hidden": [4]}),
}  # fmt: skip


def of_images(
    name: str, shape: tuple[int, ...], column: dict[str, Any], options: dict[str, Any]
) -> tuple[Served, RecordSchema, Tensor]:
    """A student beside the analytic teacher."""
    schema = RecordSchema(inputs=(InputColumn(name="x", shape=shape, **column),))
    x = images(*shape, dtype=getattr(torch, column.get("dtype", "float32")))
    network = student(name, schema, x=x, **options)
    teacher = AnalyticTeacher(AnalyticOptions(channels=8, dense=16), context(network, schema))
    teacher.observe(x.repeat(4, *[1] * len(shape)), torch.arange(256) % 2)
    teacher.end_task()
    parts = {"student": network, "analytic": part_of(teacher)}
    return Served(parts, Ensemble(True, SHARES).combine, {"share": 0.25}), schema, x


def of_table(table: tuple[RecordSchema, list[dict[str, Any]]]) -> tuple[Served, RecordSchema, Tensor]:
    """Linear, crossed, forgetting, closed-form and two students, with bins, gaps, exponents and class weights."""
    schema, rows = table
    columns = {c.name: [row[c.name] for row in rows] for c in schema.inputs}
    columns["colour"] = [None if value is None else str(value) for value in columns["colour"]]
    x = torch.from_numpy(encoded(pa.RecordBatch.from_pydict(columns), schema).inputs)
    y = torch.tensor([row["y"] for row in rows])
    network = student("mlp", schema, 3, x, hidden=[8])
    parts: dict[str, Student | Part] = {"student": network, "average": student("mlp", schema, 3, x, hidden=[8])}
    for name, teacher in {
        "linear": LinearTeacher(LinearOptions(), context(network, schema)),
        "crossed": CrossedTeacher(CrossedOptions(sets=20), context(network, schema)),
        "forgetting": ForgettingTeacher(ForgettingOptions(width=16), context(network, schema)),
    }.items():
        teacher.test_then_train(x, y, torch.ones(len(y), dtype=torch.bool))
        parts[name] = part_of(teacher)
    closed = AnalyticTeacher(AnalyticOptions(dense=32), context(network, schema))
    closed.observe(x, y)
    closed.end_task()
    parts["analytic"] = part_of(closed)
    how = {"weights": [0.1, 0.1, 0.2, 0.3, 0.2, 0.1], "exponents": [1.0, 1.5, 1.0, 2.0, 0.8, 1.0]}
    return Served(parts, MixtureSelector().combine, {**how, "class_weights": [1.0, 1.5, 1.0]}).eval(), schema, x


@pytest.mark.parametrize("case", CASES)
def test_every_student_is_exported_and_the_ensemble_with_it(tmp_path: Path, case: str) -> None:
    """With the normalisation, given or fitted, and the random features inside; what devices need is told."""
    model, schema, x = of_images(*CASES[case])
    about = written(tmp_path, model, schema, x).about
    assert (about["labels"], about["version"], about["records"]) == (["a", "b", "c"], 5, 70)
    assert (about["shape"], about["dtype"]) == (list(schema.shape), schema.dtype.name)


def test_the_mixture_of_all_that_learn_from_a_table_is_exported(
    tmp_path: Path, table: tuple[RecordSchema, list[dict[str, Any]]]
) -> None:
    """All parts of it, and a row is encoded as on the server."""
    model, schema, x = of_table(table)
    artefact = written(tmp_path, model, schema, x)
    assert np.array_equal(artefact.encode(table[1][:20]).argmax(1), x[:20].argmax(1))


class ByNumpy(nn.Module):
    """A part that leaves torch on its way."""

    teacher = "by-numpy"
    known = torch.ones(3, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sort(x.flatten(1).float().numpy())[:, :3])

    def write(self, directory: Path) -> Mapping[str, Any]:
        return {}


def test_a_part_that_is_no_tensor_programme_is_named(tmp_path: Path) -> None:
    """With what is left to do; no file is written."""
    schema = RecordSchema(inputs=(InputColumn(name="x", shape=(4,)),))
    parts: dict[str, Any] = {"student": student("mlp", schema, hidden=[4]), "sorted": ByNumpy()}
    model = Served(parts, MixtureSelector().combine, {"weights": [0.5, 0.5]})
    with pytest.raises(PluginError, match=r"part sorted: cannot be written as a graph.*\n.*--model student"):
        graph.write(Published(model, ["a", "b", "c"], schema), tmp_path / "model.onnx")
    assert not [*tmp_path.iterdir()]
