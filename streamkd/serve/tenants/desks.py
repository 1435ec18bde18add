"""Predictions for many tenants from one process: a desk each, open while there is room.

    request ─► Desks.open ─► predictor, follower of published versions, routes ─► answer
                  └─ the models of all desks within ``ROOM_BYTES``, else those not asked for longest close

A desk is what a server of one stream has (``streamkd.serve.http.api``), so a tenant has the same routes. It opens
when somebody asks. Its queue is its own: a flood of questions to one tenant is that tenant's 429.
"""

import threading
from collections import OrderedDict
from pathlib import Path

from starlette.applications import Starlette

from streamkd.plugins import Registry
from streamkd.serve.http.api import Services, application
from streamkd.serve.http.body import BodyTimeouts
from streamkd.serve.http.ingest_proxy import IngestProxy
from streamkd.serve.predictions.follower import VersionFollower
from streamkd.serve.predictions.predictor import Predictor
from streamkd.serve.predictions.reader import Reader
from streamkd.serve.tenants.tenant import Tenant
from streamkd.settings import Serve
from streamkd.state.directory import StateDirectory
from streamkd.streams.ingest.tokens import Tokens

ROOM_BYTES = 1 << 30  # of the files of the versions that are held
POLL_SECONDS = 2.0  # for what other processes do to the versions; a worker's publishing is said


class Desk:
    """One tenant's predictions and routes.

    Raises:
        ConfigError: its tokens cannot be read.
    """

    def __init__(self, tenant: Tenant, server: Serve, registry: Registry, proxy: IngestProxy, reader: Reader) -> None:
        assert tenant.config is not None
        settings, self._published = tenant.config.serve, tenant.state / "published"
        self._sized: tuple[int | None, int] = (None, 0)
        tokens = Tokens(settings.tokens)
        self.predictor = Predictor(settings.batch_rows, settings.queue_rows, tenant.recorder)
        keep, directory = tenant.config.publish.keep, StateDirectory(tenant.state)
        self.follower = VersionFollower(directory, registry, self.predictor, tenant.recorder, keep, POLL_SECONDS)
        services = Services(
            status=tenant.status,
            predictor=self.predictor,
            follower=self.follower,
            proxy=proxy,
            tokens=tokens,
            recorder=tenant.recorder,
            exposition=tenant.exposition,
            body_bytes=settings.body_bytes,
            queue_rows=settings.queue_rows,
            reader=reader,
            patience=BodyTimeouts(server.body_seconds, server.idle_seconds),
            hosts=server.hosts,
        )
        self.application: Starlette = application(services)

    @property
    def bytes(self) -> int:
        """What the files of the version that answers take; looked at once for each."""
        if (version := self.predictor.version) != self._sized[0]:
            self._sized = version, _bytes_of(self._published / str(version))
        return self._sized[1]

    def close(self) -> None:
        """Answer what waits, and let the model go."""
        self.follower.close()
        self.predictor.close()


def _bytes_of(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:  # there is no version yet, or it was let go meanwhile
        return 0


class Desks:
    """The desks that are open, the one not asked for longest first. Any thread may call."""

    def __init__(
        self, server: Serve, registry: Registry, proxy: IngestProxy, reader: Reader, room_bytes: int = ROOM_BYTES
    ) -> None:
        self._made_of = (server, registry, proxy, reader)
        self._room_bytes = room_bytes
        self._open: OrderedDict[str, Desk] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, tenant: Tenant) -> Desk:
        """A tenant's desk.

        Raises:
            ConfigError: as ``Desk``.
        """
        with self._lock:
            if tenant.name not in self._open:
                self._open[tenant.name] = Desk(tenant, *self._made_of)
            self._open.move_to_end(tenant.name)
            return self._open[tenant.name]

    def poke(self, name: str) -> None:
        """A tenant has a new version."""
        with self._lock:
            desk = self._open.get(name)
        if desk is not None:
            desk.follower.poke()

    def close(self, name: str) -> None:
        """A tenant has gone, or is another now."""
        with self._lock:
            desk = self._open.pop(name, None)
        if desk is not None:
            desk.close()

    def surplus(self) -> list[Desk]:
        """Take out the desks for which there is no room, for whoever calls to close them; never the newest."""
        with self._lock:
            sizes = {name: desk.bytes for name, desk in self._open.items()}
            held, out = sum(sizes.values()), []
            for name in list(self._open)[:-1]:
                if held <= self._room_bytes:
                    break
                if not self._open[name].predictor.in_flight:
                    out.append(self._open.pop(name))
                    held -= sizes[name]
            return out
