"""The way of pushed records and labels over HTTP: through to the ingress process, which alone decodes them.

    POST /v1/streams/{stream} | /v1/labels ─► whole body, in time ─► unix socket ─► ingress ─► its answer, unchanged

The ingress takes few bodies at once, and gets whole ones only: one that comes slowly holds up nobody else's.
A batch that brings the ingress down takes nothing else with it: the client gets 503 with Retry-After and sends
the batch again under its (producer, sequence), which the log deduplicates.
"""

from pathlib import Path

import httpx
from starlette.requests import Request
from starlette.responses import Response

from streamkd.errors import Overloaded
from streamkd.serve.http.answers import RETRY_AFTER_SECONDS, RequestError, retry_after
from streamkd.serve.http.body import BODY_TIMEOUTS, BodyTimeouts, Reservation, read_body

FORWARDED = (
    "authorization",
    "content-type",
    "content-encoding",
    "streamkd-producer",
    "streamkd-sequence",
)
RETURNED = ("content-type", "retry-after")
_TIMEOUT = httpx.Timeout(60.0, connect=2.0, pool=5.0)
_LIMITS = httpx.Limits(max_connections=16, max_keepalive_connections=4)


class IngestProxy:
    """Passes requests on to the socket; ``None`` where the configuration has no push source."""

    def __init__(
        self, socket: Path | None, source: str, limit_bytes: int, patience: BodyTimeouts = BODY_TIMEOUTS
    ) -> None:
        self._source = source
        self._patience = patience
        self._limit_bytes = limit_bytes
        self._client: httpx.AsyncClient | None = None
        if socket is not None:
            transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=_LIMITS)
            self._client = httpx.AsyncClient(transport=transport, base_url="http://ingress", timeout=_TIMEOUT)

    async def forward(self, request: Request, path: str, reservation: Reservation) -> Response:
        """The ingress' answer to a request, whose body is held in ``reservation``.

        Raises:
            RequestError: 409 where no source takes pushes, 408 too slow, 503 while the ingress is down.
            LimitExceeded: too large. Overloaded: too many at once.
        """
        if self._client is None:
            raise RequestError(
                409,
                f"this server's source is {self._source!r}, which takes no pushed records",
                fix="set stream.source to {name: http} or {name: flight} and start again",
            )
        # as they came: a producer's name need not be ASCII
        headers = [(name, value) for name, value in request.headers.raw if name.decode("latin-1") in FORWARDED]
        body = await read_body(request, self._limit_bytes, self._patience, reservation, unpack=False)
        try:
            reply = await self._client.post(path, content=body, headers=headers)
        except httpx.PoolTimeout:
            raise Overloaded("too many batches are being taken at once", fix="send fewer at a time") from None
        except httpx.ConnectError:
            raise _down("the ingress process is not there yet or is being restarted") from None
        except httpx.TransportError:
            raise _down("the ingress process ended while it held this batch; it was not acknowledged") from None
        kept = {name: reply.headers[name] for name in RETURNED if name in reply.headers}
        return Response(reply.content, reply.status_code, kept)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


def _down(message: str) -> RequestError:
    fix = "send it again, under the same producer and sequence"
    return RequestError(503, message, fix=fix, headers=retry_after(RETRY_AFTER_SECONDS))
