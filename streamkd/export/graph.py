"""A published version as an ONNX graph: encoded records in, probabilities out, any number of rows.

    records [n, *shape] ─► normalisation ─► each part, what follows from a seed written out ─► combined ─► probability

What a device has to know beside the weights is in the model's metadata under ``streamkd``: labels, columns, version.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from streamkd import extras
from streamkd.errors import PluginError, first_line
from streamkd.export.published import Published
from streamkd.records import InputColumn
from streamkd.teachers.served import Served

KEY = "streamkd"
ROWS = 3  # of the example: of one row a graph may be made for that one alone


class Answering(nn.Module):
    """Records to probabilities [n, labels]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, records: Tensor) -> Tensor:
        return torch.softmax(self.model(records), 1)


def about(published: Published) -> dict[str, Any]:
    """What an artefact says of itself."""
    schema = published.schema
    return {
        "labels": published.labels,
        "columns": [_column(column) for column in schema.inputs],
        "shape": list(schema.shape),
        "dtype": schema.dtype.name,
        "version": published.version,
        "records": published.records,
    }


def _column(column: InputColumn) -> dict[str, Any]:
    """What a row brings for it: images as their pixels, texts as the numbers that they are hashed to."""
    told = column.model_dump(mode="json")
    if column.kind == "image":
        return {**told, "kind": "tensor", "dtype": "uint8"}
    if column.kind == "text":
        told |= {"raw": False}
        return {**told, "kind": "tensor", "dtype": column.element_type, "shape": [column.width], "missing": "refuse"}
    return told


def write(published: Published, path: Path) -> None:
    """Write the graph.

    Raises:
        PluginError: a part is no tensor programme; it is named.
        MissingExtra: what writes ONNX is not installed.
    """
    extras.need("onnxscript", "streamkd export")
    with _naming_who_cannot(published):
        _export(published.model, _example(published)).save(path)
    describe(path, about(published))


def write_program(published: Published, path: Path | str, most: int) -> None:
    """Write the graph as torch has it (``torch.export.load``), for ``most`` rows at once and fewer.

    The example has as many: of a convolution of few rows, another torch may take it that there are never 16.

    Raises:
        PluginError: a part is no tensor programme; it is named.
    """
    with _naming_who_cannot(published), quiet():
        torch.export.save(_traced(Answering(published.model), _example(published, most), most), path)


@contextmanager
def _naming_who_cannot(published: Published) -> Iterator[None]:
    try:
        yield
    except Exception as fault:  # torch.export's own, and whatever a part raises that is traced
        name, cause = _culprit(published.model, _example(published), fault)
        raise PluginError(
            f"cannot be written as a graph: {first_line(cause)}",
            where=name,
            fix="export --model student, or give its forward operations of torch alone",
        ) from fault


def _example(published: Published, rows: int = ROWS) -> Tensor:
    return torch.zeros(rows, *published.schema.shape, dtype=getattr(torch, published.schema.dtype.name))


def describe(path: Path, said: dict[str, Any]) -> None:
    """Put it into the metadata of a model, in place of what the exporter noted for whoever debugs it."""
    onnx = extras.load("onnx", "streamkd export")
    model = onnx.load(path)
    for noted in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, model.graph):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    onnx.helper.set_model_props(model, {KEY: json.dumps(said)})
    onnx.save(model, path)


def _traced(model: nn.Module, example: Tensor, most: int | None = None) -> torch.export.ExportedProgram:
    """What of it can be written down; tried once, where the exporter itself would go on to try other ways."""
    with quiet(), torch.no_grad():
        return torch.export.export(model.eval(), (example,), dynamic_shapes=({0: Dim("rows", max=most)},), strict=False)


def _export(model: nn.Module, example: Tensor) -> Any:
    program = _traced(Answering(model), example)
    with quiet(), torch.no_grad():
        return torch.onnx.export(
            program,
            dynamo=True,
            input_names=["records"],
            output_names=["probability"],
            external_data=False,
            verbose=False,
        )


def _culprit(model: nn.Module, example: Tensor, fault: Exception) -> tuple[str, Exception]:
    """The part that cannot be written, and why."""
    for name, part in zip(model.names, model.parts, strict=True) if isinstance(model, Served) else ():
        try:
            _traced(part, example)
        except Exception as cause:  # noqa: BLE001 - as in ``write``
            return f"part {name}", cause
    return "the model", fault


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's advice, which is for whoever writes models."""
    levels = {name: logging.getLogger(name).level for name in ("torch", "onnxscript", "onnx_ir", "root")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
