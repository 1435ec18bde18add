"""The student's start: learn2learn's MAML and MetaSGD over a start of one class."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from toys import FEATURES, mlp, schema_of

from streamkd.pretraining.initialization import Batch, Episode, Inner, _outer, learn_start
from streamkd.students.networks import Student


def _episode(seed: int, steps: int = 6, classes: int = 3) -> Episode:
    """Classes around centres of this episode alone."""
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, FEATURES, generator=g)

    def batch(rows: int) -> Batch:
        y = torch.arange(rows) % classes
        return Batch(centres[y] + 0.5 * torch.randn(rows, FEATURES, generator=g), y)

    return Episode([batch(6) for _ in range(steps)], batch(9), classes)


def _by_hand(student: Student, logs: list[Tensor], episode: Episode, inner: Inner) -> Tensor:
    """The same loss, unrolled with explicit parameters: an SGD step is θ - η·exp(ρ)·g."""
    names = [name for name, _ in student.named_parameters()]
    values = dict(student.named_parameters())
    for name in ("body.head.weight", "body.head.bias"):
        values[name] = values[name].expand(episode.classes, *values[name].shape[1:])
    wide = copy.deepcopy(student)
    wide.grow(episode.classes)
    buffers = dict(wide.named_buffers())
    every = len(episode.steps) // inner.points
    found = []
    for number, step in enumerate(episode.steps, 1):
        loss = F.cross_entropy(functional_call(wide, values | buffers, (step.x,)), step.y)
        grads = torch.autograd.grad(loss, list(values.values()), create_graph=not inner.first_order)
        values = {
            name: values[name] - inner.learning_rate * log.exp() * g
            for name, log, g in zip(names, logs, grads, strict=True)
        }
        if number % every == 0:
            found.append(F.cross_entropy(functional_call(wide, values | buffers, (episode.query.x,)), episode.query.y))
    return torch.stack(found).mean()


@pytest.mark.parametrize("first_order", [True, False])
def test_the_outer_gradient_is_that_of_the_unrolled_steps(first_order: bool) -> None:
    """learn2learn's clone and update give the gradients of a loop written out, to the start and to the rates."""
    student, episode = mlp(1), _episode(0)
    inner = Inner("sgd", 0.1, first_order=first_order, points=3)
    logs = [torch.zeros((), requires_grad=True) for _ in student.parameters()]
    wanted = [*student.parameters(), *logs]
    ours = torch.autograd.grad(_outer(student, logs, episode, inner), wanted)
    theirs = torch.autograd.grad(_by_hand(student, logs, episode, inner), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_adam_steps_as_the_stream_does() -> None:
    """With rates of 1 the inner loop moves the student as torch's Adam would."""
    student, episode = mlp(1), _episode(1, steps=5)
    logs = [torch.zeros(()) for _ in student.parameters()]
    ours = _outer(student, logs, episode, Inner("adam", 0.01, points=1))
    wide = copy.deepcopy(student)
    wide.begin_from(student.state_dict())
    wide.grow(episode.classes)
    optimizer = torch.optim.Adam(wide.parameters(), lr=0.01)
    for step in episode.steps:
        optimizer.zero_grad()
        F.cross_entropy(wide(step.x), step.y).backward()
        optimizer.step()
    torch.testing.assert_close(ours, F.cross_entropy(wide(episode.query.x), episode.query.y), rtol=1e-4, atol=1e-5)


def test_labels_that_have_not_come_are_not_there() -> None:
    """Before its first record a label takes no part, as in a stream whose head has not grown."""
    student, episode = mlp(1), _episode(2)
    later = [Batch(step.x[step.y < 2], step.y[step.y < 2]) for step in episode.steps]
    logs = [torch.zeros(()) for _ in student.parameters()]
    two = episode.query.y < 2
    narrow = Episode(later, Batch(episode.query.x[two], episode.query.y[two]), 2)
    inner = Inner("adam", 0.01)
    wide = Episode(later, episode.query, 3)
    torch.testing.assert_close(_outer(student, logs, wide, inner), _outer(student, logs, narrow, inner))


@pytest.mark.parametrize("how", ["maml", "metasgd"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learning_a_start_pays_on_other_episodes(how: str, optimizer: str) -> None:
    """After the training, episodes that were not among it are learned to a lower loss."""
    inner = Inner(optimizer, 0.05 if optimizer == "sgd" else 0.005)
    before, student = mlp(1), mlp(1)
    start = learn_start(student, ([_episode(seed)] for seed in range(60)), inner, how=how, outer_rate=0.01)
    plain = [torch.zeros(()) for _ in student.parameters()]
    for seed in (1001, 1002, 1003):
        after = _outer(student, plain, _episode(seed), inner).item()
        assert after < _outer(before, plain, _episode(seed), inner).item()
    assert len(start.losses) == 60


def test_every_label_begins_with_the_start_s_row() -> None:
    """Growing in steps or at once, each new row is the start's, and the body too."""
    start = mlp(1, seed=5).state_dict()
    student = mlp(1, seed=6)
    student.begin_from(start)
    student.grow(3)
    student.grow(4)
    for name, value in student.state_dict().items():
        wanted = start[name].expand_as(value) if "head" in name else start[name]
        assert torch.equal(value, wanted), name


def test_a_start_of_another_architecture_is_refused() -> None:
    """Shapes that differ are said."""
    with pytest.raises(ValueError, match="does not fit"):
        mlp(1, hidden=(8,)).begin_from(mlp(1, hidden=(9,), schema=schema_of(FEATURES)).state_dict())
