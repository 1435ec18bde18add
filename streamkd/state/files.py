"""A state on disk: JSON documents, one file of tensors, one file per table; each hashed, and synced before it counts.

    Parts, state, config ─► write ─► tensors.safetensors, state.json, config.json, tables/*.arrow ─► sha256 of each
    folder, sha256       ─► read  ─► exactly what was written, or CheckpointDamaged

Whoever keeps the hashes decides when the files count: ``streamkd.state.checkpoint``.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import safetensors.torch
import torch

from streamkd.errors import CheckpointDamaged, StateConflict, StateError
from streamkd.state.directory import sync
from streamkd.state.tree import Parts, Tree

FORMAT = 2  # 1 has no segments


def write(folder: Path, parts: Parts, state: Mapping[str, Tree], config: Tree) -> dict[str, str]:
    """Write and sync every file into an empty folder; returns the hash of each.

    Raises:
        StateError: the tensors cannot be stored.
    """
    names = {key: f"tables/{index:04d}.arrow" for index, key in enumerate(parts.tables)}
    contents = {
        "tensors.safetensors": _safetensors(parts.tensors),
        "config.json": _json(config),
        "state.json": _json({**state, "tables": names, "tree": parts.document}),
    }
    if names:
        (folder / "tables").mkdir(mode=0o700)
    hashes = {name: put(folder / name, content) for name, content in contents.items()}
    for key, name in names.items():
        hashes[name] = put(folder / name, _arrow(parts.tables[key]))
    for path in [folder / "tables", folder] if names else [folder]:
        sync(path)
    return hashes


def read(folder: Path, sha256: Mapping[str, str]) -> tuple[Parts, dict[str, Tree], dict[str, Tree]]:
    """The parts, the state document and the configuration, of exactly the bytes that were hashed.

    Raises:
        CheckpointDamaged: a file has other bytes. StateConflict: it was written by a newer streamkd.
    """
    contents = {name: get(folder / name, expected) for name, expected in sha256.items()}
    state = json.loads(contents["state.json"])
    if state["format"] > FORMAT:
        raise StateConflict(
            f"needed checkpoint format {FORMAT}, got {state['format']}", where=str(folder), fix="upgrade streamkd"
        )
    tables = {key: pa.ipc.open_file(pa.py_buffer(contents[name])).read_all() for key, name in state["tables"].items()}
    tensors = safetensors.torch.load(contents["tensors.safetensors"])
    return Parts(state["tree"], tensors, tables), state, json.loads(contents["config.json"])


def put(path: Path, content: bytes) -> str:
    """Write and sync a new file; returns its hash."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def get(path: Path, expected: str) -> bytes:
    """What a file holds.

    Raises:
        CheckpointDamaged: it has another hash.
    """
    content = path.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise CheckpointDamaged(
            f"needed sha256 {expected[:12]}, got {got[:12]} ({len(content)} bytes)", where=str(path)
        )
    return content


def _json(value: Tree) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    try:
        return safetensors.torch.save(dict(tensors))
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as fault:
        kinds = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
        raise StateError(f"safetensors cannot hold this state ({kinds}): {fault}", where="state tree") from fault


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
