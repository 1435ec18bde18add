"""The source ``nats``: messages of a JetStream stream, read from where the log is and written to it.

    stream ─► decode, sift ─► intake ─► log: records and the next sequence, in one transaction
       ▲                        ▲
       └── at our own sequence ─┴── full: unread

As with Kafka the log's position is the truth (decision 42); a thread of the ingress reads.
"""

import contextlib
import logging
import sqlite3
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from streamkd import extras, logs
from streamkd.errors import ConfigError, NotReady, Overloaded, SourceError, StreamkdError
from streamkd.hookspecs import Options, SourceKind, hookimpl
from streamkd.streams.brokers import client
from streamkd.streams.brokers.formats import FORMAT, REGISTRY, REGISTRY_USER, Format, check, decoder
from streamkd.streams.brokers.jetstream import SUBJECT, JetStream, Unanswered
from streamkd.streams.brokers.messages import Beside, Decode, Form, Message
from streamkd.streams.brokers.reset import MOVED, onward
from streamkd.streams.ingest.intake import Ingest, Intake, Listener
from streamkd.streams.ingest.into_log import UNDER_WAY, UNDER_WAY_BYTES, IntoLog
from streamkd.streams.ingest.refusals import BadRun
from streamkd.streams.log.positions import OffsetConflict

logger = logging.getLogger(__name__)
BATCH_BYTES, BATCH_MESSAGES = 4 << 20, 1_000  # that are asked for at once
MESSAGE_BYTES = 65_536.0  # of a message, before there is one
POLL_SECONDS, LOOK_SECONDS, TELL_SECONDS, BACK_OFF_SECONDS = 0.2, 10.0, 1.0, 1.0


class NatsOptions(Options):
    """Options of the source ``nats``."""

    servers: str = Field(default="nats://127.0.0.1:4222", description="servers to begin with, nats://host:port,...")
    stream: str | None = Field(default=None, description="of JetStream; none: the stream's own name")
    filter: str | None = Field(default=None, description="only messages of this subject; `*` and `>` as NATS has them")
    format: Format = FORMAT
    registry: str | None = REGISTRY
    registry_user: str | None = REGISTRY_USER
    start: Literal["earliest", "latest"] = Field(
        default="earliest", description="where the very first start begins; after it the log knows"
    )
    reset: Literal["earliest", "latest", "stop"] | None = Field(
        default=None,
        description="where to go on when the server does not have our sequence, told and counted; null: at its first "
        "message where ours have expired, and not at all where the stream ends before ours",
    )
    subject: str | None = Field(default=None, description="column that takes the message's subject")
    time: str | None = Field(default=None, description="column that takes the time at which it was stored")
    headers: Mapping[str, str] = Field(default={}, description="columns that take headers, header: column")
    credentials: Path | None = Field(default=None, description="a .creds file")
    user: str | None = Field(
        default=None, pattern="^env:", description="`env:NAME`, of the environment: its value is user:password"
    )
    token: str | None = Field(default=None, pattern="^env:", description="`env:NAME`, of the environment")
    ca: Path | None = Field(default=None, description="certificates that the servers' are signed by (TLS)")

    @property
    def beside(self) -> Beside:
        """Columns from outside the value."""
        subject = {SUBJECT: self.subject} if self.subject else {}
        return Beside(None, self.time, {**self.headers, **subject})

    @model_validator(mode="after")
    def _has_schemas(self) -> "NatsOptions":
        check(self.format, self.registry)
        return self


@hookimpl
def streamkd_sources() -> list[SourceKind]:
    """The source over NATS."""
    return [SourceKind("nats", NatsListener, NatsOptions, "messages of a NATS JetStream stream", push=True)]


class NatsListener(Listener):
    """One cursor in a thread of its own."""

    def __init__(self, options: NatsOptions, ingest: Ingest) -> None:
        """Raises ``MissingExtra``; ``ConfigError`` where a variable of the environment is not set."""
        self._options, self._intake = options, ingest.intake
        self._nats = extras.load("nats", "the source nats")
        self._settings = _settings(options)
        self._decode = decoder(options.format, options.registry, options.registry_user)
        self._name = options.stream or self._intake.stream
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Mapping[str, str]:
        """Read from now on, whether or not a server is there yet."""
        self._thread = threading.Thread(target=self._run, name="nats-reader", daemon=True)
        self._thread.start()
        return {"nats": f"{self._options.servers}/{self._name}"}

    def drain(self, deadline_seconds: float) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join(deadline_seconds)

    def _run(self) -> None:
        stream = JetStream(self._nats, self._settings, self._name, self._options.filter)
        reader = StreamReader(stream, self._name, self._options, self._intake, self._decode, self._ending)
        try:
            while not self._ending.is_set():
                reader.advance()
        except NotReady:  # the intake drains
            pass
        except (BadRun, SourceError) as fault:
            self._intake.stop_source(f"the source nats has stopped: {fault}")
        except Exception:
            if not self._ending.is_set():  # else the log may be closed already
                raise
        with contextlib.suppress(StreamkdError, sqlite3.Error):  # the next start goes on
            reader.settle()
        stream.close()


class StreamReader:
    """The way of one stream's messages into the log; for one thread, until ``ending`` is set."""

    def __init__(
        self,
        stream: JetStream,
        name: str,
        options: NatsOptions,
        intake: Intake,
        decode: Decode,
        ending: threading.Event,
    ) -> None:
        self._stream, self._name, self._options, self._intake = stream, name, options, intake
        self._decode, self._ending = decode, ending
        self._form = Form(intake.schema, intake.limits, name, options.beside)
        self._into_log = IntoLog(intake, lambda: not ending.wait(POLL_SECONDS))
        self._message_bytes = MESSAGE_BYTES
        self._due = {"look": 0.0, "tell": 0.0}
        self._said = logs.Seldom(logger)

    def advance(self) -> None:
        """Read what is there, waiting a moment for it.

        Raises:
            NotReady: the intake drains. BadRun, SourceError: only a person can tell how to go on.
        """
        try:
            if self._is_due("look", LOOK_SECONDS):
                self._look()
            self._read()
            self._into_log.settle(UNDER_WAY, UNDER_WAY_BYTES)
        except Unanswered as fault:
            self._intake.count_refusal("broker")
            self._said.say(f"nats {self._name}", "unanswered", f"{fault}; it is tried again")
            self._due["look"] = 0.0
            self._ending.wait(BACK_OFF_SECONDS)
        except (Overloaded, OffsetConflict) as fault:
            self._said.say("log", type(fault).__name__, f"messages are read again: {fault}")
            self._into_log.again()
            self._ending.wait(BACK_OFF_SECONDS)
        if self._is_due("tell", TELL_SECONDS):
            self._intake.tell_broker({self._name: self._stream.pending})

    def settle(self) -> None:
        """Wait for what is under way to the disk."""
        self._into_log.settle()

    def _look(self) -> None:
        """Whether it is the stream that the log was read from, and where there is something to read."""
        made, *held = self._stream.bounds()
        if (known := self._intake.origin(made)) != made:
            said = f"needed the stream that the log was read from, {known}, got {made}, with sequences of its own"
            raise SourceError(said, where="stream.source.stream", fix="begin elsewhere: --state DIR")
        first, then = held
        at = self._into_log.at(self._name)
        if at is None:
            self._into_log.move({self._name: then if self._options.start == "latest" else first})
        elif (onto := onward(self._name, at, (first, then), self._options.reset)) is not None:
            logger.warning(MOVED, self._name, first, then, at, onto)
            self._into_log.move({self._name: onto})
            self._intake.tell_broker({}, max(0, onto - at))

    def _read(self) -> None:
        at = self._into_log.at(self._name)
        assert at is not None  # it was looked
        if not (room := self._intake.may_bring(self._name)):
            self._ending.wait(POLL_SECONDS)
            return
        most = int(min(max(BATCH_BYTES / self._message_bytes, 2), BATCH_MESSAGES, room))
        found: list[Message] = self._stream.read(at, most, POLL_SECONDS)
        if found and found[0].offset > at:
            self._look()  # what is between has expired, or never was for us
        if found:
            size_bytes = sum(len(message.value) for message in found) / len(found)
            self._message_bytes += 0.5 * (max(size_bytes, 1.0) - self._message_bytes)
            self._into_log.put(self._name, self._decode(found, self._form))

    def _is_due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + seconds
        return True


def _settings(options: NatsOptions) -> dict[str, Any]:
    """What the client connects with."""
    settings: dict[str, Any] = {"servers": options.servers.split(","), "name": "streamkd", "connect_timeout": 2}
    if options.credentials is not None:
        settings["user_credentials"] = str(options.credentials)
    if options.user is not None:
        settings["user"], _, settings["password"] = str(client.value_of("user", options.user)).partition(":")
    if options.token is not None:
        settings["token"] = client.value_of("token", options.token)
    if options.ca is not None:
        try:
            settings["tls"] = ssl.create_default_context(cafile=str(options.ca))
        except OSError as fault:
            raise ConfigError(f"cannot read {options.ca}: {fault}", where="stream.source.ca") from None
    return settings
