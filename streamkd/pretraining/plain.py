"""``streamkd.meta_train``: a gate over your own teachers, learned while your own model is trained. Only PyTorch.

    for x, y in dataloader:   teachers answer ─► gate ─► match-gate loss ─► your optimiser's step
                              every few steps: the gate moves along d CE(query) / dφ, in closed form

No configuration, no stream, no Avalanche: any module, any callables as teachers, SGD, Adam or AdamW.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from streamkd.errors import ConfigError
from streamkd.gates.gate import Gate
from streamkd.gates.per_sample import PerSampleGate, PerSampleOptions
from streamkd.learning.step import Step
from streamkd.learning.terms import Term
from streamkd.losses.match_gate import MatchGate, MatchGateOptions
from streamkd.meta.adaptation import Engine, GateAdapter
from streamkd.pretraining.fields import Fields, Rowwise
from streamkd.pretraining.initialization import Batch
from streamkd.pretraining.outer_loop import hold_out
from streamkd.pretraining.synthetic import SyntheticTeacher
from streamkd.replay.memory import Memory
from streamkd.students.foreign import Foreign
from streamkd.students.networks import at_rest
from streamkd.teachers.pool import Pool

QUERY = 128  # held-out records for each move of the gate
Teacher = Callable[[Tensor], Tensor]
Batches = Iterable[Sequence[Tensor] | Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class MetaTrained:
    """The gate as it was learned; the loss of each step; the mean weight of each source over the last epoch."""

    gate: nn.Module
    losses: list[float]
    weights: dict[str, float]
    adaptations: int


def meta_train(
    model: nn.Module,
    teachers: Sequence[Teacher] | Mapping[str, Teacher] | nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    dataloader: Batches,
    *,
    query: Batches | None = None,
    epochs: int = 1,
    gate: nn.Module | None = None,
    temperature: float = 2.0,
    every: int = 5,
    gate_learning_rate: float = 0.01,
    clip_norm: float | None = None,
) -> MetaTrained:
    """Train ``model`` on ``dataloader`` under its teachers, and the gate that says whom each sample listens to.

    Args:
        model: maps x [batch, ...] to logits [batch, classes], or to an object that has ``logits``; it is trained in
            place.
        teachers: callables from x to logits [batch, classes] over the same classes; by name (a mapping or a
            ``ModuleDict``), or numbered. They are asked without gradient, in the mode that they are in.
        optimizer: over the model's parameters: SGD (momentum, Nesterov), Adam or AdamW.
        dataloader: batches (x, y), y [batch] int64, or -1 for a record without label, which the teachers alone teach;
            or mappings of tensors with ``labels`` among them, of which model and teachers get the others by name.
        query: batches that the model is not trained on, best with clean labels; all of them are kept in memory.
            Without it, each batch is the query for the step before it, which is sound for one epoch only: a record
            that the model has learned makes the gate greedy for hard labels.
        gate: a ``streamkd.gates.gate.Gate``; by default the shared scorer, hard-label floor 0.3.
        every: steps from one move of the gate to the next.
        clip_norm: global norm to which the gradients are clipped.

    Raises:
        ConfigError: an optimiser that has no closed form or lacks a parameter of the model; no teacher, or one that
            is no callable, fails, or answers with other columns than the model; labels that are no class; batches
            that are none; epochs above 1 without ``query``.
    """
    if epochs > 1 and query is None:
        raise ConfigError("several epochs need records that are not trained on", where="query", fix="give `query`")
    named = _named(teachers)
    _covers(optimizer, model)
    if gate is not None and not isinstance(gate, nn.Module):
        fix = "make one: PerSampleGate(PerSampleOptions()) of streamkd.gates.per_sample"
        raise ConfigError(f"needed a gate of streamkd.gates, got {gate!r}", where="gate", fix=fix)
    gate = gate or PerSampleGate(PerSampleOptions())
    engine: Engine = "auto" if query is not None else "prequential"
    device = next(model.parameters()).device
    adapter = GateAdapter(
        gate.to(device), every=every, on_task_steps=0, engine=engine, learning_rate=gate_learning_rate, query=QUERY
    )
    step: Step | None = None
    fields: Fields | None = None
    losses: list[float] = []
    weights: list[Tensor] = []
    model.train()
    for _ in range(epochs):
        weights.clear()
        for batch in dataloader:
            if step is None and isinstance(batch, Mapping):
                fields = Fields(batch, "dataloader")
            x, y = (part.to(device) for part in _pair(batch, "dataloader", fields))
            if step is None:
                body, asked = Rowwise(model, fields), {key: Rowwise(each, fields) for key, each in named.items()}
                student = Foreign(body, torch.ones(_agree(body, asked, x), dtype=torch.bool))
                held = [_pair(batch, "query", fields) for batch in query or ()]
                step = _wire(student, asked, optimizer, gate, adapter, held, temperature, clip_norm)
            taken = step.learn(x, _classes(y, step.student.classes, "dataloader"))
            losses.append(float(taken.loss))
            weights.append(taken.weights)
    mean = torch.cat(weights).mean(0).tolist() if weights else []
    return MetaTrained(gate, losses, dict(zip(("hard", *named), mean, strict=False)), adapter.adaptations)


def _named(teachers: Sequence[Teacher] | Mapping[str, Teacher] | nn.ModuleDict) -> dict[str, Teacher]:
    if isinstance(teachers, Mapping | nn.ModuleDict):
        named = {name: cast(Teacher, teacher) for name, teacher in teachers.items()}
    else:
        named = {f"teacher-{n}": each for n, each in enumerate(teachers)}
    if not named:
        raise ConfigError("needed at least one teacher, got none", where="teachers")
    for name, teacher in named.items():
        if not callable(teacher):
            raise ConfigError(f"needed a callable from x to logits, got {teacher!r}", where=f"teachers.{name}")
    if "hard" in named:
        raise ConfigError("'hard' is the label's name among the weights", where="teachers", fix="name the teacher anew")
    return named


def _pair(batch: Any, where: str, fields: Fields | None = None) -> tuple[Tensor, Tensor]:
    """Rows and labels of a batch; what stands behind them is left alone."""
    if fields is not None and isinstance(batch, Mapping):
        return fields.pair(batch, where)
    is_pair = isinstance(batch, Sequence) and len(batch) >= 2
    if not is_pair or not all(isinstance(part, Tensor) for part in batch[:2]):
        got = f"a tensor {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"{batch!r:.80}"
        raise ConfigError(
            f"needed batches (x, y) of tensors, got {got}", where=where, fix="give a list of pairs [(x, y)]"
        )
    return batch[0], batch[1]


def _classes(y: Tensor, count: int, where: str) -> Tensor:
    """y [batch] as int64."""
    if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool or y.dim() != 1:
        got = f"{tuple(y.shape)} {y.dtype}"
        raise ConfigError(f"needed labels [batch] as whole numbers, got {got}", where=where, fix="y.long(), one a row")
    if len(y) and not -1 <= int(y.min()) <= int(y.max()) < count:
        got = f"{int(y.min())} to {int(y.max())}"
        raise ConfigError(f"needed labels below {count}, the model's outputs, or -1 for none; got {got}", where=where)
    return y.long()


def _agree(model: nn.Module, teachers: Mapping[str, Teacher], x: Tensor) -> int:
    """Every teacher answers the first batch, with as many columns as the model: how many.

    On the stream a failing teacher is left out and the rest goes on; here somebody waits for the answer.
    """
    with at_rest(model), torch.no_grad():
        wanted = tuple(_logits(model(x), "model").shape)
        for name, teacher in teachers.items():
            where = f"teachers.{name}"
            try:
                answer = teacher(x)
            except Exception as fault:
                raise ConfigError(f"it fails on rows {tuple(x.shape)}: {fault}", where=where) from fault
            got = tuple(_logits(answer, where).shape)
            if got != wanted:
                fix = "wrap it so that column k is the model's class k"
                raise ConfigError(f"needed logits {wanted} as the model's, got {got}", where=where, fix=fix)
    return wanted[1]


def _logits(answer: Any, where: str) -> Tensor:
    """What was answered, if it is logits [batch, classes]; some libraries' models put an object around them."""
    if not isinstance(answer, Tensor) or answer.dim() != 2:
        got = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"{type(answer).__name__}"
        fix = "wrap it in a module that returns the logits alone, such as `return model(x).logits`"
        raise ConfigError(f"needed logits [batch, classes] as a tensor, got {got}", where=where, fix=fix)
    return answer


def _covers(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise ConfigError(
            f"the optimiser does not move {missing[0]!r} ({len(missing)} of the model's parameters)",
            where="optimizer",
            fix="give it model.parameters(), or set requires_grad to False where nothing is to be learned",
        )


def _wire(
    student: Foreign,
    teachers: Mapping[str, Teacher],
    optimizer: torch.optim.Optimizer,
    gate: nn.Module,
    adapter: GateAdapter,
    pairs: Sequence[tuple[Tensor, Tensor]],
    temperature: float,
    clip_norm: float | None,
) -> Step:
    """A step without replay whose held-out memory is the query."""
    held = [(x, _classes(y, student.classes, "query")) for x, y in pairs]
    size = sum(len(y) for _, y in held)
    memory = Memory(max(size, 1), 1.0, 1, seed=0, most_held_out=size)
    memory.holdout_ratio = 0.0  # nothing that arrives is held out
    columns = range(student.classes)
    pool = Pool(
        [SyntheticTeacher(name, teacher, columns, len(columns)) for name, teacher in teachers.items()],
        None,
        memory,
        limit=len(teachers),
        limit_bytes=1,
    )
    loss = Term(MatchGate(MatchGateOptions(temperature=temperature)), 1.0)
    step = Step(student, optimizer, memory, pool, cast(Gate, gate), [loss], replay=0, clip_norm=clip_norm)
    adapter.attach(step)
    for x, y in held:
        hold_out(step, Batch(x, y), task=0)
    pool.assess(student)
    return step
