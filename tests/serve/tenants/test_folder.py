"""A folder of tenants: what is one, and which configurations fit."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from streamkd.errors import ConfigError
from streamkd.plugins import Registry
from streamkd.serve.tenants import folder
from streamkd.settings import Serve

TREE: dict[str, Any] = {
    "stream": {"source": {"name": "http"}, "records": {"inputs": [{"name": "x", "shape": [2]}]}},
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def put(path: Path, tree: dict[str, Any]) -> folder.TenantFile:
    """A configuration in a file, as it is found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return folder.TenantFile(path, ())


def test_a_tenant_is_a_file_or_a_folder(tmp_path: Path) -> None:
    """Both forms are found under their names; what has no such name or no configuration is none."""
    put(tmp_path / "a.yaml", TREE)
    put(tmp_path / "b" / "config.yaml", TREE)
    put(tmp_path / "no such name.yaml", TREE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("tenants")
    assert list(folder.look(tmp_path)) == ["a", "b"]


def test_a_change_of_the_file_is_seen(tmp_path: Path) -> None:
    """A file that is written again has another stamp, one that is not the same."""
    put(tmp_path / "a.yaml", TREE)
    before = folder.look(tmp_path)
    assert folder.look(tmp_path) == before
    put(tmp_path / "a.yaml", {**TREE, "seed": 1})
    assert folder.look(tmp_path) != before


def test_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tenants than there is room for in the metrics are an error that says so."""
    monkeypatch.setattr(folder, "TENANTS", 1)
    put(tmp_path / "a.yaml", TREE)
    put(tmp_path / "b.yaml", TREE)
    with pytest.raises(ConfigError, match="at most 1 tenants, got 2"):
        folder.look(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stream": {**TREE["stream"], "source": {"name": "flight"}}}, "a tenant's source is http, got flight"),
        ({"stream": {"source": {"name": "http"}}}, "cannot say what its records look like"),
        ({"stream": {**TREE["stream"], "labels": {}}}, "stream.labels: is not there for tenants"),
        ({"serve": {"export_every": 5}}, "serve.export_every: is not there for tenants"),
        ({"serve": {"tokens": "/nowhere"}}, "the token file cannot be read"),
    ],
)
def test_what_fits_no_tenant_is_refused(tmp_path: Path, registry: Registry, changes: dict[str, Any], said: str) -> None:
    """Each is refused with its place and a way out."""
    with pytest.raises(ConfigError, match=said) as refused:
        folder.read(put(tmp_path / "a.yaml", {**TREE, **changes}), registry, Serve())
    assert refused.value.fix


def test_a_server_that_others_reach_wants_tokens_of_each(tmp_path: Path, registry: Registry) -> None:
    """Beyond loopback a tenant without tokens is refused, whatever the server has; --insecure allows it."""
    file = put(tmp_path / "a.yaml", TREE)
    with pytest.raises(ConfigError, match="tokens"):
        folder.read(file, registry, Serve(host="192.0.2.1"))
    assert folder.read(file, registry, Serve(host="192.0.2.1", insecure=True)).stream.source.name == "http"
