"""What goes back over HTTP: JSON that every client can read, and errors with an id instead of a traceback.

StreamkdError ─► status, {"error": what was needed and got, how to fix it, "id": ...}, Retry-After
anything else ─► 500, the id alone; the log has the traceback beside the same id
"""

import logging
import math
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from streamkd.errors import LimitExceeded, NotReady, Overloaded, RecordError, StateError, StreamkdError
from streamkd.serve.predictions.tensors import to_json

RETRY_AFTER_SECONDS = 1.0
logger = logging.getLogger(__name__)


class RequestError(StreamkdError):
    """A request that the HTTP layer refuses; ``status`` says how."""

    def __init__(self, status: int, message: str, *, fix: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, fix=fix)
        self.status = status
        self.headers = dict(headers or {})


def answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; numbers that are not finite become null."""
    return Response(to_json(content), status, dict(headers or {}), "application/json")


def refusal(fault: Exception) -> Response:
    """The answer to a request that failed."""
    status, headers = status_of(fault)
    error_id = secrets.token_hex(8)
    if not isinstance(fault, StreamkdError):
        logger.error("request failed, error %s", error_id, exc_info=fault)
        return answer({"error": "the server failed on this request; its log has the reason", "id": error_id}, status)
    text = f"{fault.where}: {fault.message}" if isinstance(fault, RecordError) and fault.where else fault.message
    text = f"{text}; fix: {fault.fix}" if fault.fix else text
    if status >= 500:
        logger.info("answered %d, error %s: %s", status, error_id, text)
    return answer({"error": text, "id": error_id}, status, headers)


def status_of(fault: Exception) -> tuple[int, dict[str, str]]:
    """HTTP status and headers of a fault."""
    if isinstance(fault, RequestError):
        return fault.status, fault.headers
    if isinstance(fault, Overloaded):
        return 429, retry_after(fault.retry_after_seconds)
    if isinstance(fault, NotReady):
        return 503, retry_after(RETRY_AFTER_SECONDS)
    for kind, status in ((LimitExceeded, 413), (RecordError, 400), (StateError, 409)):
        if isinstance(fault, kind):
            return status, {}
    return 500, {}


def reason_of(fault: Exception) -> str:
    """The fault as a value of a metric's label; a closed set."""
    known = {400: "invalid", 401: "auth", 403: "auth", 404: "unknown", 408: "slow", 413: "too_large", 429: "overloaded"}
    return known.get(status := status_of(fault)[0], "not_ready" if status == 503 else "error")


def retry_after(seconds: float) -> dict[str, str]:
    """The header; whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
