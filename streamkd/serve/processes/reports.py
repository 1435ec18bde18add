"""What a child tells its supervisor while it runs: that it goes on, how it stands, what it counted.

    main loop ─ beat ─► heartbeat, with what it is doing      status, metrics ─► bounded ─► channel

None of it is needed for learning: what cannot be sent is dropped and counted, never raised. Only the main loop
beats, so that silence means that the main loop stands.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from streamkd.errors import StreamkdError
from streamkd.serve.processes.channel import Channel, encode
from streamkd.serve.processes.messages import Beat, Counted, Json, Offsets, Status
from streamkd.telemetry import Recorder

BEAT_SECONDS = 1.0
STARTING, STOPPING, CHECKPOINT = "starting", "stopping", "checkpoint"  # what may rightly take long
ITEMS = 1_000  # of a list or table; a page shows fewer
TEXT = 256  # characters of a name
STATUS_BYTES = 1 << 20  # it is sent every second, and read by every open page
TABLE = 64  # keys: a mapping with more is a table of names, which may be cut; one with fewer is a form
_Part = tuple[str, Any, Any]  # dotted path, the mapping or list that holds it, the key there


class Reporter:
    """One child's telemetry. Every method raises ``EOFError`` where the supervisor is gone, and nothing else."""

    def __init__(self, channel: Channel, recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> None:
        self._channel, self._recorder, self._clock = channel, recorder, clock
        self._doing, self._next = "", 0.0

    def beat(self, doing: str, more: Callable[[], Mapping[str, Offsets]] = dict) -> None:
        """Say that the main loop goes on and with what; at once where that is something new, else once a second.

        ``more`` is asked for the ``offsets`` and ``ends`` when it is said.
        """
        now = self._clock()
        if doing == self._doing and now < self._next:
            return
        self._doing, self._next = doing, now + BEAT_SECONDS
        self._send(Beat(doing, **more()))

    def status(self, status: Json) -> None:
        """Tell how it stands, within the bounds of a status."""
        try:
            told = bounded(status)
        except StreamkdError:  # no JSON; ``tell`` says so, and drops it
            told = status
        self._send(Status(told))

    def metrics(self) -> None:
        """Tell what was counted since the last time."""
        if deltas := self._recorder.drain():
            self._send(Counted(deltas))

    def _send(self, message: Beat | Status | Counted) -> None:
        if not self._channel.try_to_say(message):
            self._recorder.count("telemetry_dropped_total", kind=type(message).__name__.lower())


def bounded(status: Json, limit_bytes: int = STATUS_BYTES) -> Json:
    """The status within ``limit_bytes`` of JSON, with ``left_out``, {dotted path: count}. Newest, so last, items stay.

    What stands in it may come from strangers (labels, names of tasks) or from plugins: texts are cut, lists and tables
    keep their newest, and where that is still too much the largest are halved.

    Raises:
        StreamkdError: it holds what JSON cannot.
    """
    left_out: dict[str, int] = {}
    tree = _cut(status, "", left_out)
    if (surplus := len(encode(tree)) - limit_bytes) > 0 and not _shrunk(tree, surplus, left_out):
        tree = {key: value for key, value in tree.items() if not isinstance(value, Mapping | list)}
    return {**tree, "left_out": left_out}


def _shrunk(tree: Json, surplus: int, left_out: dict[str, int]) -> bool:
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


def _cut(value: object, path: str, left_out: dict[str, int]) -> Any:
    """A copy whose texts, lists and tables have at most their size."""
    if isinstance(value, str):
        return value[:TEXT]
    if isinstance(value, Mapping):
        kept = _newest(value, ITEMS, path, left_out)
        return {str(key)[:TEXT]: _cut(inner, _under(path, key, value), left_out) for key, inner in kept.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_cut(inner, path, left_out) for inner in _newest(value, ITEMS, path, left_out)]
    return value


def _under(path: str, key: object, holder: Mapping[str, object]) -> str:
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
