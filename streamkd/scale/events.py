"""What Ray says of a search's trials, said to the search: readings, ends, and why a process died.

    actor ─► ledger ─► result ─► Events ─► Search.told, Search.ended
    actor dies ─► what it wrote into the ledger, or Ray's error and its log ─► reason ─► Search.ended
    Search.stopping, a fault of ours, no place for so long ─► Ends ─► Ray's run ends

Called by Ray, in the driver's thread.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from streamkd.scale.cluster import found
from streamkd.scale.trainable import RECORD, heard, number_of
from streamkd.search.driver import Search
from streamkd.search.ledger import TrialRecord

CRASH = "crash: the process of the trial ended"


class Ends(tune.Stopper):
    """Ends Ray's run when the search is over."""

    def __init__(self, events: "Events") -> None:
        self._events = events

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether the time is over, or something of ours went wrong."""
        return self._events.over


class Events(tune.Callback):
    """What Ray says of the trials, said to the search; ``records`` are the trials as they stand."""

    def __init__(self, search: Search, local: bool, schedule_seconds: float) -> None:
        self.records: dict[int, TrialRecord] = {}
        self.fault: BaseException | None = None
        self._search, self._local, self._schedule_seconds = search, local, schedule_seconds
        self._actors: list[Any] = []  # of running trials alone: an actor ends when nobody holds it
        self._idle_since: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    @property
    def over(self) -> bool:
        """Whether all is to be left."""
        return self.fault is not None or self._search.stopping

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """An error of the search ends Ray's run and is raised after it, as it was."""
        try:
            yield
        except Exception as fault:
            self.fault = self.fault or fault

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray's loop goes round."""
        actors = [trial.temporary_state.ray_actor for trial in trials]
        self._actors = [actor for actor in actors if actor is not None]

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A reading, which the actor has written down; whether it goes on was Ray's to say."""
        with self.guarded():
            record = self.records[number_of(trial)] = heard(result.pop(RECORD))
            if record.state != "failed":
                self._search.told(record)

    def moved(self, record: TrialRecord) -> None:
        """The population moves a trial on: it is written down before the trial is told."""
        with self.guarded():
            self.records[record.number] = record
            self._search.job.ledger.write(record)
            self._search.told(record)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial has finished, has failed by itself, or was ended by the scheduler."""
        record = self.records[number_of(trial)]
        self._end(replace(record, state="pruned") if record.state == "running" else record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its actor has died; why, is in the ledger, where there was time to write."""
        number = number_of(trial)
        with self.guarded():
            written = [
                one for one in self._search.job.ledger.trials() if one.number == number and one.state == "failed"
            ]
            self._end(written[0] if written else replace(self.records[number], state="failed", reason=_death(trial)))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray's loop went round."""
        if self.over:
            while self._actors:  # each may be in the middle of a milestone
                with suppress(Exception):
                    ray.kill(self._actors.pop())
        elif any(trial.status == Trial.RUNNING for trial in trials) or not any(not t.is_finished() for t in trials):
            self._idle_since = None
        else:
            self._wait()

    def _end(self, record: TrialRecord) -> None:
        with self.guarded():
            self.records[record.number] = record
            self._search.ended(record)

    def _wait(self) -> None:
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since > self._schedule_seconds:
            settings = self._search.settings
            self.fault = found(self._local).too_small(
                settings.cpus_per_trial, settings.gpus_per_trial, now - self._idle_since
            )


def _death(trial: Trial) -> str:
    """Why an actor died that could write nothing itself, from what Ray says and, where its log is here, from that."""
    text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).exists() else ""
    if "OutOfMemoryError" in text or "running low on memory" in text:
        return "memory: Ray ended the process, for its machine had little memory left"
    if "class_name" not in text and (lines := text.split("\n")[:-1]):
        return f"error: {lines[-1][:300]}"
    if code := re.search(r"exits with an exit code (\d+)", text):
        return f"{CRASH} with exit code {code[1]}"
    pid = re.search(r"\bpid: (\d+)", text)
    return _last_words(int(pid[1])) if pid else CRASH


def _last_words(pid: int) -> str:
    """What a process of this machine's Ray wrote down as it died: a signal, or that it had held the interpreter."""
    node = ray._private.worker._global_node
    logs: list[Path] = [] if node is None else list(Path(node.get_logs_dir_path()).glob(f"worker-*-{pid}.err"))
    for log in logs:
        with suppress(OSError):
            said = log.read_text(errors="replace")
            if found := re.search(r"^Timeout \((\d+):(\d+):(\d+)", said, re.MULTILINE):
                hours, minutes, seconds = map(int, found.groups())
                return f"hang: held its process for {3600 * hours + 60 * minutes + seconds} s"
            if found := re.search(r"\*\*\* (SIG\w+) received", said):
                return f"{CRASH} by {found[1]}"
            return f"{CRASH} without a word, as it does when the system frees memory"
    return CRASH
