"""``streamkd distil``: what is served, as students of a size that is given.

    version ─► answers ─┬ remembered records, with their labels ─┐
                        └ rows between two of them, without ─────┴► match-gate loss ─► a student of each size
    a tenth of the remembered records: which of its states it ends as      held-out records: what it is worth

The version answers any row, so there is no end of rows to learn by, and none of them waits for a stream. Held-out
records measure alone: neither the version nor the student has learned them.
"""

import copy
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd import config as configuration
from streamkd.choices import Choice
from streamkd.errors import ConfigError, StateError
from streamkd.export.evidence import memory_of
from streamkd.export.published import Published, load
from streamkd.hookspecs import Options
from streamkd.losses.match_gate import LossInputs, MatchGate, MatchGateOptions
from streamkd.plugins import Registry
from streamkd.replay.rows import HeldOutFigures, RowsContext, StepRows
from streamkd.replay.vicinal import VicinalOptions, VicinalRows
from streamkd.students import networks, optimizers
from streamkd.students.networks import Student
from streamkd.teachers.teacher import module_bytes

BATCH = 64  # remembered rows a step, and as many between them
HARD = 0.3  # what a label counts beside the version's answer
RATE = 2e-3  # of Adam, along half a cosine to 0
LOOKS = 20  # at the validation part
VALIDATION = 0.1  # part of the remembered records
ALL = HeldOutFigures(1.0, 1.0)
"""The version is the one to be imitated, wherever it is right."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Smaller:
    """A student that was distilled: where it lies, its size, and what it is worth on the held-out records.

    ``agreement`` is the part of them that it answers as the version does; ``accuracy`` is the student's.
    """

    name: str
    path: Path
    bytes: int
    accuracy: float
    agreement: float


@dataclass(frozen=True)
class Distilled:
    """All of them, by size, beside the version: its accuracy and its bytes."""

    version: int
    accuracy: float
    bytes: int
    held_out: int
    students: Sequence[Smaller]


def distil(
    state: Path,
    out: Path,
    *,
    students: Sequence[Choice | Mapping[str, Any]] = (),
    sizes: Sequence[int] = (),
    steps: int = 3_000,
    seed: int = 0,
    registry: Registry | None = None,
    progress: Progress = lambda done, total: None,
) -> Distilled:
    """Distil what a state directory serves into ``students``, and into the stream's own kind at ``sizes`` in bytes.

    Without either: into the stream's own.

    Each gets a folder in ``out``, which ``streamkd.load``, ``streamkd export`` and the teacher ``checkpoint`` take.

    Raises:
        StateError: there is no version or no memory yet, or a folder is there already.
        ConfigError: there is no such student, or a size is too small for any of the kind.
    """
    registry = registry or Registry.load()
    version = load(state, registry)
    memory = memory_of(state, version)
    if memory is None or len(memory.replayed) < 2:
        raise StateError("remembers no records to distil by", where=str(state), fix="let `streamkd serve` run longer")
    config = memory.config
    wanted = [Choice.model_validate(dict(choice)) for choice in students]
    wanted += [fitting(config.student, size, version, registry) for size in sizes]
    wanted = wanted or [config.student]
    for choice in wanted:
        if (out / name_of(choice)).exists():
            raise StateError("is there already", where=str(out / name_of(choice)), fix="name another --out")
    taught, held = _records(memory.replayed, memory.replayed_y, version), _records(memory.held, memory.held_y, version)
    answered, done = _answers(version, held.x), []
    for number, choice in enumerate(wanted):
        student = fresh(choice, config.seed, version, registry)
        for step in teach(student, version, taught, steps, seed):
            progress(number * steps + step, len(wanted) * steps)
        done.append(
            _kept(out / name_of(choice), student, choice, version, registry, _measured(student, held, answered))
        )
    right = float((answered.argmax(1) == held.y).float().mean())
    size = module_bytes(version)
    return Distilled(version.version, right, size, len(held), sorted(done, key=lambda one: one.bytes))


def fitting(choice: Choice, limit_bytes: int, version: Published, registry: Registry) -> Choice:
    """A student of the kind whose widths are all cut alike, the widest that takes so many bytes.

    Raises:
        ConfigError: its options have no widths, or one of each takes more.
    """
    options = _options(choice, registry)
    widths = {name: value for name, value in options.model_dump().items() if _is_width(value)}
    if not widths:
        fix = "say the student yourself: --to '{name: ..., ...}'"
        raise ConfigError(f"the student {choice.name} has no widths that could be cut", where="--bytes", fix=fix)
    most = max(width for value in widths.values() for width in _flat(value))

    def cut(to: int) -> Choice:
        """Every width as much smaller as the widest is at ``to``."""
        smaller = {name: _scaled(value, to / most) for name, value in widths.items()}
        return Choice.model_validate({"name": choice.name, **choice.values, **smaller})

    low, high = 0, 4 * most  # the first is small enough, as far as anybody knows
    while high - low > 1:
        middle = (low + high) // 2
        fits = size_of(cut(middle), version, registry) <= limit_bytes
        low, high = (middle, high) if fits else (low, middle)
    if low == 0:
        least = size_of(cut(1), version, registry)
        raise ConfigError(
            f"needed {least} bytes at least for a student {choice.name}, got {limit_bytes}", where="--bytes"
        )
    return cut(low)


def name_of(choice: Choice) -> str:
    """A folder's name: the kind, and its options' values."""
    values = "-".join(str(value) for value in choice.values.values())
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{choice.name}-{values}").strip("-")[:80]


def _is_width(value: Any) -> bool:
    flat = _flat(value)
    return bool(flat) and all(isinstance(width, int) and not isinstance(width, bool) and width > 0 for width in flat)


def _flat(value: Any) -> list[Any]:
    return [*value] if isinstance(value, tuple | list) else [value]


def _scaled(value: Any, factor: float) -> Any:
    widths = [max(1, math.floor(width * factor)) for width in _flat(value)]
    return widths if isinstance(value, tuple | list) else widths[0]


def size_of(choice: Choice, version: Published, registry: Registry) -> int:
    """Bytes of a student for the version's records and labels, the normalisation that it takes over among them."""
    kind = registry.kind("students", choice.name)
    with torch.device("meta"):
        body = kind.make(_options(choice, registry), version.schema.shape, len(version.labels))
    return module_bytes(body) + module_bytes(_student_of(version).normalise)


def fresh(choice: Choice, seed: int, version: Published, registry: Registry) -> Student:
    """A student with the normalisation that the version has.

    Raises:
        ConfigError: there is no such student.
    """
    kind = registry.kind("students", choice.name, "--to")
    student = networks.build(kind, _options(choice, registry), version.schema, len(version.labels), seed)
    student.normalise.load_state_dict(_student_of(version).normalise.state_dict())
    return student


def _records(x: np.ndarray, y: np.ndarray, version: Published) -> StepRows:
    """Remembered records; a label that the version does not know teaches nothing."""
    columns = torch.from_numpy(y)
    return StepRows.of(torch.from_numpy(x), torch.where(columns < len(version.labels), columns, -1))


def _options(choice: Choice, registry: Registry) -> Options:
    return configuration.options(registry, "--to", "students", choice)


def _student_of(version: Published) -> Student:
    return version.model if isinstance(version.model, Student) else version.model.student


def teach(student: Student, version: Published, records: StepRows, steps: int, seed: int) -> Iterator[int]:
    """Teach it by remembered records, so many steps, of which some are told.

    It ends as it was when nearest to the version on the validation part. A label of -1 teaches nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(records), generator=generator)
    apart = max(1, round(VALIDATION * len(order)))
    judged, ours = records.x[order[:apart]], order[apart:]
    wanted = _answers(version, judged)
    between = VicinalRows(VicinalOptions(rows=BATCH), RowsContext("vicinal", version.schema, seed))
    answers = _answers(version, records.x)
    optimizer = optimizers.build("adam", student.parameters(), learning_rate=RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, least = copy.deepcopy(student.state_dict()), math.inf
    for step in range(1, steps + 1):
        rows = ours[torch.randint(len(ours), (min(BATCH, len(ours)),), generator=generator)]
        batch = records[rows]
        drawn = between.draw(batch, lambda: ALL)
        said = answers[rows] if drawn is None else torch.cat([answers[rows], _answers(version, drawn.x)])
        _step(student, optimizer, batch if drawn is None else batch.and_(drawn), said)
        decay.step()
        if step % max(1, steps // LOOKS) == 0 or step == steps:
            student.eval()
            if (apart_by := _divergence(_answers(student, judged), wanted)) < least:
                best, least = copy.deepcopy(student.state_dict()), apart_by
            yield step
    student.load_state_dict(best)
    student.eval().requires_grad_(False)


def _step(student: Student, optimizer: torch.optim.Optimizer, batch: StepRows, said: Tensor) -> None:
    """By the match-gate loss; ``said`` [batch, classes] are the version's logits."""
    hard, answers = HARD * (batch.y >= 0).float(), said.unsqueeze(1)
    student.train()
    inputs = LossInputs(
        logits=student(batch.x),
        labels=batch.y,
        answers=answers,
        known=torch.ones_like(answers, dtype=torch.bool),
        weights=torch.stack([hard, 1 - hard], 1),
        fresh=len(batch),
        complete=True,
    )
    optimizer.zero_grad()
    MatchGate(MatchGateOptions())(inputs).mean().backward()
    optimizer.step()


@torch.no_grad()
def _answers(model: torch.nn.Module, x: Tensor) -> Tensor:
    return torch.cat([torch.log_softmax(model(part), 1) for part in x.split(512)])


def _divergence(student: Tensor, wanted: Tensor) -> float:
    """Mean KL from the version's answers, both in logarithms."""
    return float((wanted.exp() * (wanted - student)).sum(1).mean())


def _measured(student: Student, held: StepRows, answered: Tensor) -> dict[str, float]:
    found = _answers(student, held.x).argmax(1)
    return {
        "accuracy": float((found == held.y).float().mean()),
        "agreement": float((found == answered.argmax(1)).float().mean()),
    }


def _kept(
    folder: Path, student: Student, choice: Choice, version: Published, registry: Registry, worth: Mapping[str, float]
) -> Smaller:
    """The student as a version of its own, whole or not at all."""
    meta = {
        "student": {"name": choice.name, "options": _options(choice, registry).model_dump(mode="json")},
        "schema": version.schema.model_dump(mode="json"),
        "classes": version.labels,
        "seed": student.seed,
        "records": version.records,
        "published_at": time.time(),
        "distilled": {"version": version.version, **worth},
    }
    networks.put_published(folder, student, meta)
    return Smaller(folder.name, folder, module_bytes(student), worth["accuracy"], worth["agreement"])
