"""A real server on loopback over a real state directory: published students of two inputs, no learner."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn

from streamkd.plugins import Registry
from streamkd.records import InputColumn, Label, RecordSchema
from streamkd.serve.http.api import Services, application
from streamkd.serve.http.body import BODY_TIMEOUTS, BodyTimeouts
from streamkd.serve.http.connections import ConnectionLimits, bounded
from streamkd.serve.http.handover import Handover
from streamkd.serve.http.ingest_proxy import IngestProxy
from streamkd.serve.http.listen import bind, url_of
from streamkd.serve.predictions.follower import VersionFollower
from streamkd.serve.predictions.predictor import Predictor
from streamkd.serve.predictions.reader import Reader
from streamkd.serve.processes.server_status import ServerStatus
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore
from streamkd.streams.ingest.tokens import Tokens
from streamkd.students.networks import Mlp, MlpOptions, Student, write_published
from streamkd.telemetry import Exposition, Recorder

torch.set_num_threads(1)
PATIENCE = ConnectionLimits()
SCHEMA = RecordSchema(inputs=(InputColumn(name="image", shape=(2, 3), dtype="uint8", scale=1 / 255),))


class Publisher:
    """Owns a state directory and publishes students: that of number ``seed`` has weights of that seed."""

    def __init__(self, path: Path) -> None:
        self.directory = StateDirectory(path)
        self._lock = self.directory.lock()
        self._lock.__enter__()
        self.versions = VersionStore(self.directory, keep=10)

    def publish(
        self,
        seed: int = 0,
        schema: RecordSchema = SCHEMA,
        classes: tuple[Label, ...] = (7, 3, 5),
        records: int = 100,
        spoil: Callable[[Student], None] = lambda student: None,
    ) -> int:
        student = make_student(seed, schema, len(classes))
        spoil(student)
        meta = {
            "student": {"name": "mlp", "options": {"hidden": [4]}},
            "schema": schema.model_dump(mode="json"),
            "classes": list(classes),
            "seed": seed,
            "records": records,
            "published_at": time.time(),
        }
        seen = {"offsets": {"main/0": records}, "positions": {"orders/0": 2 * records}}
        return self.versions.publish(lambda folder: write_published(folder, student, meta), records=records, **seen)

    def close(self) -> None:
        self.versions.close()
        self._lock.__exit__(None, None, None)


def make_student(seed: int, schema: RecordSchema = SCHEMA, classes: int = 3) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Student(Mlp(MlpOptions(hidden=(4,)), schema.shape, classes), schema, seed)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(3.0)
    return student.eval()


@dataclass
class Running:
    """A server with everything behind it in reach of the test."""

    url: str
    services: Services
    publisher: Publisher
    client: httpx.Client

    def wait_for(self, version: int, seconds: float = 10.0) -> None:
        """Wait until that version answers."""
        until(lambda: self.services.predictor.version == version, seconds)


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.load(["students"])


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    publisher = Publisher(tmp_path / "state")
    yield publisher
    publisher.close()


@contextmanager
def serving(
    publisher: Publisher,
    registry: Registry,
    tokens: Path | None = None,
    socket: Path | None = None,
    queue_rows: int = 512,
    body_bytes: int = 1 << 20,
    connections: ConnectionLimits = PATIENCE,
    bodies: BodyTimeouts = BODY_TIMEOUTS,
    hosts: tuple[str, ...] = (),
    keep: bool = False,
) -> Iterator[Running]:
    """A server over the publisher's state directory; ``keep``: predictions are handed over to the socket."""
    recorder = Recorder()
    handover = Handover(socket, SCHEMA, recorder) if keep and socket else None
    predictor = Predictor(16, queue_rows, recorder)
    follower = VersionFollower(
        StateDirectory(publisher.directory.path),
        registry,
        predictor,
        recorder,
        poll_seconds=0.02,
    )
    services = Services(
        ServerStatus("test", "replay"),
        predictor,
        follower,
        IngestProxy(socket, "replay", body_bytes, bodies),
        Tokens(tokens),
        recorder,
        Exposition(),
        body_bytes,
        queue_rows,
        Reader(columns=keep),
        bodies,
        hosts,
        handover,
    )
    bound = bind("127.0.0.1", 0)
    app = application(services)
    server = uvicorn.Server(
        uvicorn.Config(app, http=bounded(connections), ws="none", log_config=None, access_log=False, lifespan="off")
    )

    async def serve() -> None:
        keeping = [asyncio.create_task(handover.run())] if handover else []
        await server.serve(sockets=[bound])
        for task in keeping:
            task.cancel()
        services.reader.close()
        await services.proxy.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:  # the loop of `streamkd serve`
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: server.started)
    url = url_of("http", bound)
    with httpx.Client(base_url=url, timeout=20) as client:
        yield Running(url, services, publisher, client)
    server.should_exit = True
    thread.join(10)
    follower.close()
    predictor.close()


@pytest.fixture
def start(publisher: Publisher, registry: Registry) -> Iterator[Callable[..., Running]]:
    """Starts servers over the publisher's state directory; each is stopped when the test ends."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serving(publisher, registry, **settings))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Running]:
    """One server with version 1 published, for tests that change nothing."""
    publisher = Publisher(tmp_path_factory.mktemp("shared") / "state")
    version = publisher.publish(seed=1)
    with serving(publisher, registry) as running:
        running.wait_for(version)
        yield running
    publisher.close()


@pytest.fixture
def running(start: Callable[..., Running], publisher: Publisher) -> Running:
    """A server with version 1 published."""
    version = publisher.publish(seed=1)
    server = start()
    server.wait_for(version)
    return server
