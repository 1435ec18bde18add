"""Phase 1: teachers from recorded data, each a model's directory that the teacher ``checkpoint`` takes.

    the source's training records ─► per label a validation part ─► i.i.d. epochs ─► the best epoch ─► OUT/NAME/

All records are there at once, so they are shuffled and seen many times, which a stream never allows. The epoch is
chosen by the loss on the validation part; test records are never looked at. Called by `streamkd teachers train`.
"""

import copy
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamkd import config as configuration
from streamkd.choices import Choice
from streamkd.config import Config
from streamkd.cores import compute_on
from streamkd.errors import ConfigError, SourceError, StateError
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.streams.encoding import codec
from streamkd.students import networks, optimizers
from streamkd.students.networks import Student
from streamkd.wiring import device_of, open_source, schema_of, source_kind

BLOCK = 4096  # records read at once
PATIENCE = 5  # epochs without a better validation loss
VALIDATION = 0.1  # part of the records
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Recorded:
    """Labelled records: x [n, *shape] as encoded, their labels, their tasks where the stream says them.

    ``left_out``: how many others there were, which are damaged or have no label.
    """

    x: np.ndarray
    labels: Sequence[Label]
    tasks: Sequence[str] | None
    left_out: int = 0

    @property
    def classes(self) -> list[Label]:
        """The labels, in the order of their first records."""
        return list(dict.fromkeys(self.labels))

    def of(self, task: str) -> "Recorded":
        """The records of one task."""
        assert self.tasks is not None
        rows = [row for row, own in enumerate(self.tasks) if own == task]
        return Recorded(self.x[rows], [self.labels[row] for row in rows], [task] * len(rows))


@dataclass(frozen=True)
class Baseline:
    """A teacher that was trained: where it lies, and how it did on the records that chose its epoch.

    ``accuracy`` is ``None`` where there were none. ``left_out``: records of the stream that could teach nobody.
    """

    name: str
    path: Path
    records: int
    classes: int
    epochs: int
    accuracy: float | None
    left_out: int = 0


def train(
    config: Config,
    registry: Registry,
    out: Path,
    *,
    kinds: Sequence[str] = (),
    tasks: Literal["all", "each"] = "all",
    columns: Sequence[str] = (),
    epochs: int = 100,
    batch: int = 32,
    progress: Progress = lambda done, total: None,
) -> list[Baseline]:
    """Train a teacher of each kind of student (empty: the configuration's), on all records or one for each task.

    ``columns`` are the input columns that they read; empty: those of the stream's student.

    Raises:
        ConfigError: the stream is pushed, never ends, or has no tasks. StateError: a teacher lies there already.
    """
    compute_on(config.threads)
    schema = schema_of(config, registry)
    schema = _read_by(schema, columns or schema.student)
    records = recorded(config, registry, schema)
    jobs = list(_jobs(records, kinds or [config.student.name], tasks))
    for name, _, _ in jobs:
        if (out / name).exists():
            raise StateError("is there already", where=str(out / name), fix="name another --out, or remove it")
    done: list[Baseline] = []
    for number, (name, kind, part) in enumerate(jobs):

        def epoch_ended(epoch: int, before: int = number * epochs) -> None:
            progress(before + epoch, len(jobs) * epochs)

        student, meta = _teacher(config, registry, schema, kind, part, epochs, batch, epoch_ended)
        networks.put_published(out / name, student, meta)
        trained = meta["training"]
        classes = len(meta["classes"])
        accuracy = trained["validation_accuracy"]
        done.append(Baseline(name, out / name, meta["records"], classes, trained["epochs"], accuracy, records.left_out))
    progress(len(jobs) * epochs, len(jobs) * epochs)
    return done


def _read_by(schema: RecordSchema, columns: Sequence[str]) -> RecordSchema:
    try:
        schema.only(columns)
    except ValueError as fault:
        raise ConfigError(str(fault), where="columns") from None
    return schema.model_copy(update={"student": tuple(columns)})


def recorded(config: Config, registry: Registry, schema: RecordSchema) -> Recorded:
    """Every labelled record that the source gives.

    Raises:
        ConfigError: there is no end to them. SourceError: there is none.
    """
    name = config.stream.source.name
    if source_kind(config, registry).push:
        raise ConfigError(f"the source {name} is pushed: nothing is recorded", where="stream.source", fix=_REPLAY)
    source, _ = open_source(config, registry, schema)
    if not source.finite:
        raise ConfigError("the stream never ends", where="stream.source", fix="--set stream.source.repeat=false")
    inputs: list[np.ndarray] = []
    labels: list[Label] = []
    tasks: list[str] = []
    given = 0
    for partition in source.partitions:
        end, offset = source.end(partition) or 0, 0
        while offset < end:
            chunk = source.read(partition, offset, BLOCK)
            records, _ = codec.encode(chunk.rows, schema, chunk.offset)
            given += chunk.rows.num_rows
            rows = [row for row, label in enumerate(records.labels) if label is not None]
            inputs.append(records.inputs[rows])
            labels.extend(label for label in records.labels if label is not None)
            tasks.extend(str(records.tasks[row]) for row in rows if records.tasks is not None)
            offset = chunk.next_offset
    source.close()
    if not labels:
        raise SourceError("the stream gave no record that could be learned", where=config.name)
    return Recorded(np.concatenate(inputs), labels, tasks or None, given - len(labels))


_REPLAY = "name a configuration with a replay source of the same records"


def _jobs(
    recorded: Recorded, kinds: Sequence[str], tasks: Literal["all", "each"]
) -> Iterator[tuple[str, str, Recorded]]:
    """Name, kind of student and records of each teacher.

    Raises:
        ConfigError: one for each task is wanted, and the records name none.
    """
    if tasks == "each" and recorded.tasks is None:
        raise ConfigError("the records have no task", where="stream.records.task", fix="train one of all: --tasks all")
    for kind in kinds:
        if tasks == "all" or recorded.tasks is None:
            yield kind, kind, recorded
            continue
        for number, task in enumerate(dict.fromkeys(recorded.tasks)):
            yield f"{kind}-{number}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', task)[:40]}", kind, recorded.of(task)


def _teacher(
    config: Config,
    registry: Registry,
    schema: RecordSchema,
    kind: str,
    recorded: Recorded,
    epochs: int,
    batch: int,
    epoch_ended: Callable[[int], None],
) -> tuple[Student, dict[str, Any]]:
    """A trained student, and what ``model.json`` says of it."""
    choice = config.student if kind == config.student.name else Choice(name=kind)
    options = configuration.options(registry, "student", "students", choice)
    classes = list(dict.fromkeys(recorded.labels))
    student = networks.build(registry.kind("students", kind), options, schema, len(classes), config.seed)
    device = device_of(config.device)
    index = {label: column for column, label in enumerate(classes)}
    x = torch.tensor(recorded.x).to(device)
    y = torch.tensor([index[label] for label in recorded.labels], device=device)
    rates = config.optimizer.rates
    optimizer = optimizers.build(config.optimizer.name, student.to(device).parameters(), **rates)
    fitted = fit(student, optimizer, x, y, epochs, batch, config.seed, config.optimizer.clip_norm, epoch_ended)
    meta = {
        "student": {"name": kind, "options": options.model_dump(mode="json")},
        "schema": schema.only(schema.student).model_dump(mode="json"),
        "classes": classes,
        "seed": config.seed,
        "records": len(y),
        "published_at": time.time(),
        "training": {"stream": config.name, **fitted},
    }
    return student, meta


def fit(
    student: Student,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    epochs: int,
    batch: int,
    seed: int,
    clip_norm: float | None = None,
    epoch_ended: Callable[[int], None] = lambda epoch: None,
) -> dict[str, Any]:
    """Train on i.i.d. epochs of x [n, *shape] and columns y [n]; the student ends as it was after its best epoch.

    A tenth of each label's records is the validation part, never trained on; ``PATIENCE`` epochs in which its
    cross entropy has not fallen end the training. Without it (a record for each label) the last epoch stays, and
    how good it is nobody knows.
    """
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = _halves(y.cpu(), generator)
    if student.normalise.fit:
        student.normalise.observe(x[ours])
    best, best_loss, at, epoch = copy.deepcopy(student.state_dict()), float("inf"), 0, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(1, epochs + 1):
            _epoch(student, optimizer, x, y, ours[torch.randperm(len(ours), generator=generator)], batch, clip_norm)
            epoch_ended(epoch)
            loss = _validation(student, x[theirs], y[theirs])[0] if len(theirs) else -float(epoch)
            if loss < best_loss:
                best, best_loss, at = copy.deepcopy(student.state_dict()), loss, epoch
            elif epoch - at >= PATIENCE:
                break
    student.load_state_dict(best)
    student.eval().requires_grad_(False)
    found = _validation(student, x[theirs], y[theirs]) if len(theirs) else (None, None)
    return {
        "epochs": at,
        "validation_records": len(theirs),
        "validation_accuracy": found[1],
        "validation_nll": found[0],
    }


def _halves(y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to validate on, a tenth of each label where it has two records or more."""
    order = torch.randperm(len(y), generator=generator)
    held = []
    for label in y.unique().tolist():
        mine = order[y[order] == label]
        held.append(mine[: max(1, round(VALIDATION * len(mine))) if len(mine) > 1 else 0])
    theirs = torch.cat(held)
    mask = torch.ones(len(y), dtype=torch.bool)
    mask[theirs] = False
    return order[mask[order]], theirs


def _epoch(
    student: Student,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    batch: int,
    clip_norm: float | None,
) -> None:
    student.train()
    for part in rows.to(y.device).split(batch):
        optimizer.zero_grad()
        F.cross_entropy(student(x[part]), y[part]).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(student.parameters(), clip_norm)
        optimizer.step()


@torch.no_grad()
def _validation(student: Student, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross entropy and accuracy."""
    student.eval()
    logits = torch.cat([student(part) for part in x.split(512)])
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())
