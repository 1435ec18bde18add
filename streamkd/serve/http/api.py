"""Every route of the HTTP port, each with the scope that opens it.

    request ─► a name of ours ─► token of the scope ─► endpoint ─► answer | {"error", "id"}

Predictions are the Open Inference Protocol v2 (``streamkd.serve.predictions.openinference``); pushed records go through
(``streamkd.serve.http.ingest_proxy``). Health is for everyone, under any name. Nothing here waits for the learner.
"""

import asyncio
import hashlib
import math
import platform
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version as distribution_version
from pathlib import Path
from urllib.parse import quote

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import streamkd
from streamkd.errors import NotReady, RecordError, StateError
from streamkd.records import RecordSchema
from streamkd.serve.http import page
from streamkd.serve.http.answers import RequestError, answer, reason_of, refusal, retry_after
from streamkd.serve.http.body import BODY_TIMEOUTS, BodyBudget, BodyTimeouts, read_body
from streamkd.serve.http.handover import Handover
from streamkd.serve.http.hosts import Hosts, same_origin
from streamkd.serve.http.ingest_proxy import IngestProxy
from streamkd.serve.predictions import openinference
from streamkd.serve.predictions.follower import VersionFollower
from streamkd.serve.predictions.kept import Prediction
from streamkd.serve.predictions.predictor import Predictor, ServedModel
from streamkd.serve.predictions.reader import Reader
from streamkd.serve.processes.server_status import ServerStatus
from streamkd.streams.ingest.tokens import Scope, Tokens
from streamkd.telemetry import Exposition, Recorder

_ADMIN_BYTES = 4_096
_INLINE_BYTES = 1 << 16  # of JSON are read in 2 ms at worst; more are read in a process of their own
_INLINE_VALUES = 1 << 12  # of an answer are written in less time than a thread is woken in
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Services:
    """What the routes speak to."""

    status: ServerStatus
    predictor: Predictor
    follower: VersionFollower
    proxy: IngestProxy
    tokens: Tokens
    recorder: Recorder
    exposition: Exposition
    body_bytes: int
    queue_rows: int
    reader: Reader
    patience: BodyTimeouts = BODY_TIMEOUTS
    hosts: tuple[str, ...] = ()
    handover: Handover | None = None  # where predictions are kept for their labels
    artefact: Path | None = None  # where what is served is exported to


def application(services: Services) -> Starlette:
    """The ASGI application."""
    api = Api(services)
    scoped: tuple[tuple[str, str, Scope | None, Endpoint], ...] = (
        ("GET", "/", None, page.show),
        ("GET", "/v2/health/live", None, api.live),
        ("GET", "/v2/health/ready", None, api.ready),
        ("GET", "/v2", "predict", api.server),
        ("GET", "/v2/models/{model}", "predict", api.model),
        ("GET", "/v2/models/{model}/ready", "predict", api.model_ready),
        ("POST", "/v2/models/{model}/infer", "predict", api.infer),
        ("GET", "/v2/models/{model}/versions/{version}", "predict", api.model),
        ("GET", "/v2/models/{model}/versions/{version}/ready", "predict", api.model_ready),
        ("POST", "/v2/models/{model}/versions/{version}/infer", "predict", api.infer),
        ("GET", "/metrics", "predict", api.metrics),
        ("GET", "/v1/status", "predict", api.status),
        ("GET", "/v1/models", "predict", api.versions),
        ("GET", "/v1/models/{model}/artifact", "predict", api.artifact),
        ("POST", "/v1/models/rollback", "admin", api.rollback),
        ("POST", "/v1/models/unpin", "admin", api.unpin),
        ("POST", "/v1/streams/{stream}", "ingest", api.push),
        ("POST", "/v1/labels", "label", api.label),
    )
    routes = [
        Route(path, api.guarded(scope, endpoint, path), methods=[method]) for method, path, scope, endpoint in scoped
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: http_fault})


class Api:
    """The endpoints over the services."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._budget = BodyBudget(4 * services.body_bytes)
        self._hosts = Hosts(services.hosts, guarded=not services.tokens.open)
        services.recorder.set(
            "build_info",
            1,
            version=streamkd.__version__,
            python=platform.python_version(),
            torch=distribution_version("torch"),
            platform=platform.machine(),
        )
        services.recorder.set("queue_capacity_records", services.queue_rows, queue="predict")

    def guarded(self, scope: Scope | None, endpoint: Endpoint, path: str) -> Endpoint:
        """The endpoint behind its token; whatever it raises becomes an answer."""
        is_health = path.startswith("/v2/health/")  # probes ask by address, and learn nothing that is worth hiding

        async def answered(request: Request) -> Response:
            try:
                if not is_health:
                    self._hosts.check(request)
                if request.method == "POST":
                    same_origin(request)
                if scope is not None:
                    self._authorize(request, scope)
                return await endpoint(request)
            except Exception as fault:  # noqa: BLE001 - the outermost command of a request
                return refusal(fault)

        return answered

    def _authorize(self, request: Request, scope: Scope) -> None:
        verdict = self._s.tokens.verdict(request.headers.get("authorization"), scope)
        if verdict == "allowed":
            return
        self._s.recorder.count("auth_failures_total", protocol="http")
        if verdict == "scope":
            raise RequestError(403, f"needed a token with the scope {scope!r}, got one without")
        challenge = {"WWW-Authenticate": 'Bearer realm="streamkd"'}
        raise RequestError(401, "needed `Authorization: Bearer TOKEN`, got none that is known", headers=challenge)

    async def live(self, request: Request) -> Response:
        """Alive, whatever the learner does: a stalled learner is an alert, no reason to kill this process."""
        return answer({"live": True, "ready": not self._reason()})

    async def ready(self, request: Request) -> Response:
        """200 while everything that the configuration offers is there: predictions, and taking pushed records."""
        reason = self._reason()
        if reason:
            return answer({"live": True, "ready": False, "reason": reason}, 503, retry_after(1))
        return answer({"live": True, "ready": True})

    async def server(self, request: Request) -> Response:
        """Server metadata."""
        extensions = list(openinference.EXTENSIONS)
        return answer({"name": "streamkd", "version": streamkd.__version__, "extensions": extensions})

    async def model(self, request: Request) -> Response:
        """Model metadata, of the served version or of one by number; ``seen``: what it was trained on."""
        published = await self._published(request)
        about = openinference.metadata(published.schema, published.classes, [published.version])
        return answer({**about, "seen": await asyncio.to_thread(self._s.follower.seen, published.version)})

    async def model_ready(self, request: Request) -> Response:
        """200 when that version answers."""
        published = await self._published(request)
        return answer({"name": openinference.MODEL, "version": str(published.version), "ready": True})

    async def infer(self, request: Request) -> Response:
        """A prediction."""
        recorder, begin = self._s.recorder, time.monotonic()
        recorder.count("predict_requests_total", protocol="http")
        try:
            return await self._infer(request)
        except Exception as fault:
            recorder.count("predict_failures_total", protocol="http", reason=reason_of(fault))
            raise
        finally:
            recorder.observe("predict_duration_seconds", time.monotonic() - begin, protocol="http")

    async def _infer(self, request: Request) -> Response:
        published = await self._published(request)
        limit_bytes = openinference.largest_body(published.schema, self._s.queue_rows) or self._s.body_bytes
        with self._budget.reserve(_peer(request)) as reservation:
            body = await read_body(request, min(limit_bytes, self._s.body_bytes), self._s.patience, reservation)
            asked, inputs = await self._read(body, request.headers.get(openinference.HEADER_LENGTH), published.schema)
            if asked.faults:
                self._s.recorder.count("predict_records_rejected_total", len(asked.faults), protocol="http")
            probabilities = await self._s.predictor.predict(published, inputs)
            schema, said = published.schema, self._parameters(published, asked, probabilities)
            render = partial(
                openinference.render, asked, probabilities, published.classes, schema, published.version, said
            )
            if probabilities.size <= _INLINE_VALUES:
                rendered, headers = render()
            else:
                rendered, headers = await asyncio.to_thread(render)
            return Response(rendered, 200, headers)

    async def _read(
        self, body: bytes, header_length: str | None, schema: RecordSchema
    ) -> tuple[openinference.InferRequest, np.ndarray]:
        """The request in a body, read where it holds up nobody."""
        arguments = (body, header_length, schema, self._s.queue_rows)
        if openinference.json_length(body, header_length) > _INLINE_BYTES:
            return await self._s.reader.read(*arguments)
        kinds = {column.kind for column in schema.inputs}
        inline_bytes = 0 if kinds & {"text", "image"} else _INLINE_BYTES if kinds == {"tensor"} else _INLINE_BYTES // 4
        if len(body) <= inline_bytes:
            return openinference.read(*arguments)
        return await asyncio.to_thread(openinference.read, *arguments)

    def _parameters(
        self, published: ServedModel, asked: openinference.InferRequest, probabilities: np.ndarray
    ) -> dict[str, str | float | bool]:
        said: dict[str, str | float | bool] = {
            "version": published.version,
            "published_timestamp_seconds": published.published_at,
            "lag_records": self._s.status.lag_records(published.records),
            "prediction_id": (key := asked.prediction_id or uuid.uuid4().hex),
        }
        if self._s.handover is not None:
            now, bad = time.time(), tuple(sorted(asked.faults))
            answered = Prediction(key, asked.columns, probabilities, published, now, bad)
            said["kept"] = self._s.handover.put(answered)
        return said

    async def _published(self, request: Request) -> ServedModel:
        model, version = request.path_params["model"], request.path_params.get("version")
        self._ours(model)
        current = self._s.predictor.current()
        if version is None or version == str(current.version):
            return current
        if not (version.isascii() and version.isdigit() and len(version) < 19):
            raise RequestError(404, f"needed a version's number, got {version[:80]!r}")
        try:
            return await asyncio.to_thread(self._s.follower.get, int(version))
        except StateError as fault:
            raise RequestError(404, fault.message, fix=fault.fix) from None

    def _ours(self, model: str) -> None:
        if model != openinference.MODEL:
            raise RequestError(404, f"needed the model {openinference.MODEL!r}, got {model[:80]!r}")

    async def metrics(self, request: Request) -> Response:
        """The Prometheus text."""
        self._refresh()
        text, content_type = self._s.exposition.expose()
        return Response(text, 200, {"Content-Type": content_type})

    def _refresh(self) -> None:
        """Gauges that are read, not told, as they stand now."""
        recorder, predictor, status = self._s.recorder, self._s.predictor, self._s.status
        recorder.set("ready", not self._reason())
        recorder.set("queue_records", predictor.waiting_rows, queue="predict")
        recorder.set("predict_in_flight", predictor.in_flight, protocol="http")
        if (lag := status.lag.records()) is not None:
            recorder.set("source_lag_records", lag, source=status.source)
        if predictor.version is not None:
            published = predictor.current()
            recorder.set("model_version", published.version)
            recorder.set("model_pinned", self._s.follower.pin is not None)
            recorder.set("model_lag_records", status.lag_records(published.records))
            recorder.set("model_published_timestamp_seconds", published.published_at)
        self._s.exposition.apply(recorder.drain())

    async def status(self, request: Request) -> Response:
        """What the page at / shows."""
        published = self._s.predictor.current() if self._s.predictor.version is not None else None
        refused = self._s.exposition.totals("dead_letter_records_total", "reason")
        pin = self._s.follower.pin
        return answer(
            self._s.status.status(
                published.version if published else None,
                published.published_at if published else None,
                self._reason(),
                {reason: int(count) for reason, count in refused.items() if count and math.isfinite(count)},
                asdict(pin) if pin else None,
            ),
            headers={"Cache-Control": "no-store"},
        )

    async def versions(self, request: Request) -> Response:
        """The versions that are kept, and which of them answers."""
        kept = await asyncio.to_thread(self._s.follower.list)
        listed = [
            {"created_timestamp_seconds" if name == "created" else name: value for name, value in asdict(info).items()}
            for info in kept
        ]
        return answer({"served": self._s.predictor.version, "versions": listed})

    async def artifact(self, request: Request) -> Response:
        """The newest export of what is served, or 304 to whoever has it."""
        self._ours(request.path_params["model"])
        if self._s.artefact is None:
            raise RequestError(404, "nothing is exported here", fix="streamkd serve --export-every SECONDS")
        try:
            content = await asyncio.to_thread(self._s.artefact.read_bytes)
        except FileNotFoundError:
            raise NotReady("nothing is exported yet", fix="come again") from None
        tag = f'"{(await asyncio.to_thread(hashlib.sha256, content)).hexdigest()}"'
        known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Type": "application/octet-stream"}
        return Response(b"", 304, headers) if {tag, "*"} & {*known} else Response(content, 200, headers)

    async def rollback(self, request: Request) -> Response:
        """Serve an old version under a new number, pinned."""
        with self._budget.reserve(_peer(request)) as reservation:
            body = await read_body(request, _ADMIN_BYTES, self._s.patience, reservation)
        version = openinference.json_object(body).get("version")
        if not isinstance(version, int) or isinstance(version, bool) or not 0 < version < 2**63:
            raise RecordError('needed {"version": NUMBER}' + f", got {version!r:.80} as version")
        number = await asyncio.to_thread(self._s.follower.rollback, version)
        return answer({"version": number, "source_version": version, "pinned": True})

    async def unpin(self, request: Request) -> Response:
        """Serve the newest version again."""
        await asyncio.to_thread(self._s.follower.unpin)
        return answer({"pinned": False})

    async def push(self, request: Request) -> Response:
        """Records for the log."""
        with self._budget.reserve(_peer(request)) as reservation:
            path = f"{_mounted(request)}/v1/streams/{quote(request.path_params['stream'], safe='')}"
            return await self._s.proxy.forward(request, path, reservation)

    async def label(self, request: Request) -> Response:
        """Labels of predictions, for the log."""
        with self._budget.reserve(_peer(request)) as reservation:
            return await self._s.proxy.forward(request, f"{_mounted(request)}/v1/labels", reservation)

    def _reason(self) -> str:
        """Why this server is not ready; empty when it answers predictions and takes pushed records."""
        if self._s.status.draining:
            return self._s.status.closed()
        try:
            self._s.predictor.current()
        except NotReady as fault:
            return fault.message
        return self._s.status.closed()


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""


def _mounted(request: Request) -> str:
    """Where these routes are mounted, `/t/NAME` of a tenant; the ingress has them in the same place."""
    return str(request.scope.get("root_path", ""))


async def http_fault(_request: Request, fault: Exception) -> Response:
    """What the framework itself refuses, in the form of all answers."""
    assert isinstance(fault, HTTPException)
    return refusal(RequestError(fault.status_code, str(fault.detail), headers=fault.headers))
