"""The sections of the configuration: frozen models, each key with its bounds and what it means."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from streamkd.choices import Choice
from streamkd.records import Model, RecordSchema

logger = logging.getLogger(__name__)
Positive = Annotated[int, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(gt=0, lt=1e9)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Mapped(Model):
    """Where a layer of the student comes from."""

    layer: str
    fit: Literal["exact", "slice"] = Field(default="exact", description="slice: the leading block that both have")


class ShareSettings(Model):
    """What the student inherits of a teacher before it learns."""

    teacher: str = Field(description="the key of a teacher, or the path of a model that a checkpoint teacher takes")
    layers: Literal["all"] | tuple[str, ...] = Field(default="all", description="of the student; all: of equal names")
    map: dict[str, str | Mapped] = Field(default={}, description="the student's layer: the teacher's layer")
    frozen: bool = Field(default=False, description="inherited layers are not trained on; the head always is")


class Batching(Model):
    """How the log is cut into training batches: by count, or after a silence (journaled)."""

    size: Positive = 10
    pace: Literal["fixed", "auto"] = Field(
        default="fixed",
        description="auto: up to 32 times as many, or up to 8 rehearsals more, to keep up with what is pushed",
    )
    rehearsals: int = Field(
        default=0, ge=0, le=100, description="steps after each batch, in which the student learns what is remembered"
    )
    flush_seconds: Seconds = Field(default=1.0, description="a shorter batch is trained after so long a silence")


class Limits(Model):
    """What one batch, one row and one queue may hold."""

    batch_rows: Positive = 65_536
    batch_bytes: Bytes = 64 << 20
    row_bytes: Bytes = 4 << 20
    columns: Positive = 64
    queue_records: Positive = 262_144
    queue_bytes: Bytes = 256 << 20
    ingress_bytes: int = Field(
        default=2 << 30,
        ge=512 << 20,  # an idle one takes 330 to 510 MB; with less it never starts
        description="address space of the ingress process (RLIMIT_AS), 512 MiB or more",
    )
    labels: Positive = Field(default=10_000, description="labels that are learned; records of any further are refused")
    bad_in_a_row: Positive = Field(default=1_000, description="so many refused rows in a row stop the source")
    shares: Mapping[str, Weight] = Field(
        default={}, description="part of a full queue by sender, `broker`: all partitions; 1: as large as anybody's"
    )


class Retain(Model):
    """What the log keeps of records that a checkpoint already holds, and its quota."""

    bytes: int = Field(default=1 << 30, ge=0)
    age_seconds: float = Field(default=86_400.0, ge=0)
    quota_bytes: Bytes = Field(default=16 << 30, description="a full log is back-pressure, never loss")


class LateLabels(Model):
    """Predictions are kept, so that their labels may come later."""

    keep_seconds: Seconds = Field(default=7 * 86_400.0, description="of a running server, and")
    keep_bytes: Bytes = Field(default=1 << 30, description="whichever is reached first")
    early_seconds: float = Field(default=60.0, ge=0, description="a label waits so long for its prediction")
    settle_seconds: float = Field(
        default=0.0,
        ge=0,
        description="0: the first label of a prediction counts; else the last that comes within so long",
    )


class OrderSettings(Model):
    """Records are learned in the order of their event times, as far as they come within the lateness."""

    lateness_seconds: float = Field(
        default=60.0, ge=0, le=1e9, description="by so much event time a sender's records may come after its newest one"
    )
    idle_seconds: Seconds = Field(default=30.0, description="a sender that is silent for so long is not waited for")
    late: Literal["train", "drop", "dead-letter"] = Field(
        default="train", description="what becomes of records whose place is gone: train: learned where they come"
    )


class Stream(Model):
    """Where the records come from and what they look like."""

    # a part of paths and of addresses, where `.` and `..` are others
    name: str = Field(default="main", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$")
    source: Choice
    also: tuple[Choice, ...] = Field(
        default=(), description="further sources of the same stream, where all of them are pushed to"
    )
    records: RecordSchema | None = Field(default=None, description="None: the source says it itself")
    batch: Batching = Batching()
    limits: Limits = Limits()
    retain: Retain = Retain()
    unlabelled: Literal["reject", "distil"] = Field(
        default="reject", description="records without label are refused, or taught by the teachers alone"
    )
    labels: LateLabels | None = Field(
        default=None,
        description="`{}`: predictions are kept, and labels for them taken; for sources that are pushed to",
    )
    order: OrderSettings | None = Field(
        default=None,
        description="`{}`: in the order of records.event_time over all senders; for sources that are pushed to",
    )

    @model_validator(mode="after")
    def _unlabelled_in_one_place(self) -> "Stream":
        if self.records is not None and self.records.unlabelled:
            raise ValueError("records.unlabelled is not to be set; write unlabelled: distil in stream")
        return self

    @model_validator(mode="after")
    def _predictions_can_become_records(self) -> "Stream":
        if self.labels is None or self.records is None:
            return self
        left_out = [column.name for column in self.records.inputs if column.name not in self.records.student]
        if self.records.student and left_out:
            raise ValueError(
                f"labels needs predictions that bring every input column, and the student does not read {left_out[0]!r}"
            )
        if "prediction_id" in (self.records.label, self.records.task, self.records.producer):
            raise ValueError("labels needs the name prediction_id for itself; rename the column")
        return self

    @model_validator(mode="after")
    def _sources_differ(self) -> "Stream":
        sources = [self.source, *self.also]
        if twice := [choice for choice in self.also if sources.count(choice) > 1]:
            raise ValueError(f"also names the source {twice[0].name} a second time with the same options")
        return self

    @model_validator(mode="after")
    def _order_has_times(self) -> "Stream":
        if self.order is None:
            return self
        if self.limits.shares:
            raise ValueError("order and limits.shares exclude one another: the event times decide whose turn it is")
        if self.labels is not None:
            raise ValueError(
                "order and labels exclude one another: a label that comes later makes a record of the time at which its"
                " prediction was asked for, which is late by then; leave one of them out"
            )
        if self.records is not None and self.records.event_time is None:
            raise ValueError("order needs the time of a record; name its column in records.event_time")
        return self

    def schema_of(self, described: RecordSchema | None = None) -> RecordSchema | None:
        """``records``, else what the source describes, as records are taken: with a label, or perhaps without."""
        found = self.records or described
        return found and found.model_copy(update={"unlabelled": self.unlabelled == "distil"})


class Optimizer(Model):
    """The student's optimiser."""

    name: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = Field(default=0.001, gt=0, le=1e20, description="beyond, float32 weights overflow at once")
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)
    start: float = Field(default=3.0, ge=1, description="the rate begins so many times as high")
    decay_steps: Positive = Field(default=500, description="and comes down by e-folds of so many steps")

    @property
    def rates(self) -> dict[str, Any]:
        """What ``streamkd.students.optimizers.build`` takes."""
        return self.model_dump(include={"learning_rate", "momentum", "nesterov", "weight_decay"})

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Optimizer":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov belong to sgd, not to {self.name}")
        return self


class MemorySettings(Model):
    """Remembered samples: ``size`` in all or as many as ``bytes`` hold; of them ``holdout_ratio`` is never replayed."""

    size: Positive | None = Field(default=None, description="records, in place of bytes")
    bytes: Bytes | None = Field(
        default=None, description="of all that is kept of records, teachers' answers among it; 64 MiB without size"
    )
    holdout_ratio: float = Field(default=0.2, ge=0, lt=1)
    replay: int = Field(default=100, ge=0, description="remembered samples added to each step")
    policy: Choice = Field(default=Choice(name="class-balanced"), description="which records keep their places")
    holdout_policy: Choice = Field(default=Choice(name="class-balanced"), description="the same, of held-out records")

    @model_validator(mode="before")
    @classmethod
    def _has_one_bound(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        bounds = [name for name in ("size", "bytes") if given.get(name) is not None]
        if len(bounds) > 1:
            raise ValueError(f"needed size or bytes, got both ({given['size']}, {given['bytes']}); set one to null")
        return given if bounds else {**given, "bytes": 64 << 20}


class PoolSettings(Model):
    """How many teachers may be kept, and how many bytes they may take."""

    limit: Positive = 8
    bytes: Bytes = 256 << 20
    admission: Choice = Field(default=Choice(name="worth"), description="which snapshots join")

    @model_validator(mode="before")
    @classmethod
    def _takes_its_old_margin(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "admit_margin" in given and "admission" not in given:
            logger.warning("pool.admit_margin is called pool.admission.margin now; the next release refuses it")
            rest = {key: value for key, value in given.items() if key != "admit_margin"}
            return {**rest, "admission": {"name": "worth", "margin": given["admit_margin"]}}
        return given


class Adapt(Model):
    """When and how the gate is meta-adapted."""

    every: int = Field(default=10, ge=0, description="steps between adaptations; 0: only on new tasks")
    on_task_steps: int = Field(default=10, ge=0, description="adaptations in a row when a task begins")
    engine: Literal["auto", "forward", "finite-difference", "maml", "prequential"] = "auto"
    horizon: Positive = Field(default=1, description="the last inner steps that an adaptation looks through")
    first_order: bool = Field(default=False, description="maml: a step's gradient forgets the steps before it")
    optimizer: Choice = Field(default=Choice(name="adam"), description="what moves the gate")
    learning_rate: float = Field(default=0.001, gt=0)
    query: Positive = Field(default=64, description="held-out samples per outer loss")
    anchor: float = Field(default=0.3, ge=0, description="pull of the gate's parameters towards where they began")
    balance: float = Field(default=1e-3, ge=0, description="pull of the teachers' mean weights towards even ones")


class CheckpointsSettings(Model):
    """How often the state is committed; work after the last one is redone after a crash."""

    every_seconds: Seconds = 10.0
    keep: Positive = Field(default=3, description="the newest; where files are damaged, the one before is gone on from")
    history_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="of older ones, the sparser the older, for `models rollback --before`; as far as the log goes back",
    )


class Publish(Model):
    """How often the served model is replaced, and when a candidate is refused."""

    every_seconds: Seconds = 2.0
    model: Choice = Field(
        default=Choice(name="auto"),
        description="moving average (ema), student, the average with the analytic teacher (ensemble), or everybody, "
        "weighed by what has come true (auto)",
    )
    class_weights: Literal["balanced"] | dict[str, Weight] | None = Field(
        default=None,
        description="what an answer counts by its class: by label, else 1; balanced: by how rare each is",
    )
    regression: Ratio = Field(default=0.15, description="largest loss of held-out accuracy that is still published")
    keep: Positive = 10

    @field_validator("class_weights", mode="before")
    @classmethod
    def _labels_are_texts(cls, given: Any) -> Any:
        return {str(label): weight for label, weight in given.items()} if isinstance(given, Mapping) else given


class Tls(Model):
    """Certificate and key of both ports; ``client_ca`` asks clients for certificates too."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Serve(Model):
    """Ports, limits and protection of the running server."""

    host: str = "127.0.0.1"
    port: Port = 8470
    flight_port: Port = 8815
    tls: Tls | None = None
    tokens: Path | None = Field(default=None, description="file of hashed tokens with their scopes")
    insecure: bool = Field(default=False, description="allow a bind beyond loopback without TLS and tokens")
    hosts: tuple[str, ...] = Field(
        default=(),
        description="names that this server is asked under, beyond loopback's, without scheme, port or wildcard;"
        " without tokens others get 421",
    )
    connections: Positive = Field(
        default=1_000, description="open HTTP connections; beyond, the longest idle of the peer with most is closed"
    )
    head_seconds: Seconds = Field(default=20.0, description="for a request's head")
    body_seconds: Seconds = Field(default=60.0, description="for a whole body, and for a client to read its answer")
    idle_seconds: Seconds = Field(
        default=10.0, description="a body of which nothing more comes for so long is given up"
    )
    keep_alive_seconds: Seconds = Field(
        default=75.0, description="a connection without a request stays open for so long"
    )
    drain_seconds: float = Field(default=1.0, ge=0)
    export_every: Seconds | None = Field(
        default=None,
        description="seconds between two exports of what is served, for devices to fetch as"
        " `/v1/models/student/artifact`; null: none",
    )
    batch_rows: Positive = Field(default=64, description="rows that one forward pass of the predictor takes")
    queue_rows: Positive = Field(default=4_096, description="rows that may wait for a prediction; more is 429")
    body_bytes: Bytes = 64 << 20
    hang_seconds: float = Field(
        default=120.0,
        ge=5,
        description="a learner whose loop says nothing for so long is killed and started again, an ingress after a"
        " quarter of it, at least 5 s; five times as long while it loads, saves, or takes its first step",
    )

    @model_validator(mode="after")
    def _hosts_are_names(self) -> "Serve":
        odd = [host for host in self.hosts if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[^\s:/*\[\]]+", host)]
        if odd:
            raise ValueError(f"hosts needs names without scheme, port or wildcard, got {odd[0]!r}")
        return self
