"""Who is connected to the Flight port, and since when nothing came of it: silent connections end.

    batch handled ─► heard ... silence ─► ``idle_seconds`` ─► the connection is shut
    no place left ─► the longest silent connection of the address that has most is shut at once

gRPC waits for a client in C++, where no time-out of ours reaches. What can be done from outside is to shut the
socket below it: the wait ends as if the client had gone, and the client sends what was not acknowledged again.
A connection whose batch we hold, because the log is full or the disk slow, is never silent.
"""

import contextlib
import ipaddress
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

GRACE_SECONDS = 5.0  # a connection that is younger than this, or was heard since, does not give way
Peer = tuple[str, int]


class Connections:
    """The connections of one port. Thread safe."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._port = 0
        self._heard: dict[Peer, float] = {}
        self._held: Counter[Peer] = Counter()
        self._unread: dict[Peer, float] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def watch(self, port: int) -> None:
        """Shut what is silent from now on, until ``close``."""
        self._port = port
        threading.Thread(target=self._watch, name="connections", daemon=True).start()

    def close(self) -> None:
        self._ended.set()

    @contextmanager
    def holding(self, peer: Peer) -> Iterator[None]:
        """We have something of this caller in hand, so that it is not its turn."""
        with self._lock:
            self._held[peer] += 1
        try:
            yield
        finally:
            with self._lock:
                self._heard[peer] = time.monotonic()
                self._held[peer] -= 1

    @contextmanager
    def awaiting_read(self, peer: Peer) -> Iterator[None]:
        """The caller is told something, and has to read it in time, whatever else is in hand."""
        with self._lock:
            self._unread.setdefault(peer, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                self._unread.pop(peer, None)

    def leave_waiting(self, peer: Peer) -> None:
        """The caller waits for what will not come: it has ``GRACE_SECONDS`` to send something and be told why."""
        with self._lock:
            self._unread[peer] = time.monotonic() - max(0.0, self._idle_seconds - GRACE_SECONDS)

    def ended(self, peer: Peer) -> None:
        """Its call ends."""
        with self._lock:
            self._unread.pop(peer, None)

    def make_room(self) -> None:
        """Shut the longest silent connection of the address that has most, if it is silent for a while."""
        silent = self._silent(GRACE_SECONDS)
        most = Counter(host for host, _ in silent)
        for peer in sorted(silent, key=lambda peer: (-most[peer[0]], silent[peer]))[:1]:
            _shut(silent[peer][1], peer)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._idle_seconds / 4)):
            for peer, (_, descriptor) in self._silent(self._idle_seconds).items():
                _shut(descriptor, peer)

    def _silent(self, seconds: float) -> dict[Peer, tuple[float, int]]:
        """Since when those are silent that were not heard, or have not read, for so long, and their descriptors.

        Who is new was heard now. Without a descriptor to look with nobody is seen, until the next look.
        """
        try:
            found = open_connections(self._port)
        except OSError:
            return {}
        now = time.monotonic()
        with self._lock:
            self._held = +self._held
            self._heard = {peer: self._heard.get(peer, now) for peer in {*found, *self._held}}
            since = {p: heard for p, heard in self._heard.items() if p in found and p not in self._held}
            since |= {p: begun for p, begun in self._unread.items() if p in found}
        return {peer: (at, found[peer]) for peer, at in since.items() if at < now - seconds}


def open_connections(port: int) -> dict[Peer, int]:
    """The descriptors of this process's connections to a port of its own."""
    found: dict[Peer, int] = {}
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers, not paths
        with contextlib.suppress(OSError), _borrowed(int(name)) as handle:  # no socket, not connected, or gone
            if handle.family in (socket.AF_INET, socket.AF_INET6) and handle.getsockname()[1] == port:
                found[_peer(handle)] = int(name)
    return found


def peer_of(said: str) -> Peer:
    """The address in gRPC's words, ``ipv4:127.0.0.1:5000`` or ``ipv6:%5B::1%5D:5000``."""
    host, _, port = unquote(said).partition(":")[2].rpartition(":")
    return _plain(host.strip("[]")), int(port) if port.isdigit() else 0


def _plain(host: str) -> str:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def _shut(descriptor: int, peer: Peer) -> None:
    with contextlib.suppress(OSError), _borrowed(descriptor) as handle:  # the client was faster
        if _peer(handle) == peer:
            handle.shutdown(socket.SHUT_RDWR)


def _peer(handle: socket.socket) -> Peer:
    host, port = handle.getpeername()[:2]
    return _plain(host), port


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A socket that is another's: never closed here. A file is not touched; closing a copy would drop its locks."""
    handle = socket.socket(fileno=descriptor)
    try:
        yield handle
    finally:
        handle.detach()
