"""A trial as Ray runs it: an actor that takes one trial after another, a milestone a call.

    {"trial": record} ─► reset ─► step: course.steps ─► ledger ─► {"records", "objective", "record", "done"} ─► step ...
                                    └─ pulse: nothing learned for hang_seconds ─► ledger: failed ─► the process ends

An actor is one process with one trial at a time. It serves trial after trial, for its imports take longer than many
trials do; one that met anything but a loss that is not finite ends, and Ray starts another.
"""

import faulthandler
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from streamkd.plugins import Registry
from streamkd.search.course import Job, Running, reason_of, sound, steps
from streamkd.search.ledger import TrialRecord
from streamkd.search.worker import bound_memory

METRIC, TIME, RECORD = "objective", "records", "record"
SAVED = "saved.json"
GRACE_SECONDS = 5.0
"""Beyond ``hang_seconds``: then a thread that needs no interpreter ends a process whose interpreter is held."""


def told(record: TrialRecord) -> str:
    """A record as Ray carries it in a trial's configuration: one string, which Ray does not look into."""
    return json.dumps(asdict(record))


def heard(text: str) -> TrialRecord:
    """The record that ``told`` wrote."""
    tree = json.loads(text)
    return TrialRecord(**tree | {name: tuple(tree[name]) for name in ("readings", "changes")})


def number_of(trial: Any) -> int:
    """The number that the ledger knows a trial of Ray's by."""
    return heard(trial.config["trial"]).number


def left(folder: Path) -> TrialRecord | None:
    """The record of a trial whose stream was saved in a folder; ``None`` where somebody was killed on the way."""
    try:
        saved = json.loads((folder / SAVED).read_text())
        return heard(saved[RECORD]) if saved["files"] == _hashes(folder) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(one for one in (folder / "trial").rglob("*") if one.is_file())
    return {str(one.relative_to(folder)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


class TrialActor(tune.Trainable):
    """Runs the trials that it is given; see the module."""

    def setup(
        self,
        config: dict[str, Any],
        job: Job | None = None,
        recordings: Mapping[int, Any] | None = None,
        hang_seconds: float = 300.0,
        memory_bytes: int | None = None,
    ) -> None:
        """Take what all trials share; ``recordings`` lie in the object store, mapped, not copied."""
        assert job is not None
        assert recordings is not None
        if memory_bytes is not None:
            bound_memory(memory_bytes)
        if not ray.get_gpu_ids():  # Ray leaves them visible, and `device: auto` would take one that nobody counted
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.job, self.recordings, self.hang_seconds = job, recordings, hang_seconds
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the last trial and take another."""
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """On to the next milestone."""
        pulse = Pulse(self._seen, self.hang_seconds, self._hung)
        try:
            self.record = next(self.course)
        except Exception as fault:
            self._fail(reason_of(fault))
            if not sound(self.record.reason):
                raise
        finally:
            pulse.end()
        return self._result()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The running stream and what was read of it, for another trial or a later search to go on from."""
        assert self.trial is not None
        folder = Path(checkpoint_dir)
        self.trial.save(folder / "trial")
        (folder / SAVED).write_text(json.dumps({RECORD: told(self.record), "files": _hashes(folder)}))

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        """Go on from a saved stream: its own, or another's under the values that it was given."""
        saved = heard(json.loads((Path(checkpoint_dir) / SAVED).read_text())[RECORD])
        if saved.number == self.record.number:
            self.record = replace(saved, worker=self.record.worker)
        registry = Registry.load()
        config = self.job.space.apply(self.job.config, self.record.latest, registry)
        trial: Any = self.job.make(config, registry, self.recordings, self.job.objectives)
        trial.restore(Path(checkpoint_dir) / "trial")
        self._begin(replace(self.job, make=lambda *parts: trial))

    def _take(self, config: Mapping[str, Any]) -> None:
        self.record = replace(heard(config["trial"]), worker=f"{self._local_ip}:{os.getpid()}")
        self._begin(self.job)

    def _begin(self, job: Job) -> None:
        self.trial: Any = None
        self.course: Iterator[TrialRecord] = steps(job, self.recordings, self.record, begun=self._made)

    def _made(self, trial: Running) -> None:
        self.trial = trial

    def _seen(self) -> int:
        return -1 if self.trial is None else int(self.trial.seen)

    def _hung(self) -> None:
        self._fail(f"hang: learned nothing for {self.hang_seconds:g} s")

    def _fail(self, reason: str) -> None:
        self.record = replace(self.record, state="failed", reason=reason)
        self.job.ledger.write(self.record)

    def _result(self) -> dict[str, Any]:
        over = self.record.state != "running"
        result: dict[str, Any] = {RECORD: told(self.record), TIME: self.record.records, "done": over}
        value = None if self.record.state == "failed" else self.record.objective(self.job.objectives[0])
        return result if value is None else result | {METRIC: value}


class Pulse:
    """Watches one call: ``hung`` is called, and the process ended, where ``seen()`` stands still for so long."""

    def __init__(self, seen: Callable[[], int], seconds: float, hung: Callable[[], None]) -> None:
        self._seen, self._seconds, self._hung = seen, seconds, hung
        self._over = threading.Event()
        self._arm()
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """The call is over."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(self._seconds + GRACE_SECONDS, exit=True, file=2)

    def _watch(self) -> None:
        last, since = self._seen(), time.monotonic()
        while not self._over.wait(min(self._seconds / 4, 1.0)):
            if (now := self._seen()) != last:
                last, since = now, time.monotonic()
                self._arm()
            elif time.monotonic() - since > self._seconds:
                self._hung()
                os._exit(1)
