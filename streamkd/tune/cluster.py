"""A search on a Ray cluster, or on a Ray of this machine alone: who is asked, with which token, whether trials fit.

    connected ─► streamkd.tune.tuner: Ray Tune runs the trials

The search itself stays with its driver: the workers write nothing. Ray reads its environment when it is imported, so
that happens last.
"""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from streamkd import extras
from streamkd.errors import ConfigError, StreamkdError
from streamkd.tune.controller import Controller
from streamkd.tune.settings import Settings

ASK_SECONDS = 10.0
QUIET = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths are seen from where the search was begun
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints every failure
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the results are ours to write
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the driver's
}
"""Ray Tune runs trials and nothing else."""


def run(controller: Controller) -> None:
    """Run a search where ``settings.address`` says, as many trials at once as were asked for, or as there is room.

    Raises:
        ConfigError: an address that no search can be driven through. StreamkdError: nobody answers there, or a trial
            fits nowhere.
    """
    with (
        TemporaryDirectory(prefix="streamkd-", ignore_cleanup_errors=True) as notes,
        _connected(str(controller.settings.address), notes) as ray,
    ):
        _refuse_too_much(controller.settings, ray.nodes())
        from streamkd.tune import tuner

        tuner.fit(controller, notes)


@contextmanager
def mapped(address: str) -> Iterator[Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]]:
    """``map`` over the processors of the cluster, for calls that need one each; answers come in the order asked.

    Raises:
        ConfigError, StreamkdError: as ``run``.
    """
    with (
        TemporaryDirectory(prefix="streamkd-", ignore_cleanup_errors=True) as notes,
        _connected(address, notes) as ray,
    ):

        def each(call: Callable[[Any], Any], asked: Sequence[Any]) -> list[Any]:
            remote = ray.remote(num_cpus=1)(call)
            return list(ray.get([remote.remote(one) for one in asked]))

        yield each


def _refuse_too_much(settings: Settings, machines: Sequence[Mapping[str, Any]]) -> None:
    """Ray would wait for a machine that takes a trial; one may still come where ``concurrency`` was asked for."""
    asked = {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial}
    there = [node["Resources"] for node in machines if node["Alive"]]
    fits = any(all(one.get(name, 0) >= share for name, share in asked.items()) for one in there)
    if not fits and settings.concurrency is None:
        got = "; ".join(f"{one.get('CPU', 0):g} CPUs, {one.get('GPU', 0):g} GPUs" for one in there)
        raise StreamkdError(
            f"needed {asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs on one machine for each trial, got {got}",
            where="Ray", fix="ask for less; where machines are still to be started, say --concurrency",
        )  # fmt: skip


@contextmanager
def _connected(address: str, notes: str) -> Iterator[Any]:
    if "://" in address:
        raise ConfigError(
            f"needed host:port of a cluster's head, auto or local, got {address}", where="--address",
            fix="give the command on a machine of the cluster; a search is not driven through a Ray client",
        )  # fmt: skip
    alone = address == "local"
    os.environ.update(QUIET | (_alone(notes) if alone else _token()))
    extras.need("ray", "a search on a cluster", "--address")
    import ray

    try:
        if address != "auto" and not alone:  # Ray itself would try for many minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), ASK_SECONDS).close()
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(
            address=address, log_to_driver=False, logging_level=logging.CRITICAL, runtime_env={"env_vars": QUIET},
            include_dashboard=False if alone else None,
        )  # fmt: skip
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray takes it for itself
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as fault:
        said = getattr(fault, "strerror", None) or str(fault).partition(". ")[0].splitlines()[0]
        raise StreamkdError(
            f"needed a Ray cluster, got: {said}", where=address,
            fix="see that it runs, is reachable and takes your token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH)",
        ) from fault  # fmt: skip
    try:
        yield ray
    finally:
        ray.shutdown()


def _alone(notes: str) -> dict[str, str]:
    """A Ray of this machine alone. It listens on loopback, asks for a token that nobody else has, leaves nothing."""
    mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": notes}
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", **mine}


def _token() -> dict[str, str]:
    """Token mode, where this user has a token for the cluster and has not said otherwise."""
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    known = known or (Path.home() / ".ray" / "auth_token").exists()
    return {"RAY_AUTH_MODE": "token"} if known and "RAY_AUTH_MODE" not in os.environ else {}
