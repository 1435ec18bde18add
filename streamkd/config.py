"""The one configuration tree: frozen, complete, and strict.

    file ─► yaml nodes (with lines) ─► --set overrides ─► Config ─► plugin options checked by the registry

Only ``streamkd.run`` and the commands read it; everything else takes plain arguments.
A key that names a plugin is a ``Choice``: ``{name: mlp, hidden: [256]}``, whose further keys are
that plugin's own options.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streamkd.errors import ConfigError, PluginError
from streamkd.hookspecs import Group, Options
from streamkd.plugins import Registry
from streamkd.records import Model, RecordSchema

Positive = Annotated[int, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Choice(BaseModel):
    """A plugin by name; every further key is one of its options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def values(self) -> dict[str, Any]:
        """The plugin's own keys, unchecked."""
        return dict(self.__pydantic_extra__ or {})


class TeacherChoice(Choice):
    """A teacher; two of one kind need different ids."""

    id: str = ""

    @property
    def key(self) -> str:
        """The name it goes by in metrics, reports and the pool."""
        return self.id or self.name


class LossChoice(Choice):
    """One term of the loss with its weight."""

    weight: float = Field(default=1.0, ge=0)


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
    ingress_bytes: Bytes = Field(default=2 << 30, description="address space of the ingress process (RLIMIT_AS)")
    bad_in_a_row: Positive = Field(default=1_000, description="so many refused rows in a row stop the source")


class Retain(Model):
    """What the log keeps of records that a checkpoint already holds, and its quota."""

    bytes: int = Field(default=1 << 30, ge=0)
    age_seconds: float = Field(default=86_400.0, ge=0)
    quota_bytes: Bytes = Field(default=16 << 30, description="a full log is back-pressure, never loss")


class Stream(Model):
    """Where the records come from and what they look like."""

    name: str = Field(default="main", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    source: Choice
    records: RecordSchema | None = Field(default=None, description="None: the source says it itself")
    batch: Batching = Batching()
    limits: Limits = Limits()
    retain: Retain = Retain()
    unlabelled: Literal["reject"] = "reject"


class Optimizer(Model):
    """The student's optimiser."""

    name: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = Field(default=0.001, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Optimizer":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov belong to sgd, not to {self.name}")
        return self


class Memory(Model):
    """Remembered samples: ``size`` in all, of which ``holdout_ratio`` is never replayed."""

    size: Positive = 500
    holdout_ratio: float = Field(default=0.2, ge=0, lt=1)
    replay: int = Field(default=60, ge=0, description="remembered samples added to each step")
    policy: Literal["reservoir", "class-balanced"] = "class-balanced"


class Pool(Model):
    """How many teachers may be kept, and how many bytes they may take."""

    limit: Positive = 8
    bytes: Bytes = 256 << 20
    admit_margin: float = Field(
        default=0.0, ge=0, le=1, description="held-out accuracy on its own classes above chance"
    )


class Adapt(Model):
    """When and how the gate is meta-adapted."""

    every: int = Field(default=10, ge=0, description="steps between adaptations; 0: only on new tasks")
    on_task_steps: int = Field(default=10, ge=0, description="adaptations in a row when a task begins")
    engine: Literal["auto", "forward", "finite-difference"] = "auto"
    learning_rate: float = Field(default=0.01, gt=0)
    query: Positive = Field(default=64, description="held-out samples per outer loss")
    anchor: float = Field(default=1e-3, ge=0, description="pull of the gate's parameters towards where they began")


class Checkpoints(Model):
    """How often the state is committed; work after the last one is redone after a crash."""

    every_seconds: Seconds = 10.0
    keep: Positive = 3


class Publish(Model):
    """How often the served model is replaced, and when a candidate is refused."""

    every_seconds: Seconds = 2.0
    model: Literal["ema", "student"] = "ema"
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
    drain_seconds: float = Field(default=1.0, ge=0)
    batch_rows: Positive = Field(default=64, description="rows that one forward pass of the predictor takes")
    queue_rows: Positive = Field(default=4_096, description="rows that may wait for a prediction; more is 429")
    body_bytes: Bytes = 64 << 20


class Config(Model):
    """The whole configuration."""

    name: str = "streamkd"
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Positive = Field(default=1, description="torch threads of the learner")
    stream: Stream
    detectors: tuple[Choice, ...] = (Choice(name="task-column"), Choice(name="new-label"))
    student: Choice = Choice(name="mlp")
    optimizer: Optimizer = Optimizer()
    memory: Memory = Memory()
    teachers: tuple[TeacherChoice, ...] = (
        TeacherChoice(name="ema"),
        TeacherChoice(name="memory"),
        TeacherChoice(name="snapshot"),
    )
    pool: Pool = Pool()
    gate: Choice = Choice(name="per-sample")
    losses: tuple[LossChoice, ...] = (LossChoice(name="match-gate"),)
    adapt: Adapt = Adapt()
    observers: tuple[Choice, ...] = ()
    checkpoint: Checkpoints = Checkpoints()
    publish: Publish = Publish()
    serve: Serve = Serve()

    @model_validator(mode="after")
    def _teachers_differ(self) -> "Config":
        keys = [teacher.key for teacher in self.teachers]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"two teachers go by the name {twice[0]!r}; give one of them another id")
        return self

    def choices(self) -> Iterator[tuple[str, Group, Choice]]:
        """Every plugin that is named: dotted path, group, choice."""
        yield "stream.source", "sources", self.stream.source
        yield "student", "students", self.student
        yield "gate", "gates", self.gate
        many: tuple[tuple[str, Group, Sequence[Choice]], ...] = (
            ("detectors", "detectors", self.detectors),
            ("teachers", "teachers", self.teachers),
            ("losses", "losses", self.losses),
            ("observers", "observers", self.observers),
        )
        for path, group, choices in many:
            for index, choice in enumerate(choices):
                yield f"{path}.{index}", group, choice


EMBEDDED = """\
# The embedded stream: scikit-learn's handwritten digits, tasks of two digits, then the same in changed form, for ever.
name: embedded
stream:
  source:
    name: replay
    dataset: digits
    classes_per_task: 2
    variations: [plain, rotate-90, invert]
    repeat: true
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
    tree, lines = _parse(text, name)
    for override in overrides:
        _override(tree, lines, override)
    return from_tree(tree, registry, name, lines)


def from_tree(
    tree: Mapping[str, Any], registry: Registry | None = None, name: str = "", lines: Mapping[str, str] | None = None
) -> Config:
    """The configuration of a plain tree, as ``load`` and as kept beside a checkpoint.

    Raises:
        ConfigError: as ``load``.
    """
    try:
        config = Config.model_validate(tree)
    except ValidationError as fault:
        raise _explain(fault, Config, tree, name, lines or {}, "") from None
    _refuse_switches(tree, config, name, lines or {}, "")
    if registry is not None:
        for path, group, choice in config.choices():
            options(registry, path, group, choice, name, lines or {})
    return config


def options(
    registry: Registry, path: str, group: Group, choice: Choice, name: str = "", lines: Mapping[str, str] | None = None
) -> Options:
    """The checked options of a named plugin.

    Raises:
        ConfigError: an unknown plugin, or a key or value that its options refuse.
    """
    try:
        kind = registry.kind(group, choice.name, path)
    except PluginError as fault:
        raise ConfigError(fault.message, where=_where(name, lines or {}, f"{path}.name"), fix=fault.fix) from None
    try:
        checked = kind.options.model_validate(choice.values)
    except ValidationError as fault:
        raise _explain(fault, kind.options, choice.values, name, lines or {}, f"{path}.") from None
    _refuse_switches(choice.values, checked, name, lines or {}, path)
    return checked


def dump(config: Config) -> dict[str, Any]:
    """The resolved tree as plain JSON values; ``from_tree`` takes it back."""
    return config.model_dump(mode="json")


def _parse(text: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain tree, and ``file:line`` of each dotted path."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"is not YAML: {getattr(fault, 'problem', fault)}", where=where) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"needed a mapping of keys, got {type(tree).__name__}", where=name, fix="see streams/*.yaml")
    lines: dict[str, str] = {}
    _note_lines(root, "", name, lines)
    return tree, lines


def _note_lines(node: yaml.Node | None, path: str, name: str, lines: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            below = f"{path}.{key.value}" if path else str(key.value)
            if key.value in seen:
                raise ConfigError("the key is there twice", where=f"{name}:{key.start_mark.line + 1}: {below}")
            seen.add(key.value)
            lines[below] = f"{name}:{key.start_mark.line + 1}"
            _note_lines(value, below, name, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            below = f"{path}.{index}"
            lines[below] = f"{name}:{value.start_mark.line + 1}"
            _note_lines(value, below, name, lines)


def _override(tree: dict[str, Any], lines: dict[str, str], override: str) -> None:
    """Put ``a.b=c`` into the tree; the value is YAML."""
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"needed a.b=c, got {override!r}", where="--set")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise ConfigError(f"the value is not YAML: {fault}", where=f"--set {path}") from None
    *parents, last = path.split(".")
    node: Any = tree
    for key in parents:
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
        else:
            raise ConfigError(f"there is nothing at {key!r}", where=f"--set {path}")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"there is nothing at {last!r}", where=f"--set {path}")
    lines[path] = "--set"


def _where(name: str, lines: Mapping[str, str], path: str) -> str:
    """``file:line: path`` of the nearest enclosing key that has a line."""
    at = path
    while at and at not in lines:
        at = at.rpartition(".")[0]
    place = lines.get(at, name)
    return ": ".join(part for part in (place, path) if part)


def _explain(
    fault: ValidationError,
    model: type[BaseModel],
    tree: Any,
    name: str,
    lines: Mapping[str, str],
    prefix: str,
) -> ConfigError:
    """One error of ours from all of pydantic's: the first in full, the number of the others."""
    errors = fault.errors(include_url=False)
    first = errors[0]
    loc = _keys(first, tree)
    path = prefix + ".".join(loc)
    got = f", got {first['input']!r:.80}" if first["type"] not in ("missing", "extra_forbidden", "value_error") else ""
    message, fix = f"{first['msg'].removeprefix('Value error, ')}{got}", ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, loc[:-1])
        near = difflib.get_close_matches(loc[-1], known, 1)
        message = f"unknown key {loc[-1]!r}"
        fix = (f"did you mean {near[0]!r}? " if near else "") + f"known keys: {', '.join(known)}"
    elif first["type"] == "missing":
        message = f"the key {loc[-1]!r} is missing"
    if len(errors) > 1:
        rest = ", ".join(dict.fromkeys(prefix + ".".join(_keys(e, tree)) for e in errors[1:6]))
        message += f" (and {len(errors) - 1} more: {rest})"
    return ConfigError(message, where=_where(name, lines, path.rstrip(".")), fix=fix)


def _keys(error: Any, tree: Any) -> list[str]:
    """The error's place as keys of the tree: pydantic's own words for branches of a type are left out."""
    keys: list[str] = []
    for depth, part in enumerate(error["loc"], 1):
        missing = error["type"] == "missing" and depth == len(error["loc"])
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, Sequence) and isinstance(part, int):
            tree = tree[part] if part < len(tree) else None
        elif not missing:
            continue
        keys.append(str(part))
    return keys


def _refuse_switches(said: Any, taken: Any, name: str, lines: Mapping[str, str], path: str) -> None:
    """Yes or no where a number was needed: pydantic takes it for 1 or 0."""
    if isinstance(said, bool) and not isinstance(taken, bool):
        raise ConfigError(f"needed a number, got {'yes' if said else 'no'}", where=_where(name, lines, path))
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(said, Mapping):
        values = taken if isinstance(taken, Mapping) else dict(taken) if isinstance(taken, BaseModel) else {}
        pairs = [(key, value, values.get(key, value)) for key, value in said.items()]
    elif isinstance(said, list) and isinstance(taken, Sequence):
        pairs = [(index, *both) for index, both in enumerate(zip(said, taken, strict=False))]
    for key, value, other in pairs:
        _refuse_switches(value, other, name, lines, f"{path}.{key}" if path else str(key))


def _keys_at(model: type[BaseModel], loc: Sequence[str]) -> list[str]:
    """The known keys of the node at a path of the tree."""
    for part in loc:
        if part.isdigit():
            continue
        found = model.model_fields.get(part)
        nested = list(_models(found.annotation)) if found else []
        if not nested:
            return sorted(model.model_fields)
        model = nested[0]
    return sorted(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
