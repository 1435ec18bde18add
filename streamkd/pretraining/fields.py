"""Batches that are mappings, and answers that are objects, as libraries of language models have them.

{"input_ids": [n, l], "attention_mask": [n, l], "labels": [n]} ─► rows [n, width], labels
rows ─► the same tensors ─► module(**tensors) ─► its ``logits``
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamkd.errors import ConfigError

LABELS = ("labels", "label")


class Fields:
    """The tensors of a batch by name, with the shape of a row and the type of each, as the first batch has them.

    A row is float64, in which every number of a smaller type, and every whole number below 2**53, is itself.
    """

    def __init__(self, batch: Mapping[str, Any], where: str) -> None:
        self.label = next((name for name in LABELS if name in batch), None)
        inputs = {name: value for name, value in batch.items() if name != self.label and isinstance(value, Tensor)}
        if self.label is None or not inputs:
            got = f"needed a mapping with tensors and `labels`, got {', '.join(map(str, batch)) or 'nothing'}"
            raise ConfigError(got, where=where, fix='name the labels "labels", and give inputs as tensors')
        self._parts = {name: (value.dtype, value.shape[1:]) for name, value in inputs.items()}

    def pair(self, batch: Mapping[str, Any], where: str) -> tuple[Tensor, Tensor]:
        """Rows [n, width] and labels.

        Raises:
            ConfigError: another batch than the first.
        """
        for name, (_, shape) in self._parts.items():
            got = batch.get(name)
            if not isinstance(got, Tensor) or got.shape[1:] != shape:
                came = f"{list(got.shape)}" if isinstance(got, Tensor) else "none"
                said = f"needed {name} [batch, {', '.join(map(str, shape))}] as in the first batch, got {came}"
                raise ConfigError(said, where=where, fix="pad to one length")
        rows = [batch[name].flatten(1) if batch[name].dim() > 1 else batch[name].unsqueeze(1) for name in self._parts]
        return torch.cat([part.double() for part in rows], 1), batch[str(self.label)]

    def tensors(self, rows: Tensor) -> dict[str, Tensor]:
        """What the rows were made of."""
        widths = [shape.numel() for _, shape in self._parts.values()]
        columns = zip(self._parts.items(), rows.split(widths, 1), strict=True)
        return {name: part.reshape(len(rows), *shape).to(dtype) for (name, (dtype, shape)), part in columns}


class Rowwise(nn.Module):
    """Logits of a module (or a function) over rows: of the tensors by name where there are ``fields``."""

    def __init__(self, module: Callable[..., Any], fields: Fields | None) -> None:
        super().__init__()
        self.module, self.fields = module, fields

    def forward(self, x: Tensor) -> Any:
        said = self.module(x) if self.fields is None else self.module(**self.fields.tensors(x))
        return getattr(said, "logits", said)
