"""Tokens: scopes, hashing at rest, reload."""

import json
import os
from pathlib import Path

import pytest

from streamkd.errors import ConfigError
from streamkd.streams.ingest.tokens import Tokens, create


def test_no_file_is_an_open_door() -> None:
    """Without a token file everything is allowed."""
    assert Tokens(None).verdict(None, "admin") == "allowed"


def test_a_token_opens_its_scopes_only(tmp_path: Path) -> None:
    """A token opens the scopes it was made with, and no other."""
    file = tmp_path / "tokens.json"
    token = create(file, "writer", ["ingest", "admin"])
    tokens = Tokens(file)
    assert [tokens.verdict(f"Bearer {token}", s) for s in ("ingest", "admin", "predict")] == [
        "allowed",
        "allowed",
        "scope",
    ]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic abc", "Bearer \udcff", "token"])
def test_anything_else_is_unknown(tmp_path: Path, header: str | None) -> None:
    """A missing, malformed or unknown token is refused."""
    file = tmp_path / "tokens.json"
    create(file, "a", ["predict"])
    assert Tokens(file).verdict(header, "predict") == "unknown"


def test_the_file_holds_no_token(tmp_path: Path) -> None:
    """Only the hash is stored, in a file that its owner alone can read."""
    file = tmp_path / "deep" / "tokens.json"
    token = create(file, "a", ["predict"])
    assert token not in file.read_text()
    assert token.removeprefix("skd_") not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_changed_file_is_taken_without_restart(tmp_path: Path) -> None:
    """A token added later works at once, and one removed stops working."""
    file = tmp_path / "tokens.json"
    first = create(file, "first", ["predict"])
    tokens = Tokens(file)
    second = create(file, "second", ["predict"])
    assert tokens.verdict(f"bearer {second}", "predict") == "allowed"
    tree = json.loads(file.read_text())
    tree["tokens"] = [t for t in tree["tokens"] if t["name"] != "first"]
    file.write_text(json.dumps(tree))
    assert tokens.verdict(f"Bearer {first}", "predict") != "allowed"
    assert tokens.verdict(f"Bearer {second}", "predict") == "allowed"


def test_a_broken_file_leaves_the_last_good_tokens(tmp_path: Path) -> None:
    """A file that stops parsing changes nothing until it is whole again."""
    file = tmp_path / "tokens.json"
    token = create(file, "a", ["predict"])
    tokens = Tokens(file)
    file.write_text('{"tokens": [')
    assert tokens.verdict(f"Bearer {token}", "predict") == "allowed"


def test_a_removed_file_lets_nobody_in(tmp_path: Path) -> None:
    """When the file is gone every request is refused."""
    file = tmp_path / "tokens.json"
    token = create(file, "a", ["predict"])
    tokens = Tokens(file)
    os.unlink(file)
    assert tokens.verdict(f"Bearer {token}", "predict") != "allowed"


@pytest.mark.parametrize("text", [None, "", "[]", '{"tokens": [{"name": "a"}]}', '{"token": []}'])
def test_a_file_that_cannot_be_used_is_said(tmp_path: Path, text: str | None) -> None:
    """A missing or malformed token file is a configuration error that names the file."""
    file = tmp_path / "tokens.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"tokens\.json"):
        Tokens(file)


@pytest.mark.parametrize(("name", "scopes"), [("a", ["write"]), ("a", []), ("", ["predict"]), ("taken", ["predict"])])
def test_a_token_that_cannot_be_made_is_said(tmp_path: Path, name: str, scopes: list[str]) -> None:
    """An unknown scope, no scope, no name and a taken name are refused."""
    file = tmp_path / "tokens.json"
    create(file, "taken", ["predict"])
    with pytest.raises(ConfigError):
        create(file, name, scopes)
