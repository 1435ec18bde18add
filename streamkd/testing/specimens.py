"""What the checks look at: small random data from fixed seeds, and how to take it apart and put it together."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd.gates.gate import GateInputs, Measured
from streamkd.hookspecs import Kind
from streamkd.losses.match_gate import LossInputs
from streamkd.records import InputColumn, Label, Records, RecordSchema
from streamkd.students import networks

IMAGES = RecordSchema(inputs=(InputColumn(name="image", shape=(8, 8), dtype="float32"),))


def rows_of(schema: RecordSchema, count: int, seed: int = 0) -> Tensor:
    """Random raw inputs [count, *shape] of the type that the schema has."""
    generator = torch.Generator().manual_seed(seed)
    shape, whole = (count, *schema.shape), np.issubdtype(schema.dtype, np.integer)
    rows = torch.randint(0, 100, shape, generator=generator) if whole else torch.randn(*shape, generator=generator)
    return rows.to(networks.torch_dtype[schema.dtype.name])


def lessons_of(schema: RecordSchema, classes: int, steps: int) -> list[tuple[Tensor, Tensor]]:
    """What a teacher learns from, inputs and columns of labels: a step of a single row, the others of 64."""
    lessons = []
    for number in range(steps):
        count, generator = (64 if number else 1), torch.Generator().manual_seed(100 + number)
        y = torch.randint(0, classes, (count,), generator=generator)
        lessons.append((rows_of(schema, count, seed=200 + number), y))
    return lessons


def plain_student(schema: RecordSchema, classes: int, seed: int) -> networks.Student:
    """A small network over the schema."""
    kind = Kind("mlp", networks.Mlp, networks.MlpOptions)
    return networks.build(kind, networks.MlpOptions(hidden=(8,)), schema, classes, seed)


def evidence_of(teachers: int) -> GateInputs:
    """Random gate inputs: some teachers unheard, one row that nobody knows."""
    generator = torch.Generator().manual_seed(7)
    known = torch.rand(6, teachers, 4, generator=generator) > 0.3
    labels = torch.randint(0, 4, (6,), generator=generator)
    known[0] = False
    measured = Measured(-2 * torch.rand(teachers, 4, generator=generator))
    return GateInputs(
        logits=torch.randn(6, 4, generator=generator),
        labels=labels,
        answers=torch.randn(6, teachers, 4, generator=generator),
        known=known,
        heard=known.gather(2, labels.view(-1, 1, 1).expand(-1, teachers, 1)).squeeze(2),
        facts=torch.rand(teachers, 2, generator=generator),
        teachers=tuple(f"teacher-{number}" for number in range(teachers)),
        measure=lambda: measured,
        met=10 * torch.arange(6),
        stale=torch.arange(teachers) % 2 == 1,
        present=0.1 + torch.rand(teachers, generator=generator),
    )


def part_of(evidence: GateInputs, rows: slice) -> GateInputs:
    """Some of the rows."""
    per_sample = ("logits", "labels", "answers", "known", "heard", "met")
    return dataclasses.replace(evidence, **{name: getattr(evidence, name)[rows] for name in per_sample})


def of_teachers(evidence: GateInputs, order: list[int]) -> GateInputs:
    """The evidence of those teachers, in that order."""
    return dataclasses.replace(
        evidence,
        answers=evidence.answers[:, order],
        known=evidence.known[:, order],
        heard=evidence.heard[:, order],
        facts=evidence.facts[order],
        teachers=tuple(evidence.teachers[index] for index in order),
        measure=lambda: Measured(evidence.credit[order], evidence.noise),
        stale=None if evidence.stale is None else evidence.stale[order],
        present=None if evidence.present is None else evidence.present[order],
    )


def lesson_for(loss: Any, feature_shape: tuple[int, ...], teachers: int) -> LossInputs:
    """Three fresh and two remembered rows in float64; the teachers that the loss names come first."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    weights = torch.softmax(normal(5, 1 + teachers), 1)
    known = torch.rand(5, teachers, 4, generator=generator) > 0.2
    known[:, :, 0] = True
    named = {key: {layer: normal(3, *feature_shape) for layer in layers} for key, layers in loss.teacher_layers.items()}
    return LossInputs(
        logits=normal(5, 4),
        labels=torch.randint(0, 4, (5,), generator=generator),
        answers=normal(5, teachers, 4),
        known=known,
        weights=weights,
        fresh=3,
        teachers=tuple([*named, "another", "a-third", "a-fourth"][:teachers]),
        features={layer: normal(5, *feature_shape) for layer in loss.layers},
        teacher_features=named,
    )


def picked(lesson: LossInputs, rows: Tensor) -> LossInputs:
    """The lesson of those rows, in that order, the fresh ones first."""
    fresh = rows[rows < lesson.fresh]
    per_sample = ("logits", "labels", "answers", "known", "weights", "own_logits")
    return dataclasses.replace(
        lesson,
        **{name: getattr(lesson, name)[rows] for name in per_sample},
        fresh=len(fresh),
        features={name: value[rows] for name, value in lesson.features.items()},
        teacher_features={
            key: {name: value[fresh] for name, value in layers.items()}
            for key, layers in lesson.teacher_features.items()
        },
    )


def shapes_of(outputs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of one sample's output, by layer."""
    return {name: tuple(value.shape[1:]) for name, value in outputs.items()}


def turn(lesson: LossInputs) -> Tensor:
    """Fresh rows in another order, remembered ones in another."""
    fresh = torch.arange(lesson.fresh).roll(1)
    return torch.cat([fresh, torch.arange(lesson.fresh, len(lesson.labels)).roll(1)])


def unlabelled(lesson: LossInputs) -> LossInputs:
    """The first three rows have no label; the first has no teacher either."""
    labels, weights, known = lesson.labels.clone(), lesson.weights.clone(), lesson.known.clone()
    labels[:3], weights[:3, 0] = -1, 0.0
    weights[0], known[0] = 0.0, False
    weights[1:3] /= weights[1:3].sum(1, keepdim=True)
    return dataclasses.replace(lesson, labels=labels, weights=weights, known=known)


def reclassed(lesson: LossInputs) -> LossInputs:
    """The classes in another order, in logits and answers; labels are columns still, -1 where there is none."""
    order = torch.arange(lesson.logits.shape[1]).roll(1)
    labels = torch.where(lesson.labels < 0, -1, order.argsort()[lesson.labels.clamp_min(0)])
    return dataclasses.replace(
        lesson,
        logits=lesson.logits[:, order],
        own_logits=None,
        labels=labels,
        answers=lesson.answers[:, :, order],
        known=lesson.known[:, :, order],
    )


def silenced(lesson: LossInputs) -> LossInputs:
    """The first row, which is fresh and has a label, counts nothing: it is held out."""
    weights = lesson.weights.clone()
    weights[0] = 0.0
    return dataclasses.replace(lesson, weights=weights)


def taught_by(lesson: LossInputs, order: list[int]) -> LossInputs:
    """The lesson of those teachers, in that order; the hard label takes what the others leave."""
    kept = lesson.weights[:, [1 + index for index in order]]
    hard = 1 - kept.sum(1, keepdim=True)
    return dataclasses.replace(
        lesson,
        answers=lesson.answers[:, order],
        known=lesson.known[:, order],
        weights=torch.cat([hard, kept], 1),
        teachers=tuple(lesson.teachers[index] for index in order),
    )


Batch = tuple[Records, list[Label], int]
"""Records, the labels that are new in them, and how far their task has come."""


def batches_of(tasks: bool) -> list[Batch]:
    """Batches of a stream of three tasks of two labels; a fifth of the records has no label, one batch none at all."""
    generator, seen, batches = np.random.default_rng(3), set[Label](), list[Batch]()
    for number in range(12):
        task = number // 4
        labels: list[Label | None] = [int(label) for label in generator.integers(2 * task, 2 * task + 2, 100)]
        labels[:: 1 if number == 6 else 5] = [None] * len(labels[:: 1 if number == 6 else 5])
        told = {label for label in labels if label is not None}
        new = sorted(told - seen, key=str)
        seen |= told
        inputs = generator.normal(size=(100, 8)).astype(np.float32) + task
        offsets = np.arange(100 * number, 100 * number + 100)
        records = Records(inputs, labels, [str(task)] * 100 if tasks else None, offsets)
        batches.append((records, list(new), 100 * (number % 4)))
    return batches
