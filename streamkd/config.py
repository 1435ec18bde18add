"""The one configuration tree: frozen, complete, and strict.

    file ─► Document (with lines) ─► --set overrides ─► Config ─► plugin options checked by the registry

Only ``streamkd.run`` and the commands read it; everything else takes plain arguments.
A key that names a plugin is a ``Choice``: ``{name: mlp, hidden: [256]}``, whose further keys are
that plugin's own options.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamkd.document import Document
from streamkd.errors import ConfigError, PluginError
from streamkd.hookspecs import Group, Options
from streamkd.plugins import Registry
from streamkd.records import Model, RecordSchema

logger = logging.getLogger(__name__)
Positive = Annotated[int, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Choice(BaseModel):
    """A plugin by name, which may stand alone; every further key is one of its options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @model_validator(mode="before")
    @classmethod
    def _its_name_will_do(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def values(self) -> dict[str, Any]:
        """The plugin's own keys, unchecked."""
        return dict(self.__pydantic_extra__ or {})


class GateChoice(Choice):
    """A gate; one that has another name since the last release goes by both."""

    @model_validator(mode="before")
    @classmethod
    def _takes_its_old_name(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("name") == "arbiter":
            logger.warning("the gate arbiter is called hedge now; the next release refuses the old name")
            return {**given, "name": "hedge"}
        return given


class KeyedChoice(Choice):
    """One of several; two of one kind need different ids."""

    # a label of metrics, a key of checkpoints, the name of a file
    id: str = Field(default="", pattern=r"^([^.\x00-\x1f\x7f/\\][^\x00-\x1f\x7f/\\]{0,127})?$")

    @property
    def key(self) -> str:
        """The name it goes by in metrics, reports and the pool."""
        return self.id or self.name


class TeacherChoice(KeyedChoice):
    """A teacher; two of one kind need different ids."""


class RowsChoice(KeyedChoice):
    """A source of further rows; two of one kind need different ids."""


class VicinalChoice(Choice):
    """The built-in source of rows, whose options are keys of its own; ``rows: 0`` is none."""

    name: str = Field(default="vicinal", pattern="^vicinal$")


class LossChoice(Choice):
    """One term of the loss with its weight."""

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    gate: GateChoice | None = Field(default=None, description="weighs this term's sources; None: the step's gate does")


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


class Retain(Model):
    """What the log keeps of records that a checkpoint already holds, and its quota."""

    bytes: int = Field(default=1 << 30, ge=0)
    age_seconds: float = Field(default=86_400.0, ge=0)
    quota_bytes: Bytes = Field(default=16 << 30, description="a full log is back-pressure, never loss")


class Stream(Model):
    """Where the records come from and what they look like."""

    # a part of paths and of addresses, where `.` and `..` are others
    name: str = Field(default="main", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$")
    source: Choice
    records: RecordSchema | None = Field(default=None, description="None: the source says it itself")
    batch: Batching = Batching()
    limits: Limits = Limits()
    retain: Retain = Retain()
    unlabelled: Literal["reject", "distil"] = Field(
        default="reject", description="records without label are refused, or taught by the teachers alone"
    )

    @model_validator(mode="after")
    def _unlabelled_in_one_place(self) -> "Stream":
        if self.records is not None and self.records.unlabelled:
            raise ValueError("records.unlabelled is not to be set; write unlabelled: distil in stream")
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
    """Remembered samples: ``size`` in all, of which ``holdout_ratio`` is never replayed."""

    size: Positive = 500
    holdout_ratio: float = Field(default=0.2, ge=0, lt=1)
    replay: int = Field(default=100, ge=0, description="remembered samples added to each step")
    policy: Choice = Field(default=Choice(name="class-balanced"), description="which records keep their places")
    holdout_policy: Choice = Field(default=Choice(name="class-balanced"), description="the same, of held-out records")


class PoolSettings(Model):
    """How many teachers may be kept, and how many bytes they may take."""

    limit: Positive = 10
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
    temperature: bool = Field(default=False, description="the temperature of the gated loss is adapted too")
    learning_rate: float = Field(default=0.001, gt=0)
    query: Positive = Field(default=64, description="held-out samples per outer loss")
    anchor: float = Field(default=0.3, ge=0, description="pull of the gate's parameters towards where they began")
    balance: float = Field(default=1e-3, ge=0, description="pull of the teachers' mean weights towards even ones")


class CheckpointsSettings(Model):
    """How often the state is committed; work after the last one is redone after a crash."""

    every_seconds: Seconds = 10.0
    keep: Positive = 3


class Publish(Model):
    """How often the served model is replaced, and when a candidate is refused."""

    every_seconds: Seconds = 2.0
    model: Choice = Field(
        default=Choice(name="auto"),
        description="moving average (ema), student, the average with the analytic teacher (ensemble), or everybody, "
        "weighed by what has come true (auto)",
    )
    regression: Ratio = Field(default=0.15, description="largest loss of held-out accuracy that is still published")
    keep: Positive = 10


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


class Config(Model):
    """The whole configuration."""

    name: str = "streamkd"
    seed: int = Field(default=0, ge=0, lt=1 << 62)  # generators take 64 bits; some are seeded a little further on
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive = Field(default=1, description="torch threads of the learner")
    stream: Stream
    detectors: tuple[Choice, ...] = (Choice(name="task-column"), Choice(name="new-label"))
    student: Choice = Choice(name="mlp")
    share: ShareSettings | None = None
    optimizer: Optimizer = Optimizer()
    memory: MemorySettings = MemorySettings()
    vicinal: VicinalChoice = VicinalChoice()
    rows: tuple[RowsChoice, ...] = Field(default=(), description="further sources of rows for each step")
    teachers: tuple[TeacherChoice, ...] = (
        TeacherChoice(name="ema"),
        TeacherChoice(name="memory"),
        TeacherChoice(name="analytic"),
        TeacherChoice(name="snapshot"),
        TeacherChoice(name="last-label"),
        TeacherChoice(name="linear"),
        TeacherChoice(name="crossed"),
        TeacherChoice(name="forgetting"),
        TeacherChoice(name="former"),
    )
    pool: PoolSettings = PoolSettings()
    gate: GateChoice = GateChoice(name="per-sample")
    losses: tuple[LossChoice, ...] = Field(default=(LossChoice(name="match-gate"),), min_length=1)
    adapt: Adapt = Adapt()
    meta: Path | None = Field(
        default=None, description="directory written by `streamkd meta-train`: the stream begins from what it learned"
    )
    observers: tuple[Choice, ...] = ()
    checkpoint: CheckpointsSettings = CheckpointsSettings()
    publish: Publish = Publish()
    serve: Serve = Serve()

    @model_validator(mode="after")
    def _ports_differ(self) -> "Config":
        if self.serve.port and self.serve.port == self.serve.flight_port:
            raise ValueError(f"serve.port and serve.flight_port are both {self.serve.port}; they need one each")
        return self

    @model_validator(mode="after")
    def _keys_differ(self) -> "Config":
        taken = ["arrived", "replayed", "vicinal"]
        for what, keys in (
            ("teachers", [teacher.key for teacher in self.teachers]),
            ("sources of rows", [*taken, *(source.key for source in self.rows)]),
        ):
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                raise ValueError(f"two {what} go by the name {twice[0]!r}; give one of them another id")
        taken = [t.key for t in self.teachers if t.key in RESERVED or (t.key == "average" and t.name != "ema")]
        if taken:
            raise ValueError(f"{taken[0]!r} is another source's name beside the teachers; give this one another id")
        return self

    @model_validator(mode="after")
    def _what_is_served_is_there(self) -> "Config":
        model = self.publish.model.name
        needed = {"ensemble": "analytic", "ema": "ema"}.get(model)
        if needed and all(teacher.name != needed for teacher in self.teachers):
            raise ValueError(f"publish.model {model} needs the teacher {needed}; name it, or publish auto")
        return self

    @model_validator(mode="after")
    def _something_teaches(self) -> "Config":
        if all(loss.weight == 0 for loss in self.losses):
            raise ValueError("every one of the losses has weight 0, so the student would learn nothing")
        return self

    def choices(self) -> Iterator[tuple[str, Group, Choice]]:
        """Every plugin that is named: dotted path, group, choice."""
        yield "stream.source", "sources", self.stream.source
        yield "student", "students", self.student
        yield "gate", "gates", self.gate
        yield "pool.admission", "admissions", self.pool.admission
        yield "publish.model", "selectors", self.publish.model
        yield "memory.policy", "policies", self.memory.policy
        yield "memory.holdout_policy", "policies", self.memory.holdout_policy
        yield "vicinal", "rows", self.vicinal
        many: tuple[tuple[str, Group, Sequence[Choice]], ...] = (
            ("detectors", "detectors", self.detectors),
            ("teachers", "teachers", self.teachers),
            ("losses", "losses", self.losses),
            ("rows", "rows", self.rows),
            ("observers", "observers", self.observers),
        )
        for path, group, choices in many:
            for index, choice in enumerate(choices):
                yield f"{path}.{index}", group, choice
        for index, loss in enumerate(self.losses):
            if loss.gate is not None:
                yield f"losses.{index}.gate", "gates", loss.gate


RESERVED = ("hard", "student")
"""Sources of an answer or of a lesson that are no teachers, as status, metrics and versions call them."""

EMBEDDED = """\
# The embedded stream: scikit-learn's handwritten digits, tasks of two digits, then the same in changed form, for ever,
# from the second round on each a little turned, moved, thicker or thinner.
name: embedded
stream:
  source:
    name: replay
    dataset: digits
    classes_per_task: 2
    variations: [plain, rotate-90, invert]
    repeat: true
    rounds: changed
    rate: 50
memory: {size: 300}
student: {name: mlp, hidden: [100, 100]}
checkpoint: {every_seconds: 5}
"""


def load(path: Path | None, overrides: Sequence[str] = (), registry: Registry | None = None) -> Config:
    """The configuration of a YAML file (``None``: the embedded stream) with ``a.b=c`` overrides.

    With a registry, every named plugin is looked up and its options are checked.

    Raises:
        ConfigError: anything that cannot be used, with file, line, dotted path and the nearest known key.
    """
    name = str(path) if path else "embedded"
    try:
        text = path.read_text("utf-8") if path else EMBEDDED
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"cannot be read: {fault}", where=name, fix="name a readable YAML file") from None
    document = Document.parse(text, name)
    for override in overrides:
        document.override(override)
    return _from_document(document, registry)


def from_tree(tree: Mapping[str, Any], registry: Registry | None = None) -> Config:
    """The configuration of a plain tree, as it is kept beside a checkpoint.

    Raises:
        ConfigError: as ``load``.
    """
    return _from_document(Document(dict(tree)), registry)


GONE = {
    "pool.merge": "of 36 mergers tried on growing streams none was worth as much as the better of the two",
    "vicinal.moved": "remembered images lie as they were: on four streams and five seeds that made no difference",
}
RENAMED = {"vicinity": "vicinal", "optimizer.settle_steps": "decay_steps"}
"""Keys of earlier versions, by their new name in the same place. They are still taken for one release, and say so."""


def _from_document(document: Document, registry: Registry | None) -> Config:
    for path, to in (dict.fromkeys(GONE) | RENAMED).items():
        where = document.where(path)
        if document.move(path, to) and document.name:
            said = f"is called {to} now" if to else f"does nothing any more: {GONE[path]}"
            logger.warning("%s %s; the next release refuses it", where, said)
    config = document.check(Config)
    if registry is not None:
        for path, group, choice in config.choices():
            options(registry, path, group, choice, document)
    return config


def options(registry: Registry, path: str, group: Group, choice: Choice, document: Document | None = None) -> Options:
    """The checked options of a plugin that the configuration names at ``path``.

    Raises:
        ConfigError: an unknown plugin, or a key or value that its options refuse.
    """
    document = document or Document({})
    try:
        kind = registry.kind(group, choice.name, path)
    except PluginError as fault:
        raise ConfigError(fault.message, where=document.where(f"{path}.name"), fix=fault.fix) from None
    return document.check(kind.options, choice.values, path)


def dump(config: Config) -> dict[str, Any]:
    """The resolved tree as plain JSON values; ``from_tree`` takes it back."""
    return config.model_dump(mode="json")
