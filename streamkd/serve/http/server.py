"""uvicorn as this server runs it: our bounds on connections, and signals in our order.

http_server(settings, application) ─► Server ◄─ Signals: the first request to end, and the second
"""

import asyncio
import contextlib
import math
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette

from streamkd.serve.http.connections import ConnectionLimits, bounded
from streamkd.settings import Serve

DESCRIPTORS = 512  # for everything that is no connection: files, children, connections that are about to be closed
GRACEFUL_SECONDS = 10  # for requests in flight


class Signals:
    """The first and the second request to end, from a signal or from any thread."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the loop that waits for the events."""
        self._loop = loop

    def end(self) -> None:
        """Ask for the end; may be called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.first.set)

    def received(self) -> None:
        """A signal has come."""
        (self.second if self.first.is_set() else self.first).set()

    def hung_up(self) -> None:
        """The terminal has gone. It may say so twice, so that this never counts as the second request."""
        self.first.set()


class Server(uvicorn.Server):
    """uvicorn, with our order on signals instead of its own."""

    def __init__(self, config: uvicorn.Config, signals: Signals) -> None:
        super().__init__(config)
        self._signals = signals

    async def end_after(self, stop: Callable[[], Awaitable[None]]) -> None:
        """Once it is asked for: first everything else."""
        await self._signals.first.wait()
        try:
            await stop()
        finally:
            self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        taken = {signal.SIGINT: self._signals.received, signal.SIGTERM: self._signals.received}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup asks to be left alone
            taken[signal.SIGHUP] = self._signals.hung_up
        for name, handler in taken.items():
            loop.add_signal_handler(name, handler)
        try:
            yield
        finally:
            for name in taken:
                loop.remove_signal_handler(name)


def http_server(settings: Serve, application: Starlette, tls: dict[str, Any], signals: Signals) -> Server:
    """A server that serves an application within the settings' bounds; ``tls``: as ``listen.tls_arguments``."""
    limits = ConnectionLimits(connections(settings.connections), settings.head_seconds, settings.body_seconds)
    config = uvicorn.Config(
        application,
        http=bounded(limits),
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_seconds),
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        **tls,
    )
    return Server(config, signals)


def connections(wanted: int) -> int:
    """How many connections there may be: as many as wanted, if this process may have the descriptors for them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = 4 * wanted + DESCRIPTORS if hard == resource.RLIM_INFINITY else min(4 * wanted + DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, resource.getrlimit(resource.RLIMIT_NOFILE)[0]), hard))
    return max(1, min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - DESCRIPTORS))
