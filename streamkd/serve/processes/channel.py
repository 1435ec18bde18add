"""JSON lines between the supervisor and its children, over one inherited socket.

    supervisor ─ pair() ─► process.spawn ─► child: Channel.inherited()
         say(Beat(...)) ◄─ one line of JSON each ─► hear(timeout)

The end of the stream (``EOFError``) means that the other process is gone: the kernel closes a dead
process's sockets. One that is there and hangs is seen by its silence (``serve.child``). A child has no purpose
without its supervisor and exits. A message over ``MESSAGE_BYTES`` is refused once, at either end, and the next
one arrives.
"""

import contextlib
import json
import logging
import math
import numbers
import os
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any, NoReturn, Protocol

from streamkd.errors import StreamkdError
from streamkd.process import descriptor, follow_parent
from streamkd.serve.processes.messages import Json, Message, fatal, from_json, to_json

MESSAGE_BYTES = 16 << 20
SEND_SECONDS = 5.0  # that the supervisor waits for a child to read; its own loop must go on
logger = logging.getLogger(__name__)


class Speaker(Protocol):
    """What a child says its messages to."""

    def say(self, message: Message) -> None: ...
    def try_to_say(self, message: Message) -> bool: ...


class Channel:
    """One end. Any thread may send; one thread at a time receives."""

    def __init__(self, end: int | socket.socket, patience: float | None = None) -> None:
        """``patience``: seconds that a send waits for the other side to read; ``None``: for ever."""
        self._socket = socket.socket(fileno=end) if isinstance(end, int) else end
        self._socket.settimeout(patience)
        os.set_inheritable(self._socket.fileno(), False)
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._buffer = bytearray()
        self._scanned = 0
        self._skipping = False  # the rest of a message that was too long
        self._unsaid: set[str] = set()

    @classmethod
    def inherited(cls) -> "Channel":
        """The child's end, and the child tied to its parent."""
        follow_parent()
        return cls(descriptor())

    def send(self, message: Json) -> None:
        """Write one message, waiting while the other side does not read.

        Raises:
            EOFError: the other process is gone, or has not read for longer than our patience.
            StreamkdError: the message is too long, or holds what JSON cannot; nothing was sent.
        """
        line = encode(message) + b"\n"
        if len(line) > MESSAGE_BYTES:
            raise StreamkdError(f"a message of {len(line)} bytes, at most {MESSAGE_BYTES}", where="channel")
        with self._sending:
            try:
                self._socket.sendall(line)
            except OSError as fault:
                self._break()  # half a line may be on its way: nothing can follow it
                raise EOFError(f"the other end of the channel is gone, or does not read: {fault}") from None

    def say(self, message: Message) -> None:
        """``send`` for what is one of our messages."""
        self.send(to_json(message))

    def try_to_say(self, message: Message) -> bool:
        """Write a message that may be lost; ``False`` where it cannot be sent. Each kind is logged once.

        Raises:
            EOFError: the other process is gone.
        """
        try:
            self.say(message)
        except StreamkdError as fault:
            kind = type(message).__name__.lower()
            if kind not in self._unsaid:
                logger.warning("the %s is not told, here and from now on wherever it cannot be: %s", kind, fault)
            self._unsaid.add(kind)
            return False
        return True

    def send_fatal(self, fault: StreamkdError) -> None:
        """Say that this process ends of a fault that another start would not help, where anybody hears it."""
        with contextlib.suppress(EOFError):
            self.say(fatal(fault))

    def hear(self, timeout: float | None = None) -> Message | None:
        """``receive`` for one of our messages; another is a ``StreamkdError``."""
        said = self.receive(timeout)
        return None if said is None else from_json(said)

    def receive(self, timeout: float | None = None) -> Json | None:
        """The next message, or ``None`` when none came within ``timeout`` seconds (``None``: wait for ever).

        Raises:
            EOFError: the other process is gone and everything it said has been received.
            StreamkdError: what came is no message, or one that is too long; the next call goes on behind it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._receiving:
            while (line := self._line()) is None:
                wait = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self._fill(wait):
                    return None
        return _message(line)

    def _line(self) -> bytes | None:
        """The next whole line that is not too long; ``None`` where more must come first."""
        while (end := self._buffer.find(b"\n", self._scanned)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._scanned = 0
            skipped, self._skipping = self._skipping, False
            if not skipped:
                return line if len(line) < MESSAGE_BYTES else self._refuse()
        self._scanned = len(self._buffer)
        if self._skipping or self._scanned >= MESSAGE_BYTES:
            self._buffer.clear()
            self._scanned = 0
            skipped, self._skipping = self._skipping, True
            return None if skipped else self._refuse()
        return None

    def _refuse(self) -> NoReturn:
        raise StreamkdError(f"a message of more than {MESSAGE_BYTES} bytes is left out", where="channel")

    def _fill(self, wait: float | None) -> bool:
        """Read what is there within ``wait`` seconds; ``False`` when nothing came."""
        try:
            if not self._readable(wait):
                return False
            data = self._socket.recv(1 << 16)
        except (OSError, ValueError):  # reset by the other side, or closed here meanwhile
            data = b""
        if not data:
            raise EOFError("the other end of the channel is gone")
        self._buffer += data
        return True

    def _readable(self, wait: float | None) -> bool:
        """Whether something came in time; not by ``select``, which takes no descriptor above 1,023."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(None if wait is None else math.ceil(wait * 1000)))

    def close(self) -> None:
        """Close this end; the other side receives what was sent, then ``EOFError``."""
        self._break()
        self._socket.close()

    def _break(self) -> None:
        with contextlib.suppress(OSError):  # the other side went first
            self._socket.shutdown(socket.SHUT_RDWR)


def pair() -> tuple[Channel, socket.socket]:
    """The supervisor's end, and the socket that a child inherits (``spawn``)."""
    ours, theirs = socket.socketpair()
    return Channel(ours, SEND_SECONDS), theirs


def encode(message: Any) -> bytes:
    """One line of JSON, without its end.

    Raises:
        StreamkdError: it holds what JSON cannot.
    """
    try:
        return json.dumps(message, default=_plain, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as fault:
        raise StreamkdError(f"cannot be said in JSON: {fault}", where="channel") from None


def _message(line: bytes) -> Json:
    try:
        message = json.loads(line)
    except ValueError as fault:
        raise StreamkdError(f"needed a line of JSON, got {line[:80]!r} ({fault})", where="channel") from None
    if not isinstance(message, dict):
        raise StreamkdError(f"needed a JSON object, got {line[:80]!r}", where="channel")
    return message


def _plain(value: object) -> object:
    """JSON for numpy's numbers and for paths."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a message cannot hold {type(value).__name__}")
