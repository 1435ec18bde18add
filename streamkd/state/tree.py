"""A learner's state as a tree, and the parts that go to disk: JSON, one set of tensors, Arrow tables.

    {"head": {"weight": tensor}, "step": 7}  ─►  document {"head": {"weight": {"$tensor": "/head/weight"}}, "step": 7}
                                                 tensors  {"/head/weight": tensor}

``unpack`` gives back what ``pack`` was given, bit for bit: integers stay integers, tuples tuples, and integer
keys (as in an optimiser's state) integers. Used by ``streamkd.state.checkpoint``; no pickle anywhere.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import torch

from streamkd.errors import StateError
from streamkd.replay.table import StoredRows

WHOLE_BYTES = 1 << 20  # of the rows of a table, up to which they are not worth files of their own
Tree = Any  # None, bool, int, float, str, torch.Tensor, pa.Table, StoredRows, and lists, tuples and dicts of trees


@dataclass
class Parts:
    """What a tree is stored as: a JSON document that names tensors and tables by key."""

    document: Any = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    rows: dict[str, StoredRows] = field(default_factory=dict)


def pack(tree: Tree) -> Parts:
    """Take a tree apart.

    Raises:
        StateError: a leaf or key of another type; its place in the tree is named.
    """
    parts = Parts()
    parts.document = _pack(tree, "", parts, set())
    return parts


def unpack(parts: Parts) -> Tree:
    """Put a tree together again.

    Raises:
        KeyError: the document names a tensor or table that is not there.
    """
    return _unpack(parts.document, parts)


def _pack(node: Tree, path: str, parts: Parts, storages: set[int]) -> Any:
    match node:
        case None | bool() | str():
            return node
        case int():
            return int(node)
        case float():
            return float(node) if math.isfinite(node) else {"$float": repr(float(node))}
        case torch.Tensor():
            key = _free(path, parts.tensors)
            parts.tensors[key] = _alone(node, path, storages)
            return {"$tensor": key}
        case StoredRows():
            return _pack_rows(node, path, parts, storages)
        case pa.Table():
            key = _free(path, parts.tables)
            parts.tables[key] = node
            return {"$table": key}
        case list():
            return [_pack(item, f"{path}/{index}", parts, storages) for index, item in enumerate(node)]
        case tuple():
            return {"$tuple": [_pack(item, f"{path}/{index}", parts, storages) for index, item in enumerate(node)]}
        case Mapping():
            return _pack_mapping(node, path, parts, storages)
    raise StateError(
        f"needed JSON values, tensors, tables, lists and dicts, got {type(node).__name__}",
        where=f"state tree at {path or '/'}",
        fix="turn it into one of these in state_dict()",
    )


def _pack_rows(rows: StoredRows, path: str, parts: Parts, storages: set[int]) -> Any:
    """Few rows are written whole: three checkpoints have three copies then, which one fault does not reach."""
    if sum(column.nbytes for column in rows.columns.values()) <= WHOLE_BYTES:
        return {"$rows": _pack_mapping(rows.columns, path, parts, storages)}
    key = _free(path, parts.rows)
    parts.rows[key] = rows
    return {"$rows": key}


def _pack_mapping(node: Mapping[Any, Tree], path: str, parts: Parts, storages: set[int]) -> Any:
    items = []
    for key, value in node.items():
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise StateError(f"needed a string or integer as key, got {key!r}", where=f"state tree at {path or '/'}")
        items.append((key, _pack(value, f"{path}/{_escape(key)}", parts, storages)))
    if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
        return dict(items)
    return {"$items": [list(item) for item in items]}


def _unpack(node: Any, parts: Parts) -> Tree:
    if isinstance(node, list):
        return [_unpack(item, parts) for item in node]
    if not isinstance(node, dict):
        return node
    match node:
        case {"$tensor": key}:
            return parts.tensors[key]
        case {"$rows": str() as key}:
            return parts.rows[key]
        case {"$rows": columns}:
            return StoredRows({name: _unpack(column, parts) for name, column in columns.items()})
        case {"$table": key}:
            return parts.tables[key]
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(_unpack(item, parts) for item in items)
        case {"$items": items}:
            return {key: _unpack(value, parts) for key, value in items}
    return {key: _unpack(value, parts) for key, value in node.items()}


def _escape(key: str | int) -> str:
    """One step of a path: '/' and '#' only where they are ours; lone surrogates, which UTF-8 has not, too."""
    return quote(str(key), safe=" .:()[]", errors="surrogatepass")


def _free(path: str, taken: Mapping[str, Any]) -> str:
    """The path as a key, made different where the keys 1 and "1" of one dict meet."""
    key = path or "/"
    while key in taken:
        key += "#"
    return key


def _alone(tensor: torch.Tensor, path: str, storages: set[int]) -> torch.Tensor:
    """The tensor on the CPU, dense, with a storage that it shares with no other tensor of the tree."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise StateError(f"needed a dense tensor, got {tensor.layout}", where=f"state tree at {path or '/'}")
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    storage = dense.untyped_storage()
    if storage.data_ptr() in storages or storage.nbytes() != dense.numel() * dense.element_size():
        dense = dense.clone()
        storage = dense.untyped_storage()
    storages.add(storage.data_ptr())
    return dense
