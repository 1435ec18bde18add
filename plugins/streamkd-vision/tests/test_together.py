"""Teacher and loss together in a training step, as the learner runs them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from streamkd_vision import teacher as module
from streamkd_vision.teacher import TorchvisionOptions, TorchvisionTeacher
from streamkd_vision.transfer import AttentionTransfer, AttentionTransferOptions

from streamkd.errors import PluginError
from streamkd.gates.gate import FixedGate, FixedOptions
from streamkd.learning.step import Step, Term
from streamkd.losses.match_gate import MatchGate, MatchGateOptions
from streamkd.plugins import Registry
from streamkd.replay.memory import Memory
from streamkd.students import networks
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import TeacherContext

Context = Callable[..., TeacherContext]


def wired(weights: Path, context: TeacherContext, layer: str = "body.convolutions.0") -> Step:
    """A convolutional student with both terms."""
    registry = Registry()
    registry.register(networks, "students")
    kind = registry.kind("students", "convnet")
    student = networks.build(kind, kind.options(), context.schema, 3, 0)
    options = TorchvisionOptions(network="mobilenet_v3_small", weights=weights, classes=(0, 1, 2), size=32)
    memory = Memory(20, 0.0, 1, seed=0)
    pool = Pool([TorchvisionTeacher(options, context)], None, memory, limit=4, limit_bytes=1 << 30)
    transfer = AttentionTransfer(AttentionTransferOptions(pairs=((layer, "features.1"),)))
    terms = [Term(MatchGate(MatchGateOptions()), 1.0), Term(transfer, 2.0)]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    return Step(student, optimizer, memory, pool, FixedGate(FixedOptions()), terms, replay=4)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (4, 8, 8), dtype=torch.uint8, generator=generator)
    return x, torch.randint(0, 3, (4,), generator=generator)


def test_both_move_the_student(weights: Path, context: Context) -> None:
    """The transfer term reaches the student's layer by itself: without the other term it still has a gradient."""
    step = wired(weights, context())
    plan = step.begin(*batch(0), task=0)
    lesson = step.weigh(plan, step.forward(plan))
    step.terms[1].loss(lesson).mean().backward()
    gradient = step.student.get_submodule("body.convolutions.0").weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_a_step_runs_the_network_once_on_fresh_rows(
    weights: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits for the gate and features for the loss come from one pass; the loss falls on the same batch."""
    step = wired(weights, context())
    step.replay = 0  # about replayed rows it is asked when they are replayed
    rows: list[int] = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda *a: rows.append(len(a[2])) or run(*a))
    losses = []
    for _ in range(12):
        plan = step.begin(*batch(0), task=0)
        logits = step.forward(plan)
        loss = step.loss(step.weigh(plan, logits))
        step.optimizer.zero_grad()
        loss.backward()
        step.optimizer.step()
        step.finish(plan, logits)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert rows == [4, 4]  # the first step learns which layers are wanted; the same rows need no pass after that


def test_a_students_layer_that_is_not_there_is_refused_at_start(weights: Path, context: Context) -> None:
    """A misspelt layer of the student is an error before the first step, with the known layers."""
    with pytest.raises(PluginError, match=r"there is no layer 'body\.convolution\.0' in Student"):
        wired(weights, context(), layer="body.convolution.0")
