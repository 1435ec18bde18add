"""How a check speaks: clauses, and the small assertions inside them.

    clause, options = begin("gate", kind, options)
    with clause("rows sum to 1", "end with `weights_of`"):
        same(weights.sum(1), torch.ones(5))

Whatever is raised inside becomes ``ContractBroken``, which names kind and clause, what was seen and how to mend it.
What holds of every kind is looked at after each clause: nothing is drawn from torch's and numpy's own random
generators, and torch's settings stay as they are.
"""

import copy
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from streamkd.hookspecs import Kind, Options
from streamkd.replay.table import StoredRows
from streamkd.state.tree import Parts, pack, unpack

T = TypeVar("T")
Given = Options | Mapping[str, Any] | None
Clause = Callable[[str, str], AbstractContextManager[None]]
"""Opens a clause: its text, and how to mend what breaks it."""
ALOOF = "it draws nothing from torch's and numpy's own random generators and leaves torch's settings as they are"


class ContractBroken(AssertionError):
    """A kind does not keep a clause of its hook's contract."""

    def __init__(self, who: str, clause: str, seen: str, mend: str) -> None:
        super().__init__(f"{who} breaks its contract: {clause}\n  seen: {seen}\n  mend: {mend}")
        self.clause, self.seen, self.mend = clause, seen, mend


def begin(what: str, kind: Kind, options: Given) -> tuple[Clause, Options]:
    """The clauses of one kind's contract, and its options.

    Raises:
        ContractBroken: the options are refused.
    """
    who = f"{what} {kind.name}"

    @contextmanager
    def clause(text: str, mend: str) -> Iterator[None]:
        before, modules = _process(), len(sys.modules)
        try:
            yield
        except Exception as fault:
            said = str(fault) if isinstance(fault, AssertionError) else f"{type(fault).__name__}: {fault}"
            raise ContractBroken(who, text, said, mend) from fault
        changed = [name for name, value in _process().items() if value != before[name]]
        if len(sys.modules) != modules:  # libraries draw when they are imported
            changed = [name for name in changed if name.startswith("torch")]
        if changed:
            raise ContractBroken(
                who,
                ALOOF,
                f"other {', '.join(changed)} after: {text}",
                "draw from a generator of your own that is part of the state, and put back what you set",
            )

    with clause(
        "`options` is a class of options that takes those given to this check",
        "subclass streamkd.api.Options, and give every field a type and a default",
    ):
        chosen = options if isinstance(options, Options) else kind.options.model_validate(dict(options or {}))
        needs(isinstance(chosen, kind.options), kind.options.__name__, repr(chosen))
    return clause, chosen


def _process() -> dict[str, Any]:
    """What all parts of the process share. Python's own ``random`` is left out: type checkers draw from it."""
    kind, keys, *place = np.random.get_state(legacy=True)
    return {
        "torch.get_rng_state()": torch.get_rng_state().numpy().tobytes(),
        "numpy.random.get_state()": (kind, bytes(np.asarray(keys)), place),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_num_threads()": torch.get_num_threads(),
    }


def needs(held: bool, needed: str, got: str) -> None:
    """Raises AssertionError, with both, unless it held."""
    if not held:
        raise AssertionError(f"needed {needed}, got {got}")


def shaped(tensor: Tensor, shape: tuple[int, ...]) -> None:
    """A finite tensor of floats of that shape, or an AssertionError."""
    needs(isinstance(tensor, Tensor), "a torch.Tensor", type(tensor).__name__)
    needs(tuple(tensor.shape) == shape, f"shape {shape}", f"{tuple(tensor.shape)}")
    needs(tensor.is_floating_point(), "floats", str(tensor.dtype))
    needs(bool(torch.isfinite(tensor).all()), "finite numbers", f"{tensor}")


def same(got: Tensor, needed: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within the tolerance, which is relative to the largest number where that is above 1."""
    needs(got.shape == needed.shape, f"shape {tuple(needed.shape)}", f"{tuple(got.shape)}")
    if got.numel():
        wanted = needed.detach().double()
        apart = float((got.detach().double() - wanted).abs().max())
        close = apart <= tolerance * max(1.0, float(wanted.abs().max()))
        needs(close, "the same numbers", f"some that differ by {apart:.3g}")


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
        # the rows of a memory are its own, and not a plugin's
        known = state is None or isinstance(state, str | int | float | bool | Tensor | pa.Table | StoredRows)
        needs(known, "a state of dicts, lists, JSON scalars, tensors, Arrow tables", type(state).__name__)


def carried(state: Any) -> Any:
    """A state as a checkpoint gives it back: through JSON, and with tensors that nobody else holds."""
    is_tree(state)
    parts = pack(copy.deepcopy(state))
    document = json.loads(json.dumps(parts.document, allow_nan=False))
    return unpack(Parts(document, parts.tensors, parts.tables, parts.rows))


class Hand:
    """One thread that makes all calls, so that one which never returns can be told.

    It is always the same thread, as some libraries ask; whoever blocks it keeps it, and it ends with the process.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="contract check", daemon=True).start()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function gives, or raises.

        Raises:
            AssertionError: it has not returned in time.
        """
        future: Future[T] = Future()
        self._calls.put((future, function, arguments))
        try:
            return future.result(self._patience)
        except TimeoutError:
            if future.done():
                raise
            name = getattr(function, "__name__", "the call")
            raise AssertionError(f"needed {name} to return, got nothing in {self._patience:g} s") from None

    def close(self) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function, arguments = call
            try:
                future.set_result(function(*arguments))
            except Exception as fault:  # noqa: BLE001 - a stranger's code: whoever asked is told
                future.set_exception(fault)
