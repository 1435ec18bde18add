"""The learner process: owns the state directory, trains, checkpoints, publishes, and says how it goes.

    start message ─► lock ─► do the parts fit? ─► newest whole checkpoint
                     loop: advance, beat, every so often checkpoint, publish, tell
    Stop ─► last checkpoint, last version ─► Stopped

Started by the supervisor as ``python -m`` this module ``--fd N``, with one end of a channel. What the clock decides
here (when to checkpoint, publish or measure) never reaches the weights.
"""

import logging
import sqlite3
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from streamkd import config as configuration
from streamkd import logs, threads
from streamkd.config import Config
from streamkd.cores import compute_on
from streamkd.errors import Overloaded, PluginError, StateConflict, StateError, StreamkdError
from streamkd.isolation.absences import Absences
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.serve.processes.channel import Channel
from streamkd.serve.processes.learner_status import Gauges, status_of
from streamkd.serve.processes.messages import Begin, Committed, Message, NewVersion, Offsets, Ready, Stop, Stopped
from streamkd.serve.processes.publisher import Publisher, ScoredVersion
from streamkd.serve.processes.reports import CHECKPOINT, STARTING, STOPPING, Reporter
from streamkd.state import coherence, rollback
from streamkd.state.checkpoint import CheckpointStore, Snapshot
from streamkd.state.directory import StateDirectory
from streamkd.state.environment import compare, environment
from streamkd.streams.log.database import is_passing
from streamkd.streams.log.log import Log
from streamkd.telemetry import Recorder
from streamkd.wiring import open_source, rehearse, schema_of, source_kind

logger = logging.getLogger("streamkd.learner")
IDLE_SECONDS = 0.02  # between looks at a source that has nothing
TELL_SECONDS = 1.0  # between status messages
SLICE_SECONDS = 0.05  # of training between looks at the clock and the channel


class LearnerProcess:
    """One learner with its state directory, from the start message to the last checkpoint."""

    def __init__(self, config: Config, registry: Registry, directory: StateDirectory, channel: Channel) -> None:
        self.config, self.channel, self._directory = config, channel, directory
        self.recorder = Recorder()
        self._reporter = Reporter(channel, self.recorder)
        self._reporter.beat(STARTING)
        kept = config.checkpoint
        self._checkpoints = CheckpointStore(directory, kept.keep, history_bytes=kept.history_bytes)
        schema = schema_of(config, registry)
        source, journal = open_source(config, registry, schema, directory.log)
        with closing(directory.connect()) as connection:
            skips = rollback.skips(connection)
        about: dict[str, Any] = {"journal": journal, "absences": Absences(directory), "skips": skips, "lenient": True}
        self.learner = Learner(config, registry, source, schema, recorder=self.recorder, **about)
        self._restore(self._checkpoints.latest())
        self._log = journal if isinstance(journal, Log) else None
        self._refuse_other_source()
        if self._log is not None:
            coherence.claim(directory, self._log)
        if not self.learner.started:
            rehearse(config, registry, schema, self.learner.device)
        self._publisher = Publisher(directory, config, registry, self.recorder)
        self._scored = ScoredVersion(self._publisher, registry)
        self._environment = environment()
        now = time.monotonic()
        self._next = {"checkpoint": now + config.checkpoint.every_seconds, "publish": now, "tell": now}
        self._committed_records = self.learner.records
        self._told = (time.monotonic(), self.learner.records)
        self._stepped = False  # the first step of a process compiles, and warms up what it asks
        self._gauges = Gauges(self.recorder, self.learner)

    def _restore(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        for number, reason in snapshot.skipped.items():
            self.recorder.count("checkpoint_failures_total", reason="damaged")
            logger.error("checkpoint %d is damaged (%s); going on from the one before", number, reason)
        self.learner.restore(snapshot.tree, snapshot.info.offsets, configuration.from_tree(snapshot.config))
        logger.info("resumed at record %d from checkpoint %d", self.learner.records, snapshot.info.id)
        for difference in compare(snapshot.environment, environment()):
            logger.warning("resuming is not exact bit for bit: %s", difference)

    def _refuse_other_source(self) -> None:
        """A source that ends before what is learned of it, or has forgotten what comes next, cannot be gone on with.

        Raises:
            StateConflict: both places are named.
        """
        for partition, offset in self.learner.offsets.items():
            end = self.learner.source.end(partition)
            begin = self._log.begin() if self._log is not None else 0
            if begin > offset or (end is not None and end < offset):
                raise StateConflict(
                    f"needed the records from {offset} on, as those before are learned, got {begin} to {end}",
                    where=partition,
                    fix="give the source back the records that it had, or begin elsewhere with --state DIR",
                )

    def run(self) -> None:
        """Train until the supervisor says stop."""
        self.channel.say(Ready())
        self._tell_committed(self.learner.offsets)
        self.learner.observers.tell("on_start", configuration.dump(self.config), self._directory.path)
        message: Message | None = None
        while not isinstance(message, Stop):
            busy = self._train_a_while()
            self._by_the_clock()
            message = self.channel.hear(0.0 if busy else IDLE_SECONDS)
        self._stop(message.checkpoint)

    def close(self) -> None:
        """Let go of every file: the process may go on with another state directory."""
        self._checkpoints.close()
        self._publisher.versions.close()
        if self._log is not None:
            self._log.close()

    def _train_a_while(self) -> bool:
        """Train for a slice of time; ``False`` where the source has nothing."""
        until = time.monotonic() + SLICE_SECONDS
        while self.learner.advance():
            self._stepped = True
            if time.monotonic() >= until:
                return True
        return False

    def _by_the_clock(self) -> None:
        self._beat("learning" if self._stepped else STARTING)
        now = time.monotonic()
        if self.learner.started and now >= self._next["publish"]:
            self._next["publish"] = now + self.config.publish.every_seconds
            self._beat("publishing")
            self._publish()
        if now >= self._next["checkpoint"]:
            self._next["checkpoint"] = now + self.config.checkpoint.every_seconds
            self._beat(CHECKPOINT)
            self._checkpoint()
        if now >= self._next["tell"]:
            self._next["tell"] = now + TELL_SECONDS
            self._scored.follow(self.learner)
            self._tell()

    def _publish(self) -> None:
        self.learner.measure()
        version = self._publisher.publish(self.learner)
        if version is not None:
            self._scored.follow(self.learner)
            self.channel.say(NewVersion(version))
            self.learner.observers.tell("on_published", version, self.learner.records)

    def _checkpoint(self) -> None:
        """Commit state and offsets; a disk that is full is said and tried again, the learner goes on."""
        learner = self.learner
        if not learner.started and not learner.dead:
            return
        if learner.records == self._committed_records and not learner.dead:
            return
        begun = time.monotonic()
        try:
            info = self._checkpoints.save(
                learner.state(),
                offsets=learner.offsets,
                records=learner.records,
                config=configuration.dump(self.config),
                environment=self._environment,
                dead_letters=learner.dead,
                marks=self._marks(),
                begins={} if self._log is None else {self._log.partition: self._log.begin()},
            )
        except StateConflict:
            raise
        except (StateError, PluginError) as fault:
            self.recorder.count("checkpoint_failures_total", reason="not_saved")
            logger.error("%s", fault)
            return
        learner.dead.clear()
        self._committed_records = learner.records
        self.recorder.count("checkpoints_total")
        self.recorder.observe("checkpoint_duration_seconds", time.monotonic() - begun)
        self.recorder.set("checkpoint_size_bytes", info.bytes)
        self.recorder.set("checkpoint_last_success_timestamp_seconds", info.created)
        self._tell_committed(info.offsets)
        learner.observers.tell("on_checkpoint", learner.records, info.offsets)

    def _marks(self) -> dict[str, str]:
        """What tells the last record of the log that is learned."""
        if self._log is None:
            return {}
        mark = self._log.mark(self.learner.offsets[self._log.partition])
        return {} if mark is None else {self._log.partition: mark}

    def _tell_committed(self, offsets: Mapping[str, int]) -> None:
        """Say how far the newest checkpoint reaches, and from where on the log is needed to fall back on an older."""
        oldest = self._checkpoints.oldest_offsets() or offsets
        self.channel.say(Committed(dict(offsets), dict(oldest)))

    def _stop(self, checkpoint: bool) -> None:
        self._beat(STOPPING)
        if checkpoint:
            self._checkpoint()
            self._publish()
        self._tell()
        self.learner.observers.tell("on_stop")
        self.channel.say(Stopped())

    def _beat(self, doing: str) -> None:
        self._reporter.beat(doing, self._progress)

    def _progress(self) -> dict[str, Offsets]:
        """How far this learner is, and the source: the supervisor measures the lag."""
        source = self.learner.source
        try:
            ends = {p: end for p in source.partitions if (end := source.end(p)) is not None}
        except Exception:  # noqa: BLE001 - a broker that is away, or a plugin: reading the records will tell
            ends = {}
        return {"offsets": dict(self.learner.offsets), "ends": ends}

    def _tell(self) -> None:
        now, records = time.monotonic(), self.learner.records
        rate = (records - self._told[1]) / max(now - self._told[0], 1e-9)
        self._told = (now, records)
        status = status_of(self.learner, rate, self._publisher.version, self._scored.version)
        self._gauges.record(status, self.learner)
        self._reporter.status(status)
        self._reporter.metrics()


def main() -> int:
    """Run the process on a channel; the exit code is for the log, the supervisor reads the messages."""
    logs.to_stderr("%(asctime)s learner %(levelname)s %(message)s")
    channel = Channel.inherited()
    threads.end_process_when_one_dies(channel.send_fatal)
    with suppress(ImportError, RuntimeError):  # now, while the supervisor loads, too; the learner says what is wrong
        import streamkd.avalanche.strategy  # noqa: F401
    try:
        start = channel.hear()
    except EOFError:
        return 1
    assert isinstance(start, Begin), "the supervisor speaks first"
    return live(start, channel)


def live(start: Begin, channel: Channel) -> int:
    """From the start message to the end; the exit code. What starting again would not mend is told as fatal."""
    try:
        with ExitStack() as stack:
            registry = Registry.load()
            config = configuration.from_tree(start.config, registry)
            compute_on(config.threads)
            directory = StateDirectory(Path(start.state))
            pushed = source_kind(config, registry).push
            stack.enter_context(directory.lock(lambda: coherence.refuse_misfits(directory, pushed)))
            learning = stack.enter_context(closing(LearnerProcess(config, registry, directory, channel)))
            try:
                learning.run()
            except PluginError as fault:  # it has learned: the supervisor answers on, and starts it again
                logger.exception("%s", fault)
                return 1
        return 0
    except EOFError:
        return 1  # the supervisor is gone: nothing is left to say, and nobody to say it to
    except Overloaded as fault:  # the disk is full, say: the supervisor starts us again
        logger.error("%s cannot be written now: %s", start.state, fault)
        return 1
    except sqlite3.DatabaseError as fault:
        if is_passing(fault):
            logger.error("%s cannot be written now: %s", start.state, fault)
            return 1
        fix = "stop the server, look at the disk, put back a copy of the whole directory or name another with --state"
        channel.send_fatal(StateError(f"a database is damaged: {fault}", where=start.state, fix=fix))
        return StateError.exit_code
    except StreamkdError as fault:
        if isinstance(fault, PluginError) and fault.__cause__ is not None:
            logger.exception("%s", fault)
        channel.send_fatal(fault)
        return fault.exit_code


if __name__ == "__main__":
    # torch's and Avalanche's exit handlers have nothing to do, and take their time
    threads.run_process(main)
