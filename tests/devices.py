"""A machine without GPU that tells two devices apart: what is on ``cuda`` lies on the CPU, and is marked.

    with pretended():
        x = torch.zeros(2, device="cuda")     # x.device is cuda:0
        x + torch.zeros(2)                    # RuntimeError, as on a GPU

Above the dispatcher a mode reads what Python says of devices (``device=``, ``.to``, ``.device``, ``.numpy``); below it
another sees each operation, those of a backward pass too: new results are where the arguments are, and arguments of two
devices are refused but where torch takes them. The mark is the storage's, so that views, ``.data`` and growth in place
keep it, and a move always copies.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CPU, CUDA, EITHER = "cpu", "cuda", "either"
_GET, _SET = "__get__", "__set__"
_PURGE = 4096

aten = torch.ops.aten
_CROSS = {aten.copy_, aten._to_copy, aten._foreach_copy_, aten._foreach_copy, aten.set_, aten.clone}
_INDEX = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_WITH_NUMBERS = {  # take a number that lies on the CPU though torch does not call them pointwise
    *(aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_, aten.where, aten.index_put, aten.index_put_),
    *(aten._fused_adam_, aten._fused_adamw_, aten._fused_sgd_, aten._index_put_impl_),
}


class Marks:
    """Which storages are on ``cuda``, and which made inside torch go where they are used first."""

    def __init__(self) -> None:
        self._marks: dict[int, tuple[StorageWeakRef, str]] = {}  # the reference keeps the address from coming again

    def of(self, tensor: Tensor) -> str:
        """Where the tensor is."""
        key = _key(tensor)
        return self._marks[key][1] if key in self._marks else CPU

    def put(self, tensor: Tensor, where: str) -> None:
        """Mark its storage."""
        if (key := _key(tensor)) is None:
            return
        self._marks.pop(key, None)
        if where != CPU:
            self._marks[key] = (StorageWeakRef(tensor.untyped_storage()), where)
        if len(self._marks) > _PURGE and not len(self._marks) % _PURGE:
            self._marks = {key: mark for key, mark in self._marks.items() if not mark[0].expired()}


def _key(tensor: Tensor) -> int | None:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # zeros that take no memory, sparse tensors
        return None


class _Operations(TorchDispatchMode):
    """Below the dispatcher: every operation, with plain tensors."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks
        self.into: str | None = None  # the device that the call above asks for
        self.given = False  # whether the call above has tensors: what torch makes inside it goes where they are

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            packet = func.overloadpacket
            if packet.__name__.startswith("_foreach_") and packet not in _CROSS:
                return self._each(func, args, kwargs)
            # numbers that Python gave are nowhere yet
            tensors = [] if packet is aten.lift_fresh else _tensors((args, kwargs))
            where = self._common(func, packet, args, kwargs, tensors)
            drawn = kwargs.get("generator")
            if drawn is not None and where == CUDA:
                raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{drawn.device.type}'")
            found = func(*args, **kwargs)
            self._mark(found, tensors, where)
            return found

    def _each(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Lists go element by element; what is no list is a number for each."""
        lists = [part for part in (*args, *kwargs.values()) if isinstance(part, list) and _tensors(part)]
        places = [self._agreed(func, list(row)) for row in zip(*lists, strict=True)]
        found = func(*args, **kwargs)
        for one, where in zip(_tensors(found), places, strict=False):
            self._mark(one, _tensors(lists), where)
        return found

    def _common(self, func: Any, packet: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> str:
        if self.into is not None:
            return self.into
        if not tensors:
            return EITHER if self.given or torch._C._current_graph_task_id() != -1 else CPU
        if packet in _CROSS:
            return self.marks.of(tensors[0])
        if packet in _INDEX:
            source, indices = args[0], [one for one in args[1] if one is not None]
            if self.marks.of(source) == CPU and any(self.marks.of(one) == CUDA for one in indices):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            tensors = [source, *_tensors(args[2:])]
        return self._agreed(func, tensors, lambda: _written(func, args, kwargs))

    def _agreed(self, func: Any, tensors: list[Tensor], written: Callable[[], list[Tensor]] = list) -> str:
        places = [self.marks.of(one) for one in tensors]
        found = set(places) - {EITHER}
        most = len(tensors) if func.overloadpacket in _WITH_NUMBERS else torch.Tag.pointwise in func.tags
        if found == {CPU, CUDA} and places.count(CPU) <= most:
            numbers = [one for one, where in zip(tensors, places, strict=True) if where == CPU]
            if all(one.dim() == 0 and not any(one is other for other in written()) for one in numbers):
                found = {CUDA}
        if found == {CPU, CUDA}:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({func}: {', '.join(f'{list(t.shape)} on {w}' for t, w in zip(tensors, places, strict=True))})"
            )
        where = found.pop() if found else EITHER
        for one, place in zip(tensors, places, strict=True):
            if place == EITHER != where:
                self.marks.put(one, where)
        return where

    def _mark(self, found: Any, given: Iterable[Tensor], where: str) -> None:
        old = {_key(one) for one in given}
        for one in _tensors(found):
            if _key(one) not in old:
                self.marks.put(one, where)


class _Calls(TorchFunctionMode):
    """Above the dispatcher: what Python says of devices."""

    def __init__(self, marks: Marks, operations: _Operations) -> None:
        super().__init__()
        self.marks, self.operations = marks, operations
        t = Tensor
        self._answers: dict[Any, Callable[..., Any]] = {
            getattr(t.device, _GET): lambda x: self._device(x),
            getattr(t.is_cuda, _GET): lambda x: self._where(x) == CUDA,
            getattr(t.is_cpu, _GET): lambda x: self._where(x) == CPU,
            getattr(t.grad, _SET): self._set_grad,
            t.get_device: lambda x: 0 if self._where(x) == CUDA else -1,
            t.to: self._to,
            t.cuda: lambda x, *args, **kwargs: self._moved(x, CUDA),
            t.cpu: lambda x, *args, **kwargs: self._moved(x, CPU),
            t.pin_memory: lambda x, *args, **kwargs: x.clone(),
            t.numpy: lambda x, *args, **kwargs: self._on_cpu(x).numpy(*args, **kwargs),
            t.__array__: lambda x, *args, **kwargs: self._on_cpu(x).__array__(*args, **kwargs),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (answer := self._answers.get(func)) is not None:
            return answer(*args, **kwargs)
        if getattr(func, "__name__", "") in (_GET, _SET):
            return func(*args, **kwargs)
        tensors = _tensors((args, kwargs))
        into = _type(kwargs.get("device"))
        if into not in (CPU, CUDA):  # not said, or `meta`
            found = self._below(func, args, kwargs, None, bool(tensors) and func is not torch.tensor)
            self._settle(found, tensors, func)
            return found
        found = self._below(func, args, {**kwargs, "device": CPU}, into, bool(tensors))
        old = {_key(one) for one in tensors}
        return tree_map_only(Tensor, lambda x: self._moved(x, into) if _key(x) in old else self._marked(x, into), found)

    def _below(self, func: Any, args: Any, kwargs: Any, into: str | None, given: bool) -> Any:
        operations = self.operations
        before = operations.into, operations.given
        operations.into, operations.given = into, given
        try:
            return func(*args, **kwargs)
        finally:
            operations.into, operations.given = before

    def _settle(self, found: Any, given: list[Tensor], func: Any) -> None:
        """What torch made inside a call and nobody has used yet is where its arguments are."""
        where = CUDA if any(self._where(one) == CUDA for one in given) else CPU
        for one in _tensors(found):
            if self._where(one) == EITHER or (func is Tensor.__deepcopy__ and one is not given[0]):
                self.marks.put(one, where)

    def _marked(self, x: Tensor, where: str) -> Tensor:
        self.marks.put(x, where)
        return x

    def _where(self, x: Tensor) -> str:
        return self.marks.of(x)

    def _device(self, x: Tensor) -> torch.device:
        return torch.device("cuda", 0) if self._where(x) == CUDA else getattr(Tensor.device, _GET)(x)

    def _moved(self, x: Tensor, where: str) -> Tensor:
        return x if self._where(x) == where else _Crossing.apply(x, where, self)

    def _to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        where, rest = None, []
        kwargs = dict(kwargs)
        for part in (*args, kwargs.pop("device", None), kwargs.pop("other", None)):
            if isinstance(part, Tensor):
                where, rest = self._where(part), [part.dtype]
            elif isinstance(part, str | torch.device) or type(part) is int:
                where = _type(part)
            elif part is not None:
                rest.append(part)
        if where in (CPU, CUDA):
            x = self._moved(x, where)
        elif where is not None:
            rest = [where, *rest]
        kwargs.pop("non_blocking", None)
        rest = [part for part in rest if not isinstance(part, bool)]
        return x.to(*rest, **kwargs) if rest or kwargs else x

    def _on_cpu(self, x: Tensor) -> Tensor:
        if self._where(x) == CUDA:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. "
                "Use Tensor.cpu() to copy the tensor to host memory first."
            )
        return x

    def _set_grad(self, x: Tensor, grad: Tensor | None) -> None:
        if grad is not None and {self._where(x), self._where(grad)} == {CPU, CUDA}:
            raise RuntimeError("attempting to assign a gradient with a different device than the tensor")
        getattr(Tensor.grad, _SET)(x, grad)


class _Crossing(torch.autograd.Function):
    """A copy on the other device; its gradient goes back the same way."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, where: str, calls: _Calls) -> Tensor:
        return calls._below(torch.clone, (x,), {}, where, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.where, ctx.calls = inputs
        ctx.back = ctx.calls._where(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Crossing.apply(grad, ctx.back, ctx.calls), None, None

    @staticmethod
    def jvp(ctx: Any, slope: Tensor, *_: None) -> Tensor:
        return _Crossing.apply(slope, ctx.where, ctx.calls)


def _type(device: Any) -> str | None:
    if device is None:
        return None
    return CUDA if type(device) is int else torch.device(device).type


_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size})


def _tensors(tree: Any) -> list[Tensor]:
    """Those in tuples, lists and dictionaries, in their order; asked of every call, so it looks at types first."""
    if type(tree) in _PLAIN:
        return []
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list) or (isinstance(tree, list) and tree and isinstance(tree[0], int | float)):
        return []
    return [found for part in tree if type(part) not in _PLAIN for found in _tensors(part)]


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that the operation writes to."""
    written = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += _tensors(args[place] if place < len(args) else kwargs.get(argument.name))
    return written


@contextmanager
def pretended() -> Iterator[None]:
    """One GPU called ``pretended``, in this thread."""
    marks = Marks()
    operations = _Operations(marks)
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda device=None: None,
        "get_device_name": lambda device=None: "pretended",
        "is_current_stream_capturing": lambda: False,
        "manual_seed_all": lambda seed: None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        idle = SimpleNamespace(is_capturing=lambda: False)
        stack.enter_context(mock.patch.object(torch.accelerator, "current_stream", return_value=idle))
        stack.enter_context(operations)
        stack.enter_context(_Calls(marks, operations))
        yield
