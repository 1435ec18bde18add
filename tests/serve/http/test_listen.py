"""The folder for the sockets of a server."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamkd.serve.http import scratch
from streamkd.serve.http.listen import PREFIX, runtime_folder


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty place for temporary files, whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as made:
        monkeypatch.setattr(tempfile, "tempdir", made)
        yield Path(made)


def test_what_a_killed_server_left_goes_with_a_later_start(place: Path) -> None:
    """One folder at a time however often a server was killed; it is ours alone, and goes at the end."""
    left = place / f"{PREFIX}12345678"
    left.mkdir()
    (left / scratch.LOCK).touch()
    os.utime(left, (0, 0))
    with runtime_folder() as folder:
        assert list(place.iterdir()) == [folder]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(place.iterdir()) == []


def test_a_long_path_for_temporary_files_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unix socket's path has at most 107 bytes: where the usual place is longer, another is taken."""
    above = tmp_path / ("x" * 120)
    above.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(above))
    with runtime_folder() as folder, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "ingress.sock"))
