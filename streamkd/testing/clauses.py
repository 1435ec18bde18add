"""How a check speaks: clauses, and the small assertions inside them.

    clause, options = begin("gate", kind, options)
    with clause("rows sum to 1"):
        same(weights.sum(1), torch.ones(5))

Whatever is raised inside becomes ``ContractBroken``, which names the kind and the clause.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from streamkd.hookspecs import Kind, Options

Given = Options | Mapping[str, Any] | None
Clause = Callable[[str], Any]


class ContractBroken(AssertionError):
    """A kind does not keep a clause of its hook's contract."""


def begin(what: str, kind: Kind, options: Given) -> tuple[Clause, Options]:
    @contextmanager
    def clause(text: str) -> Iterator[None]:
        try:
            yield
        except Exception as fault:
            said = str(fault) if isinstance(fault, AssertionError) else f"{type(fault).__name__}: {fault}"
            raise ContractBroken(f"{what} {kind.name} breaks its contract: {text}\n  {said}") from fault

    with clause("`options` is a class of options that takes those given to this check"):
        chosen = options if isinstance(options, Options) else kind.options.model_validate(dict(options or {}))
        needs(isinstance(chosen, kind.options), kind.options.__name__, repr(chosen))
    return clause, chosen


def needs(held: bool, needed: str, got: str) -> None:
    if not held:
        raise AssertionError(f"needed {needed}, got {got}")


def shaped(tensor: Tensor, shape: tuple[int, ...]) -> None:
    needs(isinstance(tensor, Tensor), "a torch.Tensor", type(tensor).__name__)
    needs(tuple(tensor.shape) == shape, f"shape {shape}", f"{tuple(tensor.shape)}")
    needs(tensor.is_floating_point(), "floats", str(tensor.dtype))
    needs(bool(torch.isfinite(tensor).all()), "finite numbers", f"{tensor}")


def same(got: Tensor, needed: Tensor, tolerance: float = 1e-5) -> None:
    needs(got.shape == needed.shape, f"shape {tuple(needed.shape)}", f"{tuple(got.shape)}")
    if got.numel():
        needed = needed.detach().double()
        apart = float((got.detach().double() - needed).abs().max())
        # of the largest number: a product of other width rounds otherwise, in proportion to what it sums
        needs(
            apart <= tolerance * max(1.0, float(needed.abs().max())),
            "the same numbers",
            f"some that differ by {apart:.3g}",
        )


def is_tree(state: Any) -> None:
    """A checkpoint holds dicts with string keys, lists, JSON scalars, tensors and Arrow tables."""
    if isinstance(state, dict):
        for key, value in state.items():
            needs(isinstance(key, str), "string keys in the state", repr(key))
            is_tree(value)
    elif isinstance(state, list | tuple):
        for value in state:
            is_tree(value)
    else:
        known = state is None or isinstance(state, str | int | float | bool | Tensor | pa.Table)
        needs(known, "a state of dicts, lists, JSON scalars, tensors, Arrow tables", type(state).__name__)
