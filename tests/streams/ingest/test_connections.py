"""The connections of a port: who is silent is shut, also where it could not be looked for a while."""

import errno
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from streamkd.streams.ingest import connections
from streamkd.streams.ingest.connections import Connections


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server


def test_the_watch_outlives_a_lack_of_descriptors(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first looks find no descriptor to look with; the silent connection is shut all the same, later."""
    looks, real = [], connections.open_connections

    def look(port: int) -> dict:
        looks.append(port)
        if len(looks) < 4:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(port)

    monkeypatch.setattr(connections, "open_connections", look)
    watch, port = Connections(0.2), listener.getsockname()[1]
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as silent, closing(listener.accept()[0]):
        watch.make_room()  # sees nothing, and says so by shutting nothing
        watch.watch(port)
        assert silent.recv(1) == b""
    watch.close()
    assert len(looks) > 4
