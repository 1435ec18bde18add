"""Small parts to test with: random lessons, tiny students, steps wired from them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from streamkd.config import Config
from streamkd.gates.gate import FixedGate, FixedOptions, Gate, GateInputs, Measured
from streamkd.gates.per_sample import PerSampleGate, PerSampleOptions
from streamkd.hookspecs import Kind, Options
from streamkd.learning.held_out import Look
from streamkd.learning.step import Step, Term
from streamkd.losses.match_gate import Gated, LossInputs, MatchGate, MatchGateOptions
from streamkd.meta.adaptation import GateAdapter
from streamkd.records import InputColumn, RecordSchema
from streamkd.replay.memory import Memory
from streamkd.replay.rows import HeldOutFigures, RowsContext
from streamkd.replay.sources import RowSources
from streamkd.replay.vicinal import VicinalOptions, VicinalRows
from streamkd.students.networks import Mlp, MlpOptions, Student, build
from streamkd.teachers.pool import Pool
from streamkd.teachers.recall import RecallTeacher
from streamkd.teachers.snapshot import SnapshotMaker
from streamkd.teachers.teacher import EmaOptions, EmaTeacher, TeacherContext

FEATURES = 6
TEACHERS: list[dict[str, Any]] = [  # as by default, but with few random features: they take a third of a step else
    {"name": choice.name, **({"channels": 4, "dense": 32} if choice.name == "analytic" else {})}
    for choice in Config.model_fields["teachers"].default
]


def schema_of(*shape: int, **column: Any) -> RecordSchema:
    """One input column ``x`` of that shape."""
    return RecordSchema(inputs=(InputColumn(name="x", shape=shape, **column),))


def mlp(classes: int = 3, hidden: tuple[int, ...] = (8,), seed: int = 0, schema: RecordSchema | None = None) -> Student:
    """A tiny student over ``FEATURES`` numbers."""
    kind = Kind("mlp", Mlp, MlpOptions)
    return build(kind, MlpOptions(hidden=hidden), schema or schema_of(FEATURES), classes, seed)


def wrapped(body: nn.Module, schema: RecordSchema | None = None) -> Student:
    """Any body as a student."""
    return Student(body, schema or schema_of(FEATURES), 0)


def lesson(seed: int, batch: int = 5, teachers: int = 3, classes: int = 4, dtype: torch.dtype = torch.float64) -> dict:
    """Random logits, labels and answers; some classes unknown, some rows unheard; weights that fit them."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=g, dtype=dtype)
    labels = torch.randint(classes, (batch,), generator=g)
    answers = 3 * torch.randn(batch, teachers, classes, generator=g, dtype=dtype)
    known = torch.rand(batch, teachers, classes, generator=g) < 0.8
    known &= torch.rand(batch, teachers, 1, generator=g) < 0.8
    heard = known.gather(2, labels.view(-1, 1, 1).expand(-1, teachers, 1)).squeeze(2)
    raw = torch.rand(batch, 1 + teachers, generator=g, dtype=dtype) + 0.01
    raw[:, 1:] *= heard
    weights = raw / raw.sum(1, keepdim=True)
    return {"logits": logits, "labels": labels, "answers": answers, "known": known, "heard": heard, "weights": weights}


def lesson_of(parts: dict, **more: Any) -> LossInputs:
    """``lesson`` as losses see it: two fresh rows, unless told."""
    keys = ("logits", "labels", "answers", "known", "weights")
    names = tuple(f"t{k}" for k in range(parts["answers"].shape[1]))
    return LossInputs(*(parts[k] for k in keys), **{"fresh": 2, "teachers": names, **more})


def check_per_source(loss: Gated, lesson: LossInputs) -> None:
    """∂L/∂w and ``per_source`` have one derivative by whatever of the student the loss reads."""
    names = list(lesson.features)
    weights = lesson.weights.detach().clone().requires_grad_()
    inputs = [t.detach().clone().requires_grad_() for t in (lesson.logits, *(lesson.features[n] for n in names))]
    given = dict(zip(names, inputs[1:], strict=True))
    lesson = replace(lesson, logits=inputs[0], features=given, weights=weights)
    (slope,) = torch.autograd.grad(loss(lesson).sum(), weights, create_graph=True)
    probe = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0), dtype=slope.dtype)
    probe = probe * (lesson.weights > 0)  # a source that is not heard has no say
    table = loss.per_source(replace(lesson, weights=weights.detach()))
    assert table.shape == weights.shape
    kinds = {"allow_unused": True, "retain_graph": True, "materialize_grads": True}
    wanted = torch.autograd.grad((slope * probe).sum() + 0 * inputs[0].sum(), inputs, **kinds)
    for got, need in zip(torch.autograd.grad((table * probe).sum(), inputs, **kinds), wanted, strict=True):
        torch.testing.assert_close(got, need, rtol=1e-8, atol=1e-10)


def evidence(parts: dict, facts: Tensor | None = None) -> GateInputs:
    """What a gate sees of ``lesson``."""
    teachers = parts["answers"].shape[1]
    if facts is None:
        facts = torch.linspace(0.2, 1, 2 * teachers, dtype=parts["logits"].dtype).reshape(teachers, 2)
    names = tuple(f"t{k}" for k in range(teachers))
    keys = ("logits", "labels", "answers", "known", "heard")
    places = torch.arange(teachers).unsqueeze(1) * 0.7 + torch.arange(parts["logits"].shape[1]) * 0.3
    credit = -(0.1 + places % 2).to(parts["logits"].dtype)
    return GateInputs(*(parts[k] for k in keys), facts, names, measure=lambda: Measured(credit))


def optimizer_of(name: str, parameters: Sequence[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    """By its name in the configuration."""
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[name](parameters, **settings)


def batches(
    count: int, batch: int = 8, classes: int = 3, seed: int = 0, shift: float = 0.0
) -> list[tuple[Tensor, Tensor]]:
    """Separable records: class c around the c-th of a few fixed centres."""
    centres = 2 * torch.randn(classes, FEATURES, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(count):
        y = torch.randint(classes, (batch,), generator=g)
        drawn.append((centres[y] + shift + torch.randn(batch, FEATURES, generator=g), y))
    return drawn


def make_step(
    *,
    classes: int = 3,
    hidden: tuple[int, ...] = (8,),
    seed: int = 0,
    size: int = 40,
    replay: int = 6,
    holdout_ratio: float = 0.25,
    optimizer: tuple[str, dict[str, Any]] = ("sgd", {"lr": 0.05}),
    gate: Gate | None = None,
    teachers: Sequence[Any] | None = None,
    snapshots: int = 3,
    limit: int = 8,
    limit_bytes: int = 1 << 30,
    adapter: GateAdapter | None = None,
    clip_norm: float | None = None,
    student: Student | None = None,
    temperature: float = 2.0,
) -> Step:
    """A whole step of small parts: a student, EMA, memory and snapshot teachers, a gate and the match-gate loss."""
    student = student or mlp(classes, hidden, seed)
    classes = student.classes
    memory = Memory(size, holdout_ratio, limit, seed)
    if teachers is None:
        teachers = [
            EmaTeacher(EmaOptions(), context_of("ema", student)),
            RecallTeacher(Options(), context_of("memory", student)),
        ]
    maker = SnapshotMaker("snapshot", snapshots) if snapshots else None
    pool = Pool(teachers, maker, memory, limit=limit, limit_bytes=limit_bytes)
    name, settings = optimizer
    step = Step(
        student,
        optimizer_of(name, list(student.parameters()), **settings),
        memory,
        pool,
        gate or FixedGate(FixedOptions()),
        [Term(MatchGate(MatchGateOptions(temperature=temperature)), 1.0)],
        replay=replay,
        clip_norm=clip_norm,
    )
    if adapter is not None:
        adapter.attach(step)
    return step


def spare(step: Step, error_reduction: float, invariance: float = 1.0) -> None:
    """The next few steps take it that the teachers would spare the student that part of its mistakes."""
    device = next(step.student.parameters()).device
    credit = torch.full((len(step.pool.keys), step.student.classes), torch.nan, device=device)
    step.held_out.last = Look(step.pool.keys, Measured(credit), HeldOutFigures(error_reduction, invariance))
    step.held_out.age = 0


def vicinal(step: Step, rows: int, shift: int = 0, weight: float = 1.0, seed: int = 0) -> None:
    """The step's only source of further rows."""
    options = VicinalOptions(rows=rows, shift=shift, weight=weight)
    step.sources = RowSources({"vicinal": VicinalRows(options, RowsContext("vicinal", schema_of(FEATURES), seed))})


def context_of(key: str, student: Student) -> TeacherContext:
    """A teacher's context, labels numbered by their columns."""
    return TeacherContext(key, student, schema_of(FEATURES), list(range(student.classes)), torch.device("cpu"))


def scorer(**options: Any) -> PerSampleGate:
    """A per-sample gate."""
    return PerSampleGate(PerSampleOptions(**options))


def adapter_of(gate: nn.Module, **settings: Any) -> GateAdapter:
    """An adapter with short defaults."""
    defaults: dict[str, Any] = {"every": 2, "on_task_steps": 3, "engine": "auto", "learning_rate": 0.05, "query": 16}
    return GateAdapter(gate, **{**defaults, **settings})


def train(step: Step, x: Tensor, y: Tensor, task: int = 0) -> Tensor:
    """One whole step without Avalanche; the loss."""
    *_, (_, taken) = step.take(x, y, task)
    return taken.loss
