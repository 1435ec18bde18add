"""The names that a server answers under, and the pages that may act on it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from streamkd.streams.ingest.tokens import create

from ..conftest import Publisher, Running

OWN = ["127.0.0.1", "127.0.0.1:8470", "127.8.9.1:1", "localhost", "LocalHost.:80", "[::1]", "[::1]:8470"]
STRANGE = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example:8470",
    "10.0.0.1",
    "[fe80::1]",
    "",
    "[",
    "1",
]


@pytest.mark.parametrize("host", OWN)
def test_names_of_loopback_are_answered(shared: Running, host: str) -> None:
    """Every address of loopback and its name, with any port."""
    assert shared.client.get("/v1/status", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", STRANGE)
@pytest.mark.parametrize("path", ["/v1/status", "/", "/metrics", "/v2/models/student"])
def test_a_rebound_name_is_421(shared: Running, host: str, path: str) -> None:
    """A page whose name was made to lead here reads nothing; the answer says which setting allows a name."""
    reply = shared.client.get(path, headers={"Host": host})
    assert reply.status_code == 421
    assert "serve.hosts" in reply.json()["error"]


@pytest.mark.parametrize("path", ["/v1/models/rollback", "/v1/models/unpin", "/v1/streams/main"])
def test_a_rebound_name_changes_nothing(shared: Running, path: str) -> None:
    """Nor does it roll back, or push records, though origin and host agree."""
    headers = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert shared.client.post(path, content=b'{"version": 1}', headers=headers).status_code == 421


def test_health_is_answered_under_every_name(shared: Running) -> None:
    """Probes ask by the address of a container."""
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert shared.client.get(path, headers={"Host": "10.1.2.3:8470"}).status_code == 200


def test_hosts_of_the_configuration_are_answered(start: Callable[..., Running], publisher: Publisher) -> None:
    """`serve.hosts` adds names, and no others."""
    client = start(hosts=("Kd.example",)).client
    assert client.get("/v1/status", headers={"Host": "kd.example:8470"}).status_code == 200
    assert client.get("/v1/status", headers={"Host": "a.kd.example"}).status_code == 421


def test_with_tokens_every_name_is_answered(tmp_path: Path, start: Callable[..., Running]) -> None:
    """A rebound page has no token."""
    token = create(tmp_path / "tokens", "me", ["predict"])
    client = start(tokens=tmp_path / "tokens").client
    headers = {"Host": "kd.example"}
    assert client.get("/v1/status", headers=headers).status_code == 401
    assert client.get("/v1/status", headers={**headers, "Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    "says",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://{host}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_another_sites_page_cannot_act(shared: Running, says: dict[str, str]) -> None:
    """A form of text/plain needs no leave of ours to be sent; it is refused by what the browser says of its page."""
    host = shared.url.removeprefix("http://")
    headers = {name: value.format(host=host) for name, value in says.items()} | {"Content-Type": "text/plain"}
    for path in ("/v1/models/rollback", "/v1/streams/main", "/v2/models/student/infer"):
        assert shared.client.post(path, content=b'{"version": 1}', headers=headers).status_code == 403


def test_the_own_page_can_act(shared: Running) -> None:
    """Its origin is ours."""
    headers = {"Origin": shared.url, "Sec-Fetch-Site": "same-origin"}
    assert shared.client.post("/v1/models/rollback", content=b"{}", headers=headers).status_code == 400
