"""Which names a request may ask this server under, and from which pages a browser may act on it.

A web page can have its own name resolve to 127.0.0.1 (DNS rebinding): its visitor's browser then takes this server
for the page's. The browser still says that name in ``Host``, so without tokens only names that no stranger controls
are answered: those of loopback, the address that the connection came to, and ``serve.hosts``.
"""

import ipaddress
from collections.abc import Iterable

from starlette.requests import Request

from streamkd.serve.http.answers import RequestError


class Hosts:
    """The names that are answered; ``guarded`` where tokens keep strangers out, so that every name is."""

    def __init__(self, names: Iterable[str] = (), guarded: bool = False) -> None:
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._guarded = guarded

    def check(self, request: Request) -> None:
        """Refuse a request that asks another server.

        Raises:
            RequestError: 400 without exactly one ``Host``, 421 under a name that is not ours.
        """
        given = request.headers.getlist("host")
        if len(given) != 1:
            raise RequestError(400, f"needed one Host header, got {len(given)}")
        name = _name(given[0])
        came_to = (request.scope.get("server") or ("",))[0]
        if not (self._guarded or _is_loopback(name) or name in self._names or name == came_to):
            raise RequestError(
                421,
                f"needed a name of this server as Host, got {given[0][:80]!r}",
                fix="ask 127.0.0.1 or localhost, add the name to serve.hosts, or set serve.tokens",
            )


def same_origin(request: Request) -> None:
    """A page of another site must not act through its visitor's browser.

    Raises:
        RequestError: 403 where the browser says that another site's page asks.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
    own = f"{request.url.scheme}://{request.headers.get('host')}"
    if (origin and origin.lower() != own.lower()) or site not in ("same-origin", "none"):
        raise RequestError(403, f"needed a request of this server's own origin, got {origin or site:.80}")


def _name(host: str) -> str:
    """The host without its port, in lower case; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, colon, port = host.rpartition(":")
    return (name if colon and (port.isdigit() or not port) else host).lower().rstrip(".")


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
