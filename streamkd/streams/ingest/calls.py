"""Calls to the Flight port: a token first, and so many at once.

    call ─► token of scope ``ingest``? ─► a place? ─► DoPut, GetSchema ─► completed

A call has a thread of gRPC's before anything of ours hears of it, also where its schema never comes.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.flight as fl

from streamkd.errors import Overloaded
from streamkd.streams.ingest.intake import Ingest


class CallGuard(fl.ServerMiddlewareFactory):
    """Refuses every call without a token of scope ``ingest``, and calls beyond ``limit`` at once.

    ``make_room`` is called where there is no place, and ``refuse`` says it in the protocol's words.
    """

    def __init__(
        self, ingest: Ingest, limit: int, make_room: Callable[[], None], refuse: Callable[[Exception], Exception]
    ) -> None:
        self._ingest, self._limit = ingest, limit
        self._make_room, self._refuse = make_room, refuse
        self._calls = 0
        self._lock = threading.Lock()

    def start_call(self, info: fl.CallInfo, headers: Mapping[str, list[Any]]) -> "_Call":
        self._authorize(headers)
        with self._lock:
            if self._calls < self._limit:
                self._calls += 1
                return _Call(self._completed)
        self._make_room()
        raise self._refuse(Overloaded(f"{self._limit} calls are open", fix="come again"))

    def _completed(self) -> None:
        with self._lock:
            self._calls -= 1

    def _authorize(self, headers: Mapping[str, list[Any]]) -> None:
        given = next((values for name, values in headers.items() if name.lower() == "authorization"), [])
        header = given[0] if len(given) == 1 else None
        text = header.decode("latin-1") if isinstance(header, bytes) else header
        verdict = self._ingest.tokens.verdict(text, "ingest")
        if verdict == "allowed":
            return
        self._ingest.intake.refuse_token("flight")
        if verdict == "scope":
            raise fl.FlightUnauthorizedError("the token does not have the scope 'ingest'")
        raise fl.FlightUnauthenticatedError("needed 'authorization: Bearer TOKEN' with a token of scope 'ingest'")


class _Call(fl.ServerMiddleware):
    """One call, until it ends."""

    def __init__(self, completed: Callable[[], None]) -> None:
        super().__init__()
        self._completed = completed

    def call_completed(self, exception: Exception | None) -> None:
        self._completed()
