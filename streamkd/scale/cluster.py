"""A Ray to run on: one of our own on this machine, closed to everybody else, or a cluster that is there already.

    started() ─► token mode, loopback only, no dashboard, a folder of its own ─► Cluster ─► shut down, folder removed
    started(address) ─► the cluster's own token ─► Cluster ─► left as it was

Whoever reaches a port of Ray may run code, so every port is bound to loopback and asks for a token that only this
process and its children know. Ray binds all interfaces unless it is told that it forms no cluster; that is said by an
environment variable that it reads at its import, so nothing here imports Ray before it is asked for. A second call
inside the first shares its Ray. When this process is killed, the others end within seconds; the folder that they leave
is swept away by a later start.
"""

import functools
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamkd.errors import ConfigError, StreamkdError
from streamkd.scale import reaper
from streamkd.search import scratch

STORE_BYTES = 128 << 20
"""The object store's least size; Ray refuses less than 75 MB."""
PREFIX = "streamkd-ray-"
ASK_SECONDS = 10.0
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # it warns of a future change otherwise
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of a configuration are relative to where the command was given
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the driver's
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Ray's own state is never restored
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",  # said by us, once
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": "86400",
}
ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Whether this Ray may span machines; 0 binds every port to loopback, on any system."""


@dataclass(frozen=True)
class Cluster:
    """What there is to run on: the resources of each node, and whether it was started here."""

    nodes: tuple[Mapping[str, float], ...]
    local: bool

    def fits(self, cpus: float, gpus: float) -> int:
        """How many trials of this size run at once when nothing else does."""
        return sum(_fits(node, cpus, gpus) for node in self.nodes)

    def too_small(self, cpus: float, gpus: float, waited_seconds: float = 0.0) -> StreamkdError:
        """What to raise where no trial of this size can be begun."""
        waited = f", for {waited_seconds:.0f} s nothing could be begun" if waited_seconds else ""
        return StreamkdError(
            f"needed {cpus:g} CPUs and {gpus:g} GPUs on one machine for each trial, got {self}{waited}",
            where="Ray",
            fix="ask for less with --cpus-per-trial and --gpus-per-trial, free the cluster, or name a larger --address",
        )

    def __str__(self) -> str:
        return "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in self.nodes)


@contextmanager
def started(
    address: str | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    *,
    dashboard: bool = False,
    store_bytes: int = STORE_BYTES,
) -> Iterator[Cluster]:
    """A Ray until the end of the block; ``cpus`` and ``gpus`` are declared instead of counted, on a local one.

    Raises:
        ConfigError: an address that no search can be driven through. StreamkdError: nobody answers there.
    """
    if address is not None and "://" in address:
        raise ConfigError(
            f"needed host:port of a cluster's head, or auto, got {address}", where="address",
            fix="give the command on a machine of the cluster; a search is not driven through a Ray client",
        )  # fmt: skip
    if address is not None:
        with _environment(QUIET | _known_token()), _connected(address):
            yield found(local=False)
    elif _running():
        yield found(local=True)
    else:
        with (
            scratch.folder(PREFIX, _above()) as folder,
            _environment(QUIET | _own_token() | {ALONE: "0"}),
            _begun(folder, cpus, gpus, dashboard, max(store_bytes, STORE_BYTES)),
        ):
            yield found(local=True)


@contextmanager
def _begun(folder: Path, cpus: float | None, gpus: float | None, dashboard: bool, store_bytes: int) -> Iterator[None]:
    ray = _imported()
    constants: Any = importlib.import_module("ray._private.ray_constants")
    spans, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False  # where Ray was imported before
    with ExitStack() as after:
        try:
            with _handlers_kept():
                ray.init(
                    address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=dashboard, _temp_dir=str(folder),
                    object_store_memory=store_bytes, **_SILENT,
                )  # fmt: skip
            after.enter_context(reaper.watching(folder, _raylet()))  # agents that end first take Ray with them
            with _hushed():
                yield
        finally:
            ray.shutdown()
            constants.ENABLE_RAY_CLUSTER = spans


@contextmanager
def _connected(address: str) -> Iterator[None]:
    ray = _imported()
    try:
        _ask(address)
        with _handlers_kept():
            ray.init(address=address, **_SILENT)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as fault:
        said = getattr(fault, "strerror", None) or str(fault).partition(". ")[0].splitlines()[0]
        raise StreamkdError(
            f"needed a Ray cluster, got: {said}", where=address,
            fix="see that it runs, is reachable and takes your token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH)",
        ) from fault  # fmt: skip
    try:
        with _hushed():
            yield
    finally:
        ray.shutdown()


def _imported() -> Any:
    """Ray, with the token of the environment as it is now: what was imported before may have read another."""
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    return importlib.import_module("ray")


def _ask(address: str) -> None:
    """Whether somebody answers there and takes our token: Ray itself would try for many minutes."""
    services: Any = importlib.import_module("ray._private.services")
    raylet: Any = importlib.import_module("ray._raylet")
    head = services.canonicalize_bootstrap_address(address)
    if head is None:
        raise ConnectionError("no Ray runs on this machine")
    host, _, port = head.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), ASK_SECONDS).close()
    raylet.GcsClient(address=head).internal_kv_get(b"session_name", None, ASK_SECONDS)


_SILENT: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}


@contextmanager
def _hushed() -> Iterator[None]:
    """Without Ray's own lines about workers that died: the ledger says it. It prints them whatever it is told."""
    worker: Any = importlib.import_module("ray._private.worker")
    printed = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *args, **options: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printed


def _raylet() -> int:
    worker: Any = importlib.import_module("ray._private.worker")
    return int(worker._global_node.all_processes["raylet"][0].process.pid)


def _running() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def found(local: bool) -> Cluster:
    """The nodes of the Ray that this process is connected to, as they are now."""
    ray = importlib.import_module("ray")
    return Cluster(tuple(dict(node["Resources"]) for node in ray.nodes() if node["Alive"]), local)


def _fits(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Ray counts in ten-thousandths; so does this."""
    shares = [
        round(node.get(name, 0.0) * 10_000) // round(asked * 10_000)
        for name, asked in (("CPU", cpus), ("GPU", gpus))
        if asked > 0
    ]
    return min(shares, default=0)


@functools.cache
def _own_token() -> dict[str, str]:
    """One token a process: Ray reads it once. Only this process and its children see it."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _known_token() -> dict[str, str]:
    """Token mode, where this user has a token for the cluster and has not said otherwise."""
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    known = known or (Path.home() / ".ray" / "auth_token").exists()
    return {"RAY_AUTH_MODE": "token"} if known and "RAY_AUTH_MODE" not in os.environ else {}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; it stays the driver's."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)


def _above() -> Path:
    """Where Ray's folder is made: the names of its sockets have to be short."""
    above = Path(tempfile.gettempdir())
    return above if len(str(above)) < 20 else Path("/tmp")
