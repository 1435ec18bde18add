"""What a River classifier says of rows, and what of it is served: a copy that learns no more.

raw row ─► its columns as {0: ..., 1: ...}, missing ones left out ─► predict_proba_one ─► log-probabilities
model ─► codec ─► River ─► files of a version ─► ``load`` ─► River
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streamkd.api import Columns, RecordSchema
from streamkd_river import codec

LEAST = 1e-3  # probability of a learned label: a leaf that has met one class is sure of it
NEVER = -20.0  # log-probability of a label that was never learned
FILE = "model.safetensors"


def rows_of(x: Tensor) -> list[dict[int, float]]:
    """Of [batch, features], whole numbers as names, for words are hashed otherwise in every process; what is not finite
    is missing.
    """
    rows = x.flatten(1).tolist()
    return [{name: float(value) for name, value in enumerate(row) if math.isfinite(value)} for row in rows]


def answer(model: Any, row: Mapping[int, float], learned: Collection[int], width: int) -> list[float]:
    """Log-probabilities by column; the same everywhere before a label has come."""
    if not learned:
        return [0.0] * width
    said = model.predict_proba_one(row)
    given = [NEVER] * width
    for column in learned:
        given[column] = math.log(max(said.get(column, 0.0), LEAST))
    return given


class River(nn.Module):
    """Raw inputs [batch, *shape] to log-probabilities [batch, classes], by the model of a state, which never changes.

    It reads ``columns`` of them. The model is made when the first rows come: whoever only writes it needs none.
    """

    teacher = "river"
    known: Tensor

    def __init__(self, state: Mapping[str, Any], known: Tensor, columns: Columns) -> None:
        super().__init__()
        self.columns = columns
        self.register_buffer("known", known)
        self._state, self._model = state, None
        self._learned = known.nonzero().flatten().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> "River":
        return self  # nothing of it ever changes

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        self.decode()
        width = len(self.known)
        said = [answer(self._model, row, self._learned, width) for row in rows_of(self.columns(x))]
        return torch.tensor(said, device=x.device).reshape(len(said), width)

    def decode(self) -> None:
        """Make the model, if there is none yet.

        Raises:
            StateError: it is no River model.
        """
        if self._model is None:
            self._model = codec.decode(self._state)

    def write(self, directory: Path) -> dict[str, Any]:
        """Put its state into a version's directory, without pickle."""
        numbers = {name: self._state[name] for name in ("words", "bytes")}
        save_file({**numbers, "known": self.known.cpu().contiguous()}, directory / FILE)
        return {"strings": self._state["strings"]}


def load(directory: Path, about: Mapping[str, Any], schema: RecordSchema, _classes: int, _registry: Any) -> River:
    """The part that wrote itself there.

    Raises:
        StateError: it is no River model.
    """
    numbers = load_file(directory / FILE)
    part = River({**numbers, "strings": about["strings"]}, numbers["known"], Columns(schema, schema.student))
    part.decode()
    return part
