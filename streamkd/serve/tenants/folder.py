"""The folder of tenants: a configuration each, ``NAME.yaml`` or ``NAME/config.yaml``.

    DIR ─► look ─► {name: where, stamp of its file} ─► read ─► Config, or why it cannot be a tenant's

A tenant is small and lives beside others, so that not every configuration fits one: records are pushed over HTTP, with
their labels. What it says of the server's own address is not used.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import ConfigError
from streamkd.plugins import Registry
from streamkd.serve.http.listen import check_exposure
from streamkd.settings import Serve
from streamkd.streams.ingest.tokens import Tokens

TENANTS = 300  # in one folder; each has its series in the server's metrics
FILE = "config.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True)
class TenantFile:
    """A tenant's configuration file, and what changes when the file does."""

    path: Path
    stamp: tuple[int, ...]


def look(folder: Path) -> Mapping[str, TenantFile]:
    """The tenants that are there, in the order of their names; at most ``TENANTS``.

    Raises:
        ConfigError: the folder cannot be read, or holds more.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as fault:
        raise ConfigError(f"cannot be read: {fault.strerror}", where=str(folder), fix="name a folder") from None
    found = dict(filter(None, map(_found, entries)))
    if len(found) > TENANTS:
        fix = "divide them among several servers"
        raise ConfigError(f"needed at most {TENANTS} tenants, got {len(found)}", where=str(folder), fix=fix)
    return found


def _found(entry: Path) -> tuple[str, TenantFile] | None:
    """What an entry of the folder is, by its name alone; a file without such a name is none of ours."""
    name, path = (entry.stem, entry) if entry.suffix == ".yaml" else (entry.name, entry / FILE)
    if not _NAME.fullmatch(name):
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return name, TenantFile(path, (status.st_mtime_ns, status.st_size, status.st_ino))


def read(file: TenantFile, registry: Registry, server: Serve) -> Config:
    """The configuration of a tenant of that server.

    Raises:
        ConfigError: it cannot be used at all, or not for a tenant.
    """
    config, where = configuration.load(file.path, (), registry), str(file.path)
    if (name := config.stream.source.name) != "http":
        fix = "set stream.source to http; a stream from elsewhere takes `streamkd serve` of its own"
        raise ConfigError(f"a tenant's source is http, got {name}", where=f"{where}: stream.source", fix=fix)
    if config.stream.records is None:
        fix = "write the columns that producers send"
        raise ConfigError(
            "a push source cannot say what its records look like", where=f"{where}: stream.records", fix=fix
        )
    for path, given in (("stream.labels", config.stream.labels), ("serve.export_every", config.serve.export_every)):
        if given is not None:
            fix = "leave it out, or take `streamkd serve` of its own"
            raise ConfigError("is not there for tenants", where=f"{where}: {path}", fix=fix)
    Tokens(config.serve.tokens)  # so that it is said now, not to the first who asks
    check_exposure(server.model_copy(update={"tokens": config.serve.tokens}))
    return config
