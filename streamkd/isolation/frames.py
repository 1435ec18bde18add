"""A tree over a socket, in one frame and without pickle, as ``streamkd.state.tree`` takes it apart.

send(end, tree, deadline) ─► | document bytes | tensor bytes | JSON | safetensors | ─► receive(end, deadline)
"""

import json
import math
import socket
import struct
import time

import pyarrow as pa
import torch

from streamkd.state.tree import Parts, Tree, pack, unpack

LENGTHS = struct.Struct("!QQ")
ALIGNED = 16
TABLE = "$table:"  # before the key of an Arrow table, which travels as a tensor of bytes


def encode(tree: Tree) -> bytes:
    """One frame.

    Raises:
        StateError: a leaf that no checkpoint could hold.
    """
    parts = pack(tree)
    about, blobs = [], []
    for key, tensor in (parts.tensors | {TABLE + key: _bytes_of(table) for key, table in parts.tables.items()}).items():
        blob = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        about.append((key, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)))
        blobs += [blob, bytes(-len(blob) % ALIGNED)]
    document, body = json.dumps([parts.document, about]).encode(), b"".join(blobs)
    return LENGTHS.pack(len(document), len(body)) + document + body


def decode(frame: bytes) -> Tree:
    """What ``encode`` was given."""
    document, _ = LENGTHS.unpack_from(frame)
    return _tree(frame[LENGTHS.size :][:document], bytearray(frame[LENGTHS.size + document :]))


def send(end: socket.socket, tree: Tree, deadline: float | None = None) -> None:
    """Write a frame, by a ``deadline`` of the monotonic clock.

    Raises:
        TimeoutError: nobody reads. OSError: nobody is there.
    """
    end.settimeout(_left(deadline))
    end.sendall(encode(tree))


def receive(end: socket.socket, deadline: float | None = None, most_bytes: int | None = None) -> Tree:
    """Read a frame of at most so many bytes.

    Raises:
        TimeoutError: it was not there by the deadline. EOFError, OSError: nobody is there. MemoryError: it is larger.
    """
    document, body = LENGTHS.unpack(_exactly(end, LENGTHS.size, deadline))
    if most_bytes is not None and document + body > most_bytes:
        raise MemoryError(f"an answer of {document + body} bytes, at most {most_bytes}")
    return _tree(_exactly(end, document, deadline), _exactly(end, body, deadline))


def _tree(document: bytes | bytearray, body: bytearray) -> Tree:
    tree, about = json.loads(document)
    parts, at = Parts(tree), 0
    for key, name, shape in about:
        dtype, count = getattr(torch, name), math.prod(shape)
        tensor = torch.frombuffer(body, dtype=dtype, count=count, offset=at) if count else torch.empty(0, dtype=dtype)
        at += count * dtype.itemsize
        at += -at % ALIGNED
        if key.startswith(TABLE):
            parts.tables[key.removeprefix(TABLE)] = pa.ipc.open_stream(tensor.numpy().tobytes()).read_all()
        else:
            parts.tensors[key] = tensor.reshape(shape)
    return unpack(parts)


def _exactly(end: socket.socket, length: int, deadline: float | None) -> bytearray:
    into = bytearray(length)
    view, at = memoryview(into), 0
    while at < length:
        end.settimeout(_left(deadline))
        got = end.recv_into(view[at:])
        if not got:
            raise EOFError("the other end is gone")
        at += got
    return into


def _left(deadline: float | None) -> float | None:
    """Seconds until then; never 0, by which a socket would not wait at all."""
    return None if deadline is None else max(deadline - time.monotonic(), 1e-3)


def _bytes_of(table: pa.Table) -> torch.Tensor:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)
