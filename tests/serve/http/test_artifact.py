"""The newest artefact over HTTP: whole for whoever has another, 304 for whoever has it."""

from collections.abc import Callable
from pathlib import Path

from streamkd.streams.ingest import tokens

from ..conftest import Running

PATH = "/v1/models/student/artifact"


def test_it_is_given_to_whoever_has_another(start: Callable[..., Running], tmp_path: Path) -> None:
    """With an ETag that changes with its bytes; before the first one 503, of another model 404."""
    file = tmp_path / "model.onnx"
    client = start(artefact=file).client
    assert client.get(PATH).status_code == 503
    assert "nothing is exported yet" in client.get(PATH).json()["error"]
    file.write_bytes(b"first")
    first = client.get(PATH)
    assert (first.status_code, first.content) == (200, b"first")
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(PATH, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    file.write_bytes(b"second")
    second = client.get(PATH, headers={"If-None-Match": tag})
    assert (second.status_code, second.content) == (200, b"second")
    assert second.headers["etag"] != tag
    assert client.get("/v1/models/other/artifact").status_code == 404


def test_where_nothing_is_exported_the_way_to_it_is_told(start: Callable[..., Running]) -> None:
    """The option of the command."""
    answer = start().client.get(PATH)
    assert answer.status_code == 404
    assert "serve --export-every" in answer.json()["error"]


def test_it_takes_the_scope_of_predictions(start: Callable[..., Running], tmp_path: Path) -> None:
    """As the answers that it gives do."""
    (tmp_path / "model.onnx").write_bytes(b"model")
    token = tokens.create(tmp_path / "tokens", "device", ("predict",))
    client = start(artefact=tmp_path / "model.onnx", tokens=tmp_path / "tokens").client
    assert client.get(PATH).status_code == 401
    assert client.get(PATH, headers={"Authorization": f"Bearer {token}"}).content == b"model"
