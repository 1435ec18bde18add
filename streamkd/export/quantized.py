"""A graph in int8: weights per channel, activations by the ranges that sample records gave them.

    matrix products and convolutions ─► int8
    normalisation, what combines the parts; of the closed form its filters and what was solved ─► float32 as they are

A solution in closed form weighs many features against one another, and rounded it is another one; its filters are small
and in int8 slower. Most of its bytes are the dense features, which are rounded without harm (decision 47).
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from streamkd import extras
from streamkd.analytic.readout import Readout
from streamkd.export import graph

OPERATIONS = ["MatMul", "Gemm", "Conv"]


def quantize(source: Path, to: Path, model: nn.Module, sample: np.ndarray, said: dict[str, Any]) -> None:
    """Write the graph of ``source``, which is that of ``model``, in int8; ``sample`` [n, *shape] are encoded records.

    Raises:
        MissingExtra: what quantizes is not installed.
    """
    onnx = extras.load("onnx", "streamkd export --int8")
    quantization = extras.load("onnxruntime.quantization", "streamkd export --int8")
    kept = in_float(model)
    with TemporaryDirectory(dir=to.parent) as folder, graph.quiet():
        prepared = Path(folder) / "prepared.onnx"
        quantization.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            to,
            _reader(quantization.CalibrationDataReader, sample),
            per_channel=True,
            op_types_to_quantize=OPERATIONS,
            nodes_to_exclude=[node.name for node in onnx.load(prepared).graph.node if kept & set(node.input)],
        )
    graph.describe(to, said)


def in_float(model: nn.Module) -> set[str]:
    """The biases, by their names in a graph, of what stays float32."""
    closed = [name for name, module in graph.Answering(model).named_modules() if isinstance(module, Readout)]
    return {f"{name}.{bias}" for name in closed for bias in ("bias", "extractor.filter_bias")}


def _reader(base: type, sample: np.ndarray) -> Any:
    """The records as the calibration reads them, one by one."""
    rows: Iterator[dict[str, np.ndarray]] = ({"records": row[None]} for row in sample)
    return type("Rows", (base,), {"get_next": lambda self: next(rows, None)})()
