"""What a child tells its supervisor while it runs: that it goes on, how it stands, what it counted.

    main loop ─ beat ─► heartbeat, with what it is doing      status, metrics ─► bounded ─► channel

None of it is needed for learning: what cannot be sent is dropped and counted, never raised. Only the main loop
beats, so that silence means that the main loop stands.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamkd.errors import StreamkdError
from streamkd.serve.processes.channel import Speaker, encode
from streamkd.serve.processes.messages import Beat, Counted, Json, Offsets, Status
from streamkd.telemetry import Recorder

BEAT_SECONDS = 1.0
STARTING, STOPPING, CHECKPOINT = "starting", "stopping", "checkpoint"  # what may rightly take long
IDLE = "idle"  # a worker without a tenant
ITEMS = 1_000  # of a list or table; a page shows fewer
TEXT = 256  # characters of a name
STATUS_BYTES = 1 << 20  # it is sent every second, and read by every open page
TABLE = 64  # keys: a mapping with more is a table of names, which may be cut; one with fewer is a form


class Reporter:
    """One child's telemetry. Every method raises ``EOFError`` where the supervisor is gone, and nothing else."""

    def __init__(self, channel: Speaker, recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> None:
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
    keep their newest ``ITEMS``, and half as many again and again where that is still too much.

    Raises:
        StreamkdError: it holds what JSON cannot.
    """
    items = ITEMS
    while True:
        left_out: dict[str, int] = {}
        tree = _cut(status, items, "", left_out)
        if len(encode(tree)) <= limit_bytes:
            return {**tree, "left_out": left_out}
        if items == 0:  # forms alone are too large
            return {**{k: v for k, v in tree.items() if not isinstance(v, dict | list)}, "left_out": left_out}
        items //= 2


def _cut(value: object, items: int, path: str, left_out: dict[str, int]) -> Any:
    """A copy whose texts, lists and tables have at most their size."""
    if isinstance(value, str):
        return value[:TEXT]
    if isinstance(value, Mapping):
        is_table = len(value) > TABLE
        entries = _newest([*value.items()], items if is_table else TABLE, path, left_out)
        paths = {key: path if is_table else f"{path}.{key}".lstrip(".") for key, _ in entries}
        return {str(key)[:TEXT]: _cut(inner, items, paths[key], left_out) for key, inner in entries}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_cut(inner, items, path, left_out) for inner in _newest(value, items, path, left_out)]
    return value


def _newest(values: Sequence[Any], count: int, path: str, left_out: dict[str, int]) -> Sequence[Any]:
    """The last ``count``; the others are counted under the path of the list or the table."""
    if (surplus := len(values) - count) <= 0:
        return values
    left_out[path] = left_out.get(path, 0) + surplus
    return values[surplus:]
