"""Slots on the machines of a Ray cluster, and the only door to Ray. Ray is a place to run, nothing else.

    driver ── the job, once, into Ray's object store
           ── an actor for each slot ─► ``ProcessSlot`` there ─► a child process for each trial

An actor has what a trial asks for, so Ray puts it where that is free, and shows it its GPUs alone. How trials end is
told as here; an actor that is gone took its trial with it, and another one takes the slot. The search itself stays
with its driver: the workers write nothing. Ray reads its environment when it is imported, so that happens last.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from streamkd import extras
from streamkd.errors import ConfigError, StreamkdError, TrialFailed
from streamkd.tune.settings import Settings
from streamkd.tune.slot import TICK_SECONDS, ProcessSlot, SlotStopped
from streamkd.tune.space.space import Values

ASK_SECONDS = 10.0


class _Remote(ProcessSlot):
    """A slot of the machine that this actor is on."""

    def __init__(self, job: bytes, made_in: str, settings: Settings) -> None:
        import ray

        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        super().__init__(job, made_in, settings, ",".join(gpus))


class RaySlot:
    """A slot somewhere in the cluster; ``make`` makes its actor."""

    def __init__(self, make: Callable[[], Any], stopping: Callable[[], bool]) -> None:
        self._make, self._stopping = make, stopping
        self._actor: Any = None

    def begin(self, values: Values) -> None:
        """See ``Slot``."""
        self._actor = self._actor or self._make()
        self._asked(self._actor.begin.remote(values))

    def advance(self, milestone: int) -> Mapping[str, Any]:
        """See ``Slot``."""
        reading: Mapping[str, Any] = self._asked(self._actor.advance.remote(milestone))
        return reading

    def end(self) -> None:
        """See ``Slot``. Where the search is stopping the actor may be in the middle of a milestone."""
        if self._actor is None:
            return
        import ray

        if not self._stopping():
            with suppress(ray.exceptions.RayError):
                ray.get(self._actor.end.remote())
                return
        ray.kill(self._actor)
        self._actor = None

    def _asked(self, answer: Any) -> Any:
        import ray

        while not self._stopping():
            try:
                return ray.get(answer, timeout=TICK_SECONDS)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayTaskError as fault:
                raise fault.cause from None
            except ray.exceptions.RayActorError as fault:
                self._actor = None
                said = " ".join(str(fault).split())[:200]
                raise TrialFailed("crash", f"its machine or Ray's process there ended: {said}") from None
        raise SlotStopped


@contextmanager
def slots(job: bytes, made_in: str, settings: Settings, stopping: Callable[[], bool]) -> Iterator[Sequence[RaySlot]]:
    """The slots of the cluster at ``settings.address``: as many as were asked for, or as it takes now.

    Raises:
        ConfigError: an address that no search can be driven through. StreamkdError: nobody answers there, or a trial
            fits nowhere.
    """
    with _connected(str(settings.address)) as ray:
        count = settings.concurrency or _fitting(settings, ray.nodes())
        shared = ray.put(job)
        actors = ray.remote(_Remote).options(
            num_cpus=settings.cpus_per_trial, num_gpus=settings.gpus_per_trial, max_restarts=0
        )
        made = [RaySlot(lambda: actors.remote(shared, made_in, settings), stopping) for _ in range(count)]
        try:
            yield made
        finally:
            for slot in made:
                slot.end()


def _fitting(settings: Settings, machines: Sequence[Mapping[str, Any]]) -> int:
    """How many trials these machines take.

    Raises:
        StreamkdError: none.
    """
    asked = {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial}
    nodes = [node["Resources"] for node in machines if node["Alive"]]
    found = sum(min(int(one.get(name, 0) / share + 1e-9) for name, share in asked.items() if share) for one in nodes)
    if not found:
        there = "; ".join(f"{one.get('CPU', 0):g} CPUs, {one.get('GPU', 0):g} GPUs" for one in nodes)
        raise StreamkdError(
            f"needed {asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs on one machine for each trial, got {there}",
            where="Ray", fix="ask for less; where machines are still to be started, say --concurrency",
        )  # fmt: skip
    return found


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    if "://" in address:
        raise ConfigError(
            f"needed host:port of a cluster's head, or auto, got {address}", where="--address",
            fix="give the command on a machine of the cluster; a search is not driven through a Ray client",
        )  # fmt: skip
    os.environ.update(_token())
    extras.need("ray", "a search on a cluster", "--address")
    import ray

    try:
        if address != "auto":  # Ray itself would try for many minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), ASK_SECONDS).close()
        with _handlers_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
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


def _token() -> dict[str, str]:
    """Token mode, where this user has a token for the cluster and has not said otherwise."""
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    known = known or (Path.home() / ".ray" / "auth_token").exists()
    return {"RAY_AUTH_MODE": "token"} if known and "RAY_AUTH_MODE" not in os.environ else {}


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; it stays the driver's."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
