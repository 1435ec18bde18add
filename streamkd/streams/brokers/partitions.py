"""The partitions of some topics of Kafka, read by one consumer that is assigned at the offsets of the log.

    hold: ahead of others by event time ─► not assigned, until these have come nearer
    look: new partitions ─► their first position ─► log ─► assign
    read: messages of each partition, in order, and the end that they reach ─► log
    lost: the broker has the position no more ─► told, counted ─► another position ─► log ─► assign

The log's positions are the truth. Whatever goes wrong with them ends in the same way: what is under way is forgotten,
the log asked, everything assigned anew.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from streamkd.errors import Overloaded, SourceError
from streamkd.streams.brokers import client
from streamkd.streams.brokers.messages import Beside, Decode, Form, Message
from streamkd.streams.brokers.reset import MOVED, onward
from streamkd.streams.ingest.intake import Intake
from streamkd.streams.ingest.into_log import UNDER_WAY, UNDER_WAY_BYTES, IntoLog
from streamkd.streams.log.log import Kind
from streamkd.streams.log.positions import OffsetConflict

logger = logging.getLogger(__name__)
BATCH_BYTES, BATCH_MESSAGES = 4 << 20, 2_000  # that are asked for at once
MESSAGE_BYTES = 65_536.0  # of a message, before there is one: it is known soon
POLL_SECONDS, ASK_SECONDS = 0.1, 1.5  # an answer that takes longer is asked for again; a drain waits no longer
LOOK_SECONDS, LOOK_AGAIN_SECONDS = 30.0, 1.0  # until partitions are looked for: where all answered, where not
TELL_SECONDS, TELL_HELD_SECONDS, COMMIT_SECONDS = 1.0, 5.0, 5.0
NEARER = 0.5  # of its share, from which on a partition that was ahead is read on
BACK_OFF_SECONDS, END_SECONDS = 1.0, 1.0
Place = tuple[str, int]  # topic, partition


class Consuming(Protocol):
    """The options that say what is read, and how."""

    @property
    def labels(self) -> str | None: ...

    @property
    def start(self) -> str: ...

    @property
    def reset(self) -> str | None: ...

    @property
    def group(self) -> str | None: ...

    @property
    def beside(self) -> Beside: ...


class Partitions:
    """One consumer and what it is assigned; for one thread, until ``ending`` is set."""

    def __init__(
        self,
        kafka: Any,
        settings: Mapping[str, Any],
        topics: Sequence[str],
        consuming: Consuming,
        intake: Intake,
        decode: Decode,
        ending: threading.Event,
    ) -> None:
        """``kafka`` is the client's module.

        Raises:
            ConfigError: the client refuses a setting.
        """
        self._kafka, self._consuming, self._intake, self._ending = kafka, consuming, intake, ending
        self._topics = (*topics, *([consuming.labels] if consuming.labels else []))
        self._beside = consuming.beside
        self._faults = client.ClientFaults(lambda: intake.count_refusal("broker"))
        told = {"error_cb": self._faults.tell, "on_commit": self._on_commit}
        self._consumer = client.make(kafka.Consumer, {**settings, **told}, "stream.source")
        self._decode = decode
        self._into_log = IntoLog(intake, self._patient)
        self._assigned: set[Place] = set()
        self._lost: set[Place] = set()
        self._ahead: set[Place] = set()  # by event time: assigned again once the others have come nearer
        self._message_bytes = MESSAGE_BYTES
        self._committing = False
        self._due: dict[str, float] = {}

    def advance(self) -> None:
        """Read what is there, waiting a moment for it, and see what has come to disk.

        Raises:
            NotReady: the intake drains. BadRun, SourceError: only a person can tell how to go on.
        """
        try:
            if self._is_due("look", LOOK_SECONDS):
                self._look()
            self._assign({place for place in self._ahead if self._intake.may_bring(_name(place), NEARER)})
            self._read()
            self._into_log.settle(UNDER_WAY, UNDER_WAY_BYTES)
        except self._kafka.KafkaException as fault:
            self._faults.tell(fault)
            self._due["look"] = time.monotonic() + LOOK_AGAIN_SECONDS
        except (Overloaded, OffsetConflict) as fault:
            self._begin_again(fault)
        if self._is_due("tell", TELL_SECONDS):
            self._intake.tell_broker(self._waiting(self._known_end))
        if self._is_due("commit", COMMIT_SECONDS):
            self._commit()

    def close(self) -> None:
        """Tell the broker how far the log is, and end."""
        try:
            self._into_log.settle()
            self._commit()
            deadline = time.monotonic() + END_SECONDS
            while self._committing and time.monotonic() < deadline:
                self._consumer.poll(POLL_SECONDS)
        finally:
            self._consumer.close()

    def _look(self) -> None:
        """Assign partitions that are not yet; a topic that is not there is looked for again soon."""
        for topic in self._topics:
            metadata = self._consumer.list_topics(topic, timeout=ASK_SECONDS)
            self._refuse_other(metadata.cluster_id)
            if (error := metadata.topics[topic].error) is not None:
                self._faults.tell(error, f"topic {topic!r}")
                self._due["look"] = time.monotonic() + LOOK_AGAIN_SECONDS
                continue
            places = {(topic, number) for number in metadata.topics[topic].partitions} - self._assigned
            self._begin(topic, places)
            self._assign(places)

    def _refuse_other(self, cluster: str) -> None:
        if (known := self._intake.origin(f"kafka {cluster}")) != f"kafka {cluster}":
            said = (
                f"needed the cluster that the log was read from, {known}, got kafka {cluster}, with offsets of its own"
            )
            raise SourceError(said, where="stream.source.servers", fix="go back to it, or begin elsewhere: --state DIR")

    def _begin(self, topic: str, places: set[Place]) -> None:
        """The first positions of partitions; one that a topic got later is read from its first message."""
        new = [place for place in places if self._into_log.at(_name(place)) is None]
        at_first = not any(name.rpartition("/")[0] == topic for name in self._into_log.written)
        ends = {_name(place): self._bounds(place) for place in new}
        latest = at_first and self._consuming.start == "latest"
        if ends:
            self._into_log.move({name: high if latest else low for name, (low, high) in ends.items()})

    def _read(self) -> None:
        """One look at the client's queue; then those partitions of which the broker has our offset no more."""
        most = int(min(max(BATCH_BYTES / self._message_bytes, 1), BATCH_MESSAGES))
        found: dict[Place, list[Message]] = {}
        ends: dict[Place, int] = {}
        for each in self._consumer.consume(most, POLL_SECONDS):
            place = each.topic(), each.partition()
            if (error := each.error()) is None:
                found.setdefault(place, []).append(self._message(each))
            elif error.code() == self._kafka.KafkaError._AUTO_OFFSET_RESET:
                self._lost.add(place)
            elif error.code() == self._kafka.KafkaError._PARTITION_EOF:
                ends[place] = each.offset()
            else:
                self._faults.tell(error, _name(place) if place[0] else "kafka")
        for place, messages in found.items():
            size_bytes = sum(len(message.value) for message in messages) / len(messages)
            self._message_bytes += 0.5 * (size_bytes - self._message_bytes)
            kind: Kind = "labels" if place[0] == self._consuming.labels else "records"
            self._put(place, messages, kind)
        self._pass(ends)
        for place in sorted(self._lost):
            self._go_on(place)

    def _put(self, place: Place, messages: Sequence[Message], kind: Kind) -> None:
        """On their way, as long as the partition is not ahead of others; then it is left, and they are read again.

        Those before the position are there already.
        """
        name, at = _name(place), self._into_log.at(_name(place))
        messages = [message for message in messages if at is None or message.offset >= at]
        while messages and place not in self._ahead:
            if most := self._intake.may_bring(name):
                form = Form(self._intake.schema_of(kind), self._intake.limits, name, self._beside)
                self._into_log.put(name, self._decode(messages[:most], form), kind)
                messages = messages[most:]
            else:
                self._consumer.incremental_unassign([self._kafka.TopicPartition(*place)])
                self._ahead.add(place)

    def _pass(self, ends: Mapping[Place, int]) -> None:
        """Go on at ends that were reached: between the last message and them there are marks of transactions alone."""
        reached = {_name(place): end for place, end in ends.items() if place not in self._ahead}
        if passed := {name: end for name, end in reached.items() if end > (self._into_log.at(name) or 0)}:
            self._into_log.move(passed)

    def _message(self, each: Any) -> Message:
        value, headers = each.value() or b"", each.headers() or ()
        if not self._beside:
            return Message(each.offset(), value, None, headers)
        kind, milliseconds = each.timestamp()
        time = milliseconds if kind != self._kafka.TIMESTAMP_NOT_AVAILABLE else None
        return Message(each.offset(), value, each.key(), headers, time)

    def _go_on(self, place: Place) -> None:
        """Go on where the broker has messages.

        Raises:
            SourceError: there is nobody who could tell where that is.
        """
        name, held = _name(place), self._bounds(place)
        at = self._into_log.at(name)
        assert at is not None
        if (then := onward(name, at, held, self._consuming.reset)) is not None:
            logger.warning(MOVED, name, *held, at, then)
            self._into_log.move({name: then})
            self._intake.tell_broker({}, max(0, then - at))
        self._assign({place})
        self._lost.discard(place)

    def _bounds(self, place: Place) -> tuple[int, int]:
        """The first offset that the broker has, and the one after its last."""
        low, high = self._consumer.get_watermark_offsets(self._kafka.TopicPartition(*place), timeout=ASK_SECONDS)
        return int(low), int(high)

    def _assign(self, places: set[Place]) -> None:
        """Read these from their positions on."""
        if anew := (places & self._assigned) - self._ahead:
            self._consumer.incremental_unassign([self._kafka.TopicPartition(*place) for place in anew])
        at = [self._kafka.TopicPartition(*place, self._into_log.at(_name(place))) for place in sorted(places)]
        if at:
            self._consumer.incremental_assign(at)
        self._assigned |= places
        self._ahead -= places

    def _begin_again(self, fault: Exception) -> None:
        self._faults.say("log", type(fault).__name__, f"messages are read again: {str(fault).partition(chr(10))[0]}")
        self._into_log.again()
        self._ending.wait(BACK_OFF_SECONDS)
        self._assign(set(self._assigned))

    def _patient(self) -> bool:
        """Wait a moment for room; whether to go on waiting. Meanwhile nothing is fetched that would tell the lag."""
        if self._is_due("ask", TELL_HELD_SECONDS):
            with contextlib.suppress(self._kafka.KafkaException):
                self._intake.tell_broker(self._waiting(lambda place: self._bounds(place)[1]))
        return not self._ending.wait(POLL_SECONDS)

    def _waiting(self, end: Callable[[Place], int]) -> Mapping[str, int]:
        """Messages by partition that the broker has beyond the log; none where its ``end`` is not known."""
        written = self._into_log.written
        return {_name(place): max(0, end(place) - written[_name(place)]) for place in self._assigned}

    def _known_end(self, place: Place) -> int:
        """The end of a partition as of the last fetch, below 0 before the first."""
        bounds = self._consumer.get_watermark_offsets(self._kafka.TopicPartition(*place), cached=True)
        return int(bounds[1]) if bounds is not None else -1

    def _commit(self) -> None:
        """Tell the broker, also what it was told before, as it forgets what is silent for long."""
        if self._consuming.group is None or self._committing or not self._assigned:
            return
        written = self._into_log.written
        offsets = [self._kafka.TopicPartition(*place, written[_name(place)]) for place in self._assigned]
        self._committing = True
        self._consumer.commit(offsets=offsets, asynchronous=True)

    def _on_commit(self, error: Any, _partitions: Any) -> None:
        self._committing = False
        if error is not None:
            self._faults.tell(error, f"group {self._consuming.group!r}")

    def _is_due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + seconds
        return True


def _name(place: Place) -> str:
    return f"{place[0]}/{place[1]}"
