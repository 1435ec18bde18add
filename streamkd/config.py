"""The one configuration tree: frozen, complete, and strict.

    file ─► Document (with lines) ─► --set overrides ─► Config ─► plugin options checked by the registry

Only ``streamkd.wiring``, ``streamkd.learner`` and the commands read it; everything else takes plain arguments. Its
sections are ``settings``; a key that names a plugin is one of ``choices``.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from streamkd.choices import Choice, GateChoice, LossChoice, RowsChoice, TeacherChoice, VicinalChoice
from streamkd.document import Document
from streamkd.errors import ConfigError, PluginError
from streamkd.hookspecs import Group, Options
from streamkd.plugins import Registry
from streamkd.records import Model
from streamkd.settings import (
    Adapt,
    CheckpointsSettings,
    MemorySettings,
    Optimizer,
    PoolSettings,
    Positive,
    Publish,
    Serve,
    ShareSettings,
    Stream,
)

logger = logging.getLogger(__name__)


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
    def _answers_come_before_a_hang(self) -> "Config":
        for at, teacher in enumerate(self.teachers):
            limits = teacher.isolate
            if limits is not None and limits.timeout_seconds >= (hang := self.serve.hang_seconds):
                said = f"teachers.{at}.isolate.timeout_seconds {limits.timeout_seconds:g} needs less than"
                raise ValueError(f"{said} serve.hang_seconds {hang:g}, after which the learner itself is ended")
        return self

    @model_validator(mode="after")
    def _something_teaches(self) -> "Config":
        if all(loss.weight == 0 for loss in self.losses):
            raise ValueError("every one of the losses has weight 0, so the student would learn nothing")
        return self

    def sources(self) -> Iterator[tuple[str, Group, Choice]]:
        """Every source of the stream: dotted path, group, choice."""
        yield "stream.source", "sources", self.stream.source
        for index, choice in enumerate(self.stream.also):
            yield f"stream.also.{index}", "sources", choice

    def choices(self) -> Iterator[tuple[str, Group, Choice]]:
        """Every plugin that is named: dotted path, group, choice."""
        yield from self.sources()
        yield "student", "students", self.student
        yield "gate", "gates", self.gate
        yield "adapt.optimizer", "optimizers", self.adapt.optimizer
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
    "adapt.temperature": "moved or not, T made no difference on three streams and five seeds",
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
        _refuse_pulled(config, registry, document)
    return config


def _refuse_pulled(config: Config, registry: Registry, document: Document) -> None:
    """Several sources, or an order of event times, need the log that pushed records go through."""
    wanted = "stream.also" if config.stream.also else "stream.order" if config.stream.order else None
    for path, group, choice in config.sources() if wanted else ():
        if not getattr(registry.kind(group, choice.name, path), "push", False):
            said = (
                f"the source {choice.name} is not pushed to, and {wanted} is for those that are, as it needs their log"
            )
            fix = f"name flight, http or kafka, or leave {wanted} out"
            raise ConfigError(said, where=document.where(path), fix=fix)


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
