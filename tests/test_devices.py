"""The pretended GPU of these tests refuses what a real one would, and nothing else."""

import copy
from collections.abc import Callable, Iterator

import devices
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ON = {"device": "cuda"}
# the first dual number compiles its rules by what torch calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def _pretended() -> Iterator[None]:
    with devices.pretended():
        yield


MIXED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add": lambda x, y: x + y,
    "add the other way": lambda x, y: y + x,
    "in place": lambda x, y: y.add_(x),
    "matmul": lambda x, y: x @ y,
    "cat": lambda x, y: torch.cat([x, y]),
    "stack": lambda x, y: torch.stack([x, y]),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "mask": lambda x, y: x.masked_fill(y > 0, 1.0),
    "linear": lambda x, y: F.linear(x, y),
    "cross-entropy": lambda x, y: F.cross_entropy(x, y.argmax(1)),
    "gather": lambda x, y: x.gather(1, y.long()),
    "isin": lambda x, y: torch.isin(x, y),
    "equal": torch.equal,
    "view": lambda x, y: x[0] + y[0],
    "index of a CPU tensor": lambda x, y: y[x.long()],
    "mask of a CPU tensor": lambda x, y: y[x > 0],
    "a number that is written": lambda x, y: y.sum().add_(x.sum()),
    "values put": lambda x, y: x.index_put_((torch.tensor([0, 1]),), y),
    "foreach": lambda x, y: torch._foreach_add([x], [y]),
    "numbers of the CPU": lambda x, y: x + torch.tensor([1.0, 2.0, 3.0]),
    "two numbers": lambda x, y: torch.addcmul(x, y.sum(), y.sum()),
    "under a dual number": lambda x, y: torch.func.jvp(lambda a: a * y, (x,), (x,)),
    "under vmap": lambda x, y: torch.func.vmap(lambda a: a * y)(x),
    "a gradient": lambda x, y: setattr(x, "grad", y),
}


@pytest.mark.parametrize("what", MIXED)
def test_tensors_of_two_devices_do_not_mix(what: str) -> None:
    """An operation on tensors of two devices raises as it does on a GPU."""
    with pytest.raises(RuntimeError, match="device"):
        MIXED[what](torch.zeros(3, 3, **ON), torch.zeros(3, 3))


ALLOWED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a number": lambda x, y: x * y.sum(),
    "a number first": lambda x, y: y.sum() * x,
    "a CPU index": lambda x, y: x[y.long()],
    "a CPU mask": lambda x, y: x[y >= 0],
    "copy_": lambda x, y: x.copy_(y),
    "a slice that is set": lambda x, y: x.__setitem__(slice(1, 2), y[1:2]) or x,
    "a number that is put": lambda x, y: x.__setitem__(y > 0, torch.tensor(2.0)) or x,
    "to": lambda x, y: x + y.to(x.device),
    "to another": lambda x, y: x + y.to(x),
    "to a type and a device": lambda x, y: x + y.double().to("cuda", torch.float32),
    "like": lambda x, y: x + torch.zeros_like(y, device="cuda"),
    "new": lambda x, y: x + x.new_zeros(3) + x.new_tensor([1.0, 2.0, 3.0]),
    "one_hot": lambda x, y: x + F.one_hot(x[:, 0].long(), 3),
    "as_tensor": lambda x, y: x + torch.as_tensor(np.zeros(3, np.float32), device="cuda"),
    "where with numbers": lambda x, y: torch.where(x > 0, x, torch.tensor(0.0)),
    "deepcopy": lambda x, y: x + copy.deepcopy(x),
    "jvp": lambda x, y: torch.func.jvp(lambda a: a * x, (x,), (x,))[1],
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_torch_lets_cross_crosses(what: str) -> None:
    """Numbers, CPU indices, copies and moves are taken; the result is on the GPU."""
    assert ALLOWED[what](torch.zeros(3, 3, **ON), torch.zeros(3, 3)).device == torch.device("cuda:0")


def test_views_keep_their_device() -> None:
    """Rows, transposes and detached tensors are where the whole is, and so is what is computed of them."""
    x = torch.zeros(3, 3, **ON)
    assert all(view.is_cuda for view in (x[0], x.T, x.detach(), x.view(-1), x.softmax(1).argmax(1), x.data))


def test_a_move_copies() -> None:
    """What is written on one device is not seen on the other."""
    here = torch.zeros(3)
    here.to("cuda").add_(1)
    assert here.tolist() == [0, 0, 0]


@pytest.mark.parametrize("read", [lambda x: x.numpy(), np.asarray, lambda x: x.detach().numpy()])
def test_numpy_reads_the_cpu_only(read: Callable[[Tensor], object]) -> None:
    """A tensor on the GPU has no numpy array; moved to the CPU it has."""
    x = torch.zeros(3, **ON)
    with pytest.raises(TypeError, match="can't convert cuda"):
        read(x)
    assert np.array_equal(read(x.cpu()), np.zeros(3))


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: torch.rand(3, generator=g, device="cuda"),
        lambda g: torch.randperm(3, generator=g, device="cuda"),
        lambda g: torch.empty(3, device="cuda").uniform_(generator=g),
    ],
)
def test_a_generator_of_the_cpu_draws_there(draw: Callable[[torch.Generator], Tensor]) -> None:
    """It cannot fill a tensor on the GPU."""
    with pytest.raises(RuntimeError, match="generator"):
        draw(torch.Generator())


def test_a_module_moves_whole() -> None:
    """Parameters stay the same objects, buffers too; gradients and an optimiser's state are where they are."""
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    weight = module[0].weight
    optimizer = torch.optim.Adam(module.to("cuda").parameters())
    module(torch.randn(4, 3, **ON)).logsumexp(1).mean().backward()
    optimizer.step()
    assert weight is module[0].weight
    assert all(t.is_cuda for p in module.parameters() for t in (p, p.grad, optimizer.state[p]["exp_avg"]))
    assert module[1].running_mean.is_cuda


def test_gradients_cross_back() -> None:
    """A parameter of the CPU whose copy was used on the GPU has its gradient on the CPU."""
    weight = torch.ones(3, requires_grad=True)
    (weight.to("cuda") * torch.ones(3, **ON)).sum().backward()
    assert (weight.grad + torch.ones(3)).tolist() == [2, 2, 2]
