"""The HTTP port of a server with tenants: whose token opens what, and where a path leads."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from streamkd import config as configuration
from streamkd.plugins import Registry
from streamkd.serve.http.hosts import Hosts
from streamkd.serve.http.ingest_proxy import IngestProxy
from streamkd.serve.predictions.reader import Reader
from streamkd.serve.processes.server_status import ServerStatus
from streamkd.serve.tenants.desks import Desks
from streamkd.serve.tenants.folder import TenantFile
from streamkd.serve.tenants.routes import FrontServices, front
from streamkd.serve.tenants.tenant import Tenant
from streamkd.settings import Serve
from streamkd.streams.ingest.tokens import Tokens, create
from streamkd.telemetry import Exposition

from ..conftest import Publisher

STREAM = {"source": {"name": "http"}, "records": {"inputs": [{"name": "x", "shape": [2]}]}}


class Served:
    """A server with two tenants that have tokens of their own, a broken one, and its own token."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.tenants: dict[str, Tenant] = {}
        self.looked = True
        self.tokens = {"server": create(folder / "server.json", "operator", ["predict"])}
        for name in "ab":
            publisher = Publisher(folder / name)
            publisher.publish()
            publisher.close()
            self.tokens[name] = create(folder / f"{name}.json", name, ["predict"])
            tree = {"stream": STREAM, "serve": {"tokens": str(folder / f"{name}.json")}}
            self._add(name, folder, configuration.from_tree(tree))
        self._add("broken", folder, None)
        self.desks = Desks(Serve(), registry, IngestProxy(None, "http", 1 << 20), Reader())
        tokens = Tokens(folder / "server.json")
        self.application = front(
            FrontServices(
                self.tenants, self.desks, ServerStatus("t", "http"), tokens, Hosts(guarded=True), Exposition(),
                lambda: {"tenants": list(self.tenants)}, lambda: None, lambda: self.looked,
            )
        )  # fmt: skip

    def _add(self, name: str, folder: Path, config: configuration.Config | None) -> None:
        self.tenants[name] = Tenant(name, TenantFile(folder, ()), folder / name, config)

    def get(self, path: str, whose: str = "") -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.application)
            headers = {"Authorization": f"Bearer {self.tokens[whose]}"} if whose else {}
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
                return await client.get(path)

        return asyncio.run(ask())


@pytest.fixture
def served(tmp_path: Path, registry: Registry) -> Iterator[Served]:
    made = Served(tmp_path, registry)
    yield made
    for name in made.tenants:
        made.desks.close(name)


@pytest.mark.parametrize(
    ("path", "opens"),
    [("/t/a/v2/models/student", "a"), ("/t/b/v1/status", "b"), ("/v1/tenants", "server"), ("/metrics", "server")],
)
def test_each_token_opens_its_own_routes_alone(served: Served, path: str, opens: str) -> None:
    """A tenant's routes answer to its own token, the list of all to the server's, and none to another's or to none."""
    answered = {whose: served.get(path, whose).status_code for whose in ("", "a", "b", "server")}
    assert answered == {whose: 200 if whose == opens else 401 for whose in answered}


def test_who_is_not_there_and_who_is_broken(served: Served) -> None:
    """An unknown name is 404, and 503 before the folder has been read, so that its producer comes again; a tenant
    without a configuration is 503. All in JSON, without its paths.
    """
    unknown, broken = served.get("/t/c/v1/status", "a"), served.get("/t/broken/v1/status", "a")
    assert (unknown.status_code, broken.status_code, served.get("/elsewhere").status_code) == (404, 503, 404)
    assert "no tenant 'c'" in unknown.json()["error"]
    assert "cannot be used" in broken.json()["error"]
    served.looked = False
    early = served.get("/t/c/v1/status", "a")
    assert (early.status_code, "retry-after" in early.headers) == (503, True)


def test_health_is_for_everybody(served: Served) -> None:
    """That of the server, and that of a tenant."""
    assert served.get("/v2/health/live").status_code == 200
    assert served.get("/t/a/v2/health/live").status_code == 200


def test_the_page_of_a_tenant_asks_for_its_own_status(served: Served) -> None:
    """Addresses in the page are relative, so that below /t/NAME/ they are the tenant's."""
    page = served.get("/t/a/").text
    assert 'fetch("v1/status"' in page
    assert '"/v1/' not in page
