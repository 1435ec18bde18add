"""The source ``kafka``: messages of topics, read from where the log is and written to it like what is pushed.

    topic/partition ─► decode, sift ─► intake ─► log: records and the partition's next offset, in one transaction
         ▲                               ▲                      │ afterwards, as information
         └──── at our own offsets ───────┴── full: unread ──────┴─► the broker's offsets of ``group``

A thread of the ingress reads. It ends when the intake drains, or for a reason that a person has to look at; whatever
passes by itself (no broker, no topic, no room) is told and waited for.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from streamkd.errors import NotReady, SourceError, StreamkdError
from streamkd.hookspecs import Options, SourceKind, hookimpl
from streamkd.streams.brokers import client
from streamkd.streams.brokers.client import Setting
from streamkd.streams.brokers.formats import FORMAT, REGISTRY, REGISTRY_USER, Format, check, decoder
from streamkd.streams.brokers.messages import Beside
from streamkd.streams.brokers.partitions import Partitions
from streamkd.streams.ingest.intake import Ingest, Listener
from streamkd.streams.ingest.refusals import BadRun

FETCHED_KILOBYTES = 32_768  # that the client holds ahead of us: half of its default
FETCH_AGAIN_MILLISECONDS = 10  # where it holds so much: after its default of a second we would have waited for it
NO_GROUP = "streamkd"  # the client wants a name, also where nobody is told how far we are


class KafkaOptions(Options):
    """Options of the source ``kafka``."""

    servers: str = Field(default="127.0.0.1:9092", description="brokers to begin with, host:port,...")
    topics: tuple[str, ...] = Field(default=(), description="all their partitions are read; none: the stream's name")
    labels: str | None = Field(default=None, description="topic of labels of predictions, for `stream.labels`")
    format: Format = FORMAT
    registry: str | None = REGISTRY
    registry_user: str | None = REGISTRY_USER
    start: Literal["earliest", "latest"] = Field(
        default="earliest", description="where the very first start begins; after it the log knows"
    )
    reset: Literal["earliest", "latest", "stop"] | None = Field(
        default=None,
        description="where to go on when the broker does not have our offset, told and counted; null: at its first "
        "message where ours have expired, and not at all where its partition ends before ours",
    )
    group: str | None = Field(default=None, description="consumer group under which the broker is told our offsets")
    key: str | None = Field(default=None, description="column that takes the message's key")
    time: str | None = Field(default=None, description="column that takes the time at which it was written")
    headers: Mapping[str, str] = Field(default={}, description="columns that take headers, header: column")
    options: Mapping[str, Setting] = Field(
        default={}, description="further settings of librdkafka; `env:NAME` is read from the environment"
    )

    @property
    def beside(self) -> Beside:
        """Columns from outside the value."""
        return Beside(self.key, self.time, self.headers)

    @model_validator(mode="after")
    def _has_schemas(self) -> "KafkaOptions":
        check(self.format, self.registry)
        return self

    @field_validator("options")
    @classmethod
    def _may_be_given(cls, given: Mapping[str, Setting]) -> Mapping[str, Setting]:
        return client.check_settings(given)


@hookimpl
def streamkd_sources() -> list[SourceKind]:
    """The source over Kafka."""
    return [SourceKind("kafka", KafkaListener, KafkaOptions, "messages of Kafka topics", push=True)]


class KafkaListener(Listener):
    """One consumer in a thread of its own."""

    def __init__(self, options: KafkaOptions, ingest: Ingest) -> None:
        """Raises ``MissingExtra``; ``RecordError`` where labels are read and the stream takes none."""
        self._options, self._intake = options, ingest.intake
        self._kafka = client.load("the source kafka")
        if options.labels:
            self._intake.schema_of("labels")
        self._decode = decoder(options.format, options.registry, options.registry_user)
        self._topics = options.topics or (self._intake.stream,)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Mapping[str, str]:
        """Read from now on, whether or not a broker is there yet.

        Raises:
            ConfigError: the client refuses a setting.
        """
        settings = self._settings()
        reading = (self._topics, self._options, self._intake, self._decode)
        partitions = Partitions(self._kafka, settings, *reading, self._ending)
        self._thread = threading.Thread(target=self._run, args=[partitions], name="kafka", daemon=True)
        self._thread.start()
        return {"kafka": f"kafka://{self._options.servers}/{','.join(self._topics)}"}

    def drain(self, deadline_seconds: float) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join(deadline_seconds)

    def _settings(self) -> dict[str, Any]:
        ours: dict[str, Setting] = {
            "bootstrap.servers": self._options.servers,
            "group.id": self._options.group or NO_GROUP,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
        }
        ahead = {"queued.max.messages.kbytes": FETCHED_KILOBYTES, "fetch.queue.backoff.ms": FETCH_AGAIN_MILLISECONDS}
        return client.settings({**ahead, **self._options.options}, ours)

    def _run(self, partitions: Partitions) -> None:
        try:
            while not self._ending.is_set():
                partitions.advance()
        except NotReady:  # the intake drains
            pass
        except (BadRun, SourceError) as fault:
            self._intake.stop_source(f"the source kafka has stopped: {fault}")
        except Exception:
            if not self._ending.is_set():  # else the log may be closed already: a broker has not answered for so long
                raise
        with contextlib.suppress(StreamkdError, self._kafka.KafkaException, sqlite3.Error):  # the next start goes on
            partitions.close()
