"""The engine that needs nothing but this machine: child processes, each of which runs one trial after another.

    next ─► an idle child (forked when needed) ─► readings ─► told: goes on? ─► ended
                 ends by itself, or learned nothing for so long ─► failed, and a fresh child follows

Whatever a trial does to its process ends there. The imports of a trial take seconds: a server process makes them once,
and children are forked from it, which has no threads and has computed nothing.
"""

import contextlib
import math
import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamkd.errors import ConfigError
from streamkd.search import scratch, sharing
from streamkd.search.course import sound
from streamkd.search.ledger import TrialRecord
from streamkd.search.settings import Settings
from streamkd.search.worker import Place, main

if TYPE_CHECKING:
    from streamkd.search.driver import Search

START_SECONDS = 300.0
"""A child that has not begun its trial after so long is taken to hang: the first one waits for the imports."""
TICK_SECONDS = 0.25
PREFIX = "streamkd-tune-"
GRACE_SECONDS = 2.0


class LocalEngine:
    """Runs trials in child processes of this one."""

    def __init__(self, settings: Settings) -> None:
        if settings.scheduler == "pbt":
            raise ConfigError("runs fixed trials only, got --scheduler pbt", where="--engine local", fix="--engine ray")
        self._devices = devices_of(settings.gpus_per_trial, _visible_devices() if settings.gpus_per_trial else ())
        self._slots = slots_of(settings, _cpus(), len(self._devices))

    def run(self, search: "Search") -> None:
        """Run what the search gives until there is no more, or it is stopping; no child is left."""
        with scratch.folder(PREFIX) as folder:
            sharing.write(search.recordings, folder / "recordings")
            work = _Work(folder, pickle.dumps(search.job), search.make.__module__, search.settings)
            children = [_Child(work, slot, self._devices[slot] if self._devices else "") for slot in range(self._slots)]
            try:
                _run(search, children)
            finally:
                for child in children:
                    child.end(at_once=child.record is not None)


def _run(search: "Search", children: Sequence["_Child"]) -> None:
    while not search.stopping:
        for child in children:
            if child.record is None and (record := search.next()) is not None:
                child.give(record)
        busy = [child for child in children if child.record is not None]
        if not busy:
            return
        wait([child.connection for child in busy], TICK_SECONDS)
        for child in busy:
            _attend(search, child)


def _attend(search: "Search", child: "_Child") -> None:
    """Everything that a child has said, and whether it still lives and learns."""
    for what, value in child.said():
        if what == "read":
            _read(search, child, value)
        elif what == "failed":
            _failed(search, child, value)
    if child.record is not None and (reason := child.fault()) is not None:
        _failed(search, child, reason)


def _read(search: "Search", child: "_Child", record: TrialRecord) -> None:
    child.record = record
    goes_on = search.told(record)
    if record.state == "finished":
        child.record = None
        search.ended(record)
        return
    child.answer(goes_on)
    if not goes_on:
        child.record = None
        search.ended(replace(record, state="pruned"))


def _failed(search: "Search", child: "_Child", reason: str) -> None:
    record, child.record = child.record, None
    if not sound(reason):
        child.end(at_once=True)
    if record is not None:
        search.ended(replace(record, state="failed", reason=reason))


@dataclass(frozen=True)
class _Work:
    """What the children of a run have in common."""

    folder: Path
    job: bytes
    made_in: str
    settings: Settings


class _Child:
    """A slot of the engine: the process that is in it now, and the trial that it runs."""

    connection: Connection

    def __init__(self, work: _Work, slot: int, devices: str) -> None:
        self._work, self._slot, self._devices = work, slot, devices
        self._process: Any = None
        self._heard, self._begun, self._closed = 0.0, False, False
        self.record: TrialRecord | None = None

    def give(self, record: TrialRecord) -> None:
        """Let it run a trial; a fresh process where the last one ended."""
        if self._process is None or not self._process.is_alive():
            self._start()
        self.record = replace(record, worker=f"{os.uname().nodename}:{self._process.pid}")
        self._heard, self._begun = time.monotonic(), False
        with contextlib.suppress(OSError):  # it died meanwhile: `fault` tells
            self.connection.send(self.record)

    def _start(self) -> None:
        self.end()
        context = get_context("forkserver")
        context.set_forkserver_preload([main.__module__, self._work.made_in])
        self.connection, theirs = context.Pipe()
        self._closed = False
        place = Place(self._work.folder / "recordings", self._log, self._devices, self._work.settings.memory_bytes)
        self._process = context.Process(target=main, args=(place, self._work.job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def _log(self) -> Path:
        return self._work.folder / f"{self._slot}.log"

    def said(self) -> list[tuple[str, Any]]:
        """The messages that have come."""
        messages: list[tuple[str, Any]] = []
        try:
            while self.connection.poll():
                messages.append(self.connection.recv())
        except (EOFError, OSError):
            self._closed = True
        if messages:
            self._heard, self._begun = time.monotonic(), True
        return messages

    def answer(self, goes_on: bool) -> None:
        """Whether its trial goes on."""
        with contextlib.suppress(OSError):
            self.connection.send(goes_on)

    def fault(self) -> str | None:
        """Why it cannot go on: it ended, or learned nothing for too long."""
        if self._closed:
            self._process.join(GRACE_SECONDS)
        if not self._process.is_alive() and (self._closed or not self.connection.poll()):
            return _crash(self._process.exitcode, self._log)
        silent = time.monotonic() - self._heard
        if self._begun and silent > self._work.settings.hang_seconds:
            return f"hang: learned nothing for {silent:.0f} s"
        if not self._begun and silent > max(START_SECONDS, self._work.settings.hang_seconds):
            return f"hang: did not begin in {silent:.0f} s"
        return None

    def end(self, at_once: bool = False) -> None:
        """End the process: by a word where it has no trial, unless at once."""
        if self._process is None:
            return
        if self.record is None and not at_once:
            with contextlib.suppress(OSError):
                self.connection.send(None)
            self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()
        self._process = None


def _crash(code: int, log: Path) -> str:
    """What an exit code says, and the last words."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()] if log.exists() else []
    last = f": {lines[-1].strip()[:200]}" if lines else ""
    if code == -signal.SIGKILL:
        return "memory: the process was killed (SIGKILL), which is how the system frees memory"
    if code < 0:
        return f"crash: the process ended by {signal.Signals(-code).name}{last}"
    return f"crash: the process ended with exit code {code}{last}"


def slots_of(settings: Settings, cpus: int, gpu_slots: int) -> int:
    """How many trials run at once: what was asked for, as far as there are GPUs; else as many as the CPUs take."""
    most = gpu_slots if settings.gpus_per_trial else math.inf
    asked = settings.concurrency or max(1, int(cpus / settings.cpus_per_trial))
    return int(min(asked, most))


def devices_of(gpus_per_trial: float, devices: Sequence[str]) -> list[str]:
    """``CUDA_VISIBLE_DEVICES`` of each slot: several trials on a GPU, or several GPUs for a trial; empty without.

    Raises:
        ConfigError: there are not that many GPUs.
    """
    if not gpus_per_trial:
        return []
    if gpus_per_trial <= 1:
        slots = [device for device in devices for _ in range(int(1 / gpus_per_trial + 1e-9))]
    else:
        each = math.ceil(gpus_per_trial)
        slots = [",".join(devices[at : at + each]) for at in range(0, len(devices) - each + 1, each)]
    if not slots:
        raise ConfigError(
            f"needed {gpus_per_trial:g} GPUs, found {len(devices)}", where="--gpus-per-trial", fix="use 0"
        )
    return slots


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _visible_devices() -> tuple[str, ...]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name for name in named.split(",") if name)
    return tuple(str(index) for index in range(torch.cuda.device_count()))
