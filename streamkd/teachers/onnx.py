"""An ONNX model as a frozen network: normalised records in, logits out; the door to onnxruntime.

    x [batch, *shape] ─► laid out as each input is declared ─► session ─► one output [batch, classes]

It needs the optional dependency: ``pip install 'streamkd[onnx]'``. The session runs on one CPU thread, so that the
same rows give the same answers.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamkd import extras
from streamkd.errors import PluginError
from streamkd.records import RecordSchema

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class OnnxNetwork(nn.Module):
    """One model. ``schema`` is how its reader sees a record: one input takes it whole, several take a column each.

    ``output`` names the output that is read (empty: the first); with ``probabilities`` its logarithm are the logits.

    Raises:
        MissingExtra: onnxruntime is not installed.
        PluginError: a file that is no model, or inputs and outputs that do not fit.
    """

    def __init__(self, path: Path, schema: RecordSchema, *, output: str = "", probabilities: bool = False) -> None:
        super().__init__()
        self._where = str(path)
        self._session = _session(path)
        self._inputs = self._session.get_inputs()
        self._probabilities = probabilities
        self._output = output or self._session.get_outputs()[0].name
        self._shapes = self._shares(schema)
        self._types = [self._type(declared) for declared in self._inputs]
        self._rows = next((d.shape[0] for d in self._inputs if d.shape and isinstance(d.shape[0], int)), 0)
        self.outputs = self._probe(schema)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] float32 of records [batch, *shape], on the device of ``x``."""
        step = self._rows or max(len(x), 1)
        parts = [self._run(part) for part in x.cpu().split(step)]
        logits = torch.from_numpy(np.concatenate(parts)).float()
        return (logits.clamp_min(1e-12).log() if self._probabilities else logits).to(x.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxNetwork":
        """Itself: it has no state that could change, and a session cannot be copied."""
        return self

    def _run(self, x: Tensor) -> np.ndarray:
        """One call; a model of a fixed batch gets its last rows filled up with zeros."""
        missing = max(self._rows - len(x), 0)
        flat = torch.nn.functional.pad(x.flatten(1), (0, 0, 0, missing))
        columns = flat.split([math.prod(shape) for shape in self._shapes], 1)
        feed = {
            declared.name: _laid_out(column.reshape(-1, *shape), _sizes(declared)).numpy().astype(kind)
            for declared, column, shape, kind in zip(self._inputs, columns, self._shapes, self._types, strict=True)
        }
        return np.asarray(self._session.run([self._output], feed)[0])[: len(x)]

    def _shares(self, schema: RecordSchema) -> list[tuple[int, ...]]:
        """The shape that each input gets of a record."""
        if len(self._inputs) == 1:
            return [schema.shape]
        if len(self._inputs) != len(schema.inputs):
            names = ", ".join(declared.name for declared in self._inputs)
            raise PluginError(
                f"needed a column for each of its inputs ({names}), got {len(schema.inputs)} columns",
                where=self._where,
                fix="name the columns in the order of the inputs: columns: [...]",
            )
        return [column.encoded_shape for column in schema.inputs]

    def _type(self, declared: Any) -> Any:
        if declared.type not in _TYPES:
            known = ", ".join(_TYPES)
            raise PluginError(f"needed an input of {known}, got {declared.name}: {declared.type}", where=self._where)
        return _TYPES[declared.type]

    def _probe(self, schema: RecordSchema) -> int:
        """The number of its outputs, found by asking it about a record of zeros."""
        try:
            answer = self._run(torch.zeros(1, *schema.shape))
        except Exception as fault:  # onnxruntime's own errors, and layouts that do not fit
            declared = "; ".join(f"{d.name} {d.shape} {d.type}" for d in self._inputs)
            raise PluginError(
                f"it does not run on records of shape {schema.shape}: {fault}",
                where=self._where,
                fix=f"its inputs are: {declared}; outputs: {', '.join(o.name for o in self._session.get_outputs())}",
            ) from fault
        if answer.ndim != 2 or answer.dtype.kind != "f":
            raise PluginError(
                f"needed an output [batch, classes] of floats, got {answer.dtype} {list(answer.shape)}",
                where=self._where,
                fix=f"pick another with output: {', '.join(o.name for o in self._session.get_outputs())}",
            )
        return int(answer.shape[1])


def _session(path: Path) -> Any:
    onnxruntime = extras.load("onnxruntime", "an ONNX model", str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # a family of its own that derives from Exception alone
        raise PluginError(f"cannot be read as an ONNX model: {fault}", where=str(path)) from fault


def _sizes(declared: Any) -> list[int | None]:
    """What an input says of the axes behind the batch; ``None`` where it takes any length."""
    return [size if isinstance(size, int) else None for size in declared.shape[1:]]


def _laid_out(x: Tensor, sizes: Sequence[int | None]) -> Tensor:
    """Records [batch, *shape] as an input of ``sizes`` wants them; images [.., height, width, channels] channels first.

    Raises:
        PluginError: there is no such way.
    """
    for view in _views(x):
        if view.dim() - 1 == len(sizes) and all(n in (None, m) for n, m in zip(sizes, view.shape[1:], strict=True)):
            return view
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes) and math.prod(known) == math.prod(x.shape[1:]):
        return x.reshape(len(x), *known)
    raise PluginError(f"needed records of shape {list(sizes)}, got {list(x.shape[1:])}")


def _views(x: Tensor) -> list[Tensor]:
    """The layouts that mean the same: as it is, channels first, and flat."""
    if x.dim() == 4:
        return [x.permute(0, 3, 1, 2), x, x.flatten(1)]
    return [x, x.unsqueeze(1), x.flatten(1)] if x.dim() == 3 else [x]
