"""Makes a status small enough to be sent every second, whatever the learner has met.

    status ─► texts cut, the newest of each list and table kept ─► still too large: the largest halved ─► left_out

The learner tells its status through this; what stands in it may come from strangers (labels, names of tasks) or from
plugins. ``left_out`` counts, by dotted path, what is not told.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamkd.serve.processes.channel import encode

ITEMS = 1_000  # of a list or table; a page shows fewer
TEXT = 256  # characters of a name
STATUS_BYTES = 1 << 20  # it is sent every second, and read by every open page
TABLE = 64  # keys: a mapping with more is a table of names, which may be cut; one with fewer is a form
_Part = tuple[str, Any, Any]  # dotted path, the mapping or list that holds it, the key there


def bounded(status: Mapping[str, Any], limit_bytes: int = STATUS_BYTES) -> dict[str, Any]:
    """The status within ``limit_bytes`` of JSON, with ``left_out``: {path: count}. Newest, so last, items stay.

    Raises:
        StreamkdError: it holds what JSON cannot.
    """
    left_out: dict[str, int] = {}
    tree = _cut(status, "", left_out)
    if (surplus := len(encode(tree)) - limit_bytes) > 0 and not _shrunk(tree, surplus, left_out):
        tree = {key: value for key, value in tree.items() if not isinstance(value, Mapping | list)}
    return {**tree, "left_out": left_out}


def _shrunk(tree: dict[str, Any], surplus: int, left_out: dict[str, int]) -> bool:
    """Halve the largest list or table until so many bytes are gone; ``False`` where they cannot be."""
    sizes = [
        (len(encode(holder[key])), at, part) for at, part in enumerate(_parts(tree, "")) for _, holder, key in [part]
    ]
    while surplus > 0 and sizes:
        sizes.sort()
        size, at, (path, holder, key) = sizes.pop()
        holder[key] = _newest(holder[key], len(holder[key]) // 2, path, left_out)
        surplus -= size - (smaller := len(encode(holder[key])))
        if holder[key]:
            sizes.append((smaller, at, (path, holder, key)))
    return surplus <= 0


def _cut(value: Any, path: str, left_out: dict[str, int]) -> Any:
    """A copy whose texts, lists and tables have at most their size."""
    if isinstance(value, str):
        return value[:TEXT]
    if isinstance(value, Mapping):
        kept = _newest(value, ITEMS, path, left_out)
        return {str(key)[:TEXT]: _cut(inner, _under(path, key, value), left_out) for key, inner in kept.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_cut(inner, path, left_out) for inner in _newest(value, ITEMS, path, left_out)]
    return value


def _under(path: str, key: Any, holder: Mapping[str, Any]) -> str:
    """The path of a key; all keys of a table share their table's."""
    return path if len(holder) > TABLE else f"{path}.{key}".lstrip(".")


def _newest(value: Any, count: int, path: str, left_out: dict[str, int]) -> Any:
    """The last ``count`` of a list or a mapping."""
    surplus = len(value) - count
    if surplus <= 0:
        return value
    left_out[path] = left_out.get(path, 0) + surplus
    return dict(list(value.items())[surplus:]) if isinstance(value, Mapping) else list(value)[surplus:]


def _parts(node: Any, path: str) -> Iterator[_Part]:
    """What can be halved; a list inside a list goes with the one outside."""
    for key, value in node.items():
        inner = _under(path, key, node)
        if isinstance(value, list):
            if value:
                yield inner, node, key
        elif isinstance(value, dict):
            if len(value) > TABLE:
                yield inner, node, key
            else:
                yield from _parts(value, inner)
