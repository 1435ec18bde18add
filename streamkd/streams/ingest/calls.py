"""Calls to the Flight port: a token first, and so many at once.

    call ─► token of scope ``ingest`` or ``label``? ─► a place? ─► DoPut, GetSchema ─► completed

A call has a thread of gRPC's before anything of ours hears of it, also where its schema never comes.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow.flight as fl

from streamkd.errors import Overloaded
from streamkd.streams.ingest.intake import Ingest
from streamkd.streams.ingest.tokens import Scope

SCOPES: tuple[Scope, ...] = ("ingest", "label")


class CallGuard(fl.ServerMiddlewareFactory):
    """Refuses every call without a token of scope ``ingest`` or ``label``, and calls beyond ``limit`` at once.

    ``make_room`` is called where there is no place, and ``refuse`` says it in the protocol's words.
    """

    def __init__(
        self, ingest: Ingest, limit: int, make_room: Callable[[], None], refuse: Callable[[Exception], Exception]
    ) -> None:
        self._ingest, self._limit = ingest, limit
        self._make_room, self._refuse = make_room, refuse
        self._calls = 0
        self._lock = threading.Lock()

    def start_call(self, info: fl.CallInfo, headers: Mapping[str, list[Any]]) -> "Call":
        scopes = self._authorize(headers)
        with self._lock:
            if self._calls < self._limit:
                self._calls += 1
                return Call(self._completed, scopes)
        self._make_room()
        raise self._refuse(Overloaded(f"{self._limit} calls are open", fix="come again"))

    def _completed(self) -> None:
        with self._lock:
            self._calls -= 1

    def _authorize(self, headers: Mapping[str, list[Any]]) -> Sequence[Scope]:
        """The scopes that the token opens, of those that a call may need."""
        given = next((values for name, values in headers.items() if name.lower() == "authorization"), [])
        header = given[0] if len(given) == 1 else None
        text = header.decode("latin-1") if isinstance(header, bytes) else header
        verdicts = {scope: self._ingest.tokens.verdict(text, scope) for scope in SCOPES}
        scopes = [scope for scope, verdict in verdicts.items() if verdict == "allowed"]
        if scopes:
            return scopes
        self._ingest.intake.refuse_token("flight")
        if "scope" in verdicts.values():
            raise lacking("ingest")
        raise fl.FlightUnauthenticatedError("needed 'authorization: Bearer TOKEN' with a token of scope 'ingest'")


def lacking(scope: Scope) -> Exception:
    """What a call is told whose token is known and opens something else."""
    return fl.FlightUnauthorizedError(f"the token does not have the scope {scope!r}")


class Call(fl.ServerMiddleware):
    """One call, until it ends; ``scopes``: what its token opens."""

    def __init__(self, completed: Callable[[], None], scopes: Sequence[Scope]) -> None:
        super().__init__()
        self._completed, self.scopes = completed, scopes

    def call_completed(self, exception: Exception | None) -> None:
        self._completed()
