"""Bearer tokens with scopes, for every way in: Flight, HTTP ingest, predictions and administration.

    Authorization: Bearer skd_... ─► sha256 ─► compared with each stored hash ─► scopes ─► allowed | unknown | scope

The file holds hashes alone: a token is shown once, when ``create`` makes it. The tokens are random
(256 bits), so one round of SHA-256 is enough. A changed file is taken at the next request; one that
has become unreadable lets nobody in, one that does not parse leaves the last good set in force.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError

from streamkd.errors import ConfigError
from streamkd.records import Model

Scope = Literal["predict", "ingest", "label", "admin"]
Verdict = Literal["allowed", "unknown", "scope"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_BEARER = re.compile(r"(?i)bearer +(\S+) *")
logger = logging.getLogger(__name__)


class Token(Model):
    """One stored token: who holds it, what it opens, and the hash of its text."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_timestamp_seconds: float = 0.0


class _TokenFile(Model):
    schema_version: Literal[1] = Field(default=1, alias="schema")
    tokens: tuple[Token, ...] = ()


class Tokens:
    """The tokens of one file; with no file every request is allowed.

    Raises:
        ConfigError: the file is missing or is no token file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._tokens: tuple[Token, ...] = ()
        self._stamp: tuple[int, ...] | None = None
        if path is not None:
            self._tokens = read(path)
            self._stamp = _stamp(path)

    @property
    def open(self) -> bool:
        """Whether everything is allowed, because no file was named."""
        return self._path is None

    def verdict(self, authorization: str | None, scope: Scope) -> Verdict:
        """What an ``Authorization`` header opens; HTTP answers 401 to ``unknown`` and 403 to ``scope``."""
        if self._path is None:
            return "allowed"
        match = _BEARER.fullmatch(authorization or "")
        found = _find(self._fresh(), _digest(match[1])) if match else None
        if found is None:
            return "unknown"
        return "allowed" if scope in found.scopes else "scope"

    def _fresh(self) -> tuple[Token, ...]:
        path = self._path
        assert path is not None
        with self._lock:
            stamp = _stamp(path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._tokens = self._reread(path, stamp)
            return self._tokens

    def _reread(self, path: Path, stamp: tuple[int, ...] | None) -> tuple[Token, ...]:
        if stamp is None:
            logger.warning("the token file %s is gone: every request is refused", path)
            return ()
        try:
            tokens = read(path)
        except ConfigError as fault:
            logger.warning("the token file changed but cannot be used, the tokens before it stay: %s", fault)
            return self._tokens
        logger.info("%d tokens read from %s", len(tokens), path)
        return tokens


def create(path: Path, name: str, scopes: Iterable[str]) -> str:
    """Add a token to the file (made, readable by its owner alone, where there is none) and return its text.

    Raises:
        ConfigError: an unknown scope, a name that is taken or no name, or a file that cannot be used.
    """
    wanted = tuple(dict.fromkeys(scopes))
    text = "skd_" + secrets.token_urlsafe(32)
    try:
        token = Token.model_validate(
            {"name": name, "scopes": wanted, "sha256": _digest(text), "created_timestamp_seconds": time.time()}
        )
    except ValidationError:
        raise ConfigError(
            f"got the name {name!r} and the scopes {', '.join(map(repr, wanted)) or 'none'}",
            where="tokens",
            fix=f"a name of letters, digits and _.@-, and one or more of {', '.join(SCOPES)}",
        ) from None
    known = read(path) if path.exists() else ()
    if name in {other.name for other in known}:
        raise ConfigError(f"there is a token {name!r} already", where=str(path), fix="choose another name")
    try:
        _write(path, (*known, token))
    except OSError as fault:
        raise ConfigError(f"cannot be written: {fault.strerror}", where=str(path), fix="name another file") from None
    return text


def read(path: Path) -> tuple[Token, ...]:
    """The tokens of a file.

    Raises:
        ConfigError: the file is missing or is no token file.
    """
    try:
        return _TokenFile.model_validate_json(path.read_bytes()).tokens
    except OSError as fault:
        raise ConfigError(
            f"the token file cannot be read: {fault.strerror}", where=str(path), fix="make it: streamkd tokens add"
        ) from None
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"is no token file: {place}: {first['msg']}", where=str(path), fix="make it: streamkd tokens add"
        ) from None


def _find(tokens: Iterable[Token], digest: str) -> Token | None:
    """The token of that hash; every one is compared, so the time tells nothing."""
    found = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, digest):
            found = token
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _write(path: Path, tokens: tuple[Token, ...]) -> None:
    """Replace the file at once; a reader sees the old or the new one (``mkstemp`` gives mode 0600)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = {"schema": 1, "tokens": [token.model_dump(mode="json") for token in tokens]}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(tree, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
