"""The HTTP port of a server with tenants: ``/t/NAME/`` is each one's own, the rest tells of all.

    /t/NAME/... ─► the tenant's desk ─► as a server of one stream answers
    /v1/tenants, /metrics ─► a line, or a few series, for each        /v2/health ─► of the server

A tenant's tokens open its own routes; the server's open the list and the metrics of all, and nothing of a tenant.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from streamkd.errors import ConfigError, NotReady
from streamkd.serve.http.answers import RequestError, answer, refusal, retry_after
from streamkd.serve.http.api import http_fault
from streamkd.serve.http.hosts import Hosts
from streamkd.serve.processes.server_status import ServerStatus
from streamkd.serve.tenants.desks import Desk, Desks
from streamkd.serve.tenants.tenant import Tenant
from streamkd.streams.ingest.tokens import Tokens
from streamkd.telemetry import Exposition

LOAD_SECONDS = 20.0  # that a first question waits for its model
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class FrontServices:
    """What the routes speak to.

    ``list``: a line for each tenant; ``count``: take the numbers of all; ``looked``: whether the folder has been read,
    before which nobody can be said to be missing.
    """

    tenants: Mapping[str, Tenant]
    desks: Desks
    status: ServerStatus
    tokens: Tokens
    hosts: Hosts
    exposition: Exposition
    list: Callable[[], Mapping[str, Any]]
    count: Callable[[], None]
    looked: Callable[[], bool]


def front(services: FrontServices) -> Starlette:
    """The ASGI application."""
    routes = _FrontRoutes(services)
    plain = (
        ("/", routes.tenants, True),
        ("/v1/tenants", routes.tenants, True),
        ("/metrics", routes.metrics, True),
        ("/v2/health/live", routes.live, False),
        ("/v2/health/ready", routes.ready, False),
    )
    found = [Route(path, routes.guarded(endpoint, is_closed)) for path, endpoint, is_closed in plain]
    return Starlette(
        routes=[*found, Mount("/t/{tenant}", app=routes.lead)], exception_handlers={HTTPException: http_fault}
    )


class _FrontRoutes:
    def __init__(self, services: FrontServices) -> None:
        self._s = services

    def guarded(self, endpoint: Endpoint, is_closed: bool) -> Endpoint:
        """The endpoint, where ``is_closed`` for the server's own tokens alone."""

        async def answered(request: Request) -> Response:
            try:
                if is_closed:
                    self._s.hosts.check(request)
                    self._authorize(request)
                return await endpoint(request)
            except Exception as fault:  # noqa: BLE001 - the outermost command of a request
                return refusal(fault)

        return answered

    def _authorize(self, request: Request) -> None:
        verdict = self._s.tokens.verdict(request.headers.get("authorization"), "predict")
        if verdict == "scope":
            raise RequestError(403, "needed a token with the scope 'predict', got one without")
        if verdict == "unknown":
            challenge = {"WWW-Authenticate": 'Bearer realm="streamkd"'}
            raise RequestError(401, "needed a token of the server, got none that is known", headers=challenge)

    async def tenants(self, request: Request) -> Response:
        """Every tenant in a line."""
        return answer(await asyncio.to_thread(self._s.list), headers={"Cache-Control": "no-store"})

    async def metrics(self, request: Request) -> Response:
        """The Prometheus text of the server; a tenant's whole is at its own ``/t/NAME/metrics``."""
        await asyncio.to_thread(self._s.count)
        text, content_type = self._s.exposition.expose()
        return Response(text, 200, {"Content-Type": content_type})

    async def live(self, request: Request) -> Response:
        return answer({"live": True, "ready": not self._s.status.closed()})

    async def ready(self, request: Request) -> Response:
        """200 while records are taken; whether a tenant is ready it says itself."""
        reason = self._s.status.closed()
        if reason:
            return answer({"live": True, "ready": False, "reason": reason}, 503, retry_after(1))
        return answer({"live": True, "ready": True})

    async def lead(self, scope: Scope, receive: Receive, send: Send) -> None:
        """To a tenant's own routes."""
        try:
            desk = self._desk(scope["path_params"]["tenant"])
            if not desk.follower.looked.is_set():
                await asyncio.to_thread(desk.follower.looked.wait, LOAD_SECONDS)
        except Exception as fault:  # noqa: BLE001 - the outermost command of a request
            await refusal(fault)(scope, receive, send)
            return
        await desk.application(scope, receive, send)
        for gone in self._s.desks.surplus():
            await asyncio.to_thread(gone.close)

    def _desk(self, name: str) -> Desk:
        tenant = self._s.tenants.get(name)
        if tenant is None:
            if not self._s.looked():
                raise NotReady("the folder of the tenants is not read yet", fix="come again")
            raise RequestError(404, f"there is no tenant {name[:80]!r}")
        if tenant.config is None:
            raise RequestError(503, "this tenant's configuration cannot be used; its operator is told why")
        try:
            return self._s.desks.open(tenant)
        except ConfigError:
            raise RequestError(503, "this tenant's tokens cannot be read; its operator is told why") from None
