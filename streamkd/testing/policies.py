"""The contract of a memory's policies: places that there are, for whatever comes, and the same after a restart."""

import copy
from typing import Any

import torch
from torch import Tensor

from streamkd.hookspecs import Kind, Options
from streamkd.replay.ring import Ring
from streamkd.testing.clauses import Clause, Given, begin, carried, needs, same

CAPACITY = 12
Batch = tuple[Tensor, list[int], list[tuple[float, float]]]


def check_policy(kind: Kind, options: Given = None) -> None:
    """A policy: offered rows of three classes, some of which are withdrawn again, it names places that there are.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("policy", kind, options)
    with clause("`make(options)` gives a policy", "`columns`, a number of its own, and `places(rows, ring)`"):
        policy = kind.make(chosen)
        needs(isinstance(policy.columns, int) and policy.columns >= 0, "`columns`, 0 or more", repr(policy.columns))
        needs(callable(policy.places), "a method `places`", repr(policy.places))
    batches = [_batch(number) for number in range(14)]
    states: list[Any] = []
    with clause(
        "places(rows, ring) gives for each row in order the next free place, one that is taken, or None",
        "count the rows of the batch that took a free place before; `dropped` says which were withdrawn",
    ):
        ring, said = _ring(kind, chosen), []
        for number, batch in enumerate(batches):
            states.append(copy.deepcopy(ring.state_dict()))
            said.append(_offer(ring, copy.deepcopy(batch), number))
    _leaves_rows(clause, kind, chosen, batches)
    _says_the_same(clause, kind, chosen, batches, said)
    _gives_places_up(clause, kind, chosen, batches)
    for start, state in enumerate(states):
        with clause(
            "stopped before any batch and restored, it goes on as if never stopped",
            "keep it in ring.numbers, or have state_dict(), with string keys, and a load_state_dict that takes it all",
        ):
            ring = _ring(kind, chosen)
            ring.load_state_dict(carried(state), torch.device("cpu"))
            got = [_offer(ring, copy.deepcopy(batch), start + n) for n, batch in enumerate(batches[start:])]
            needs(got == said[start:], f"{said[start:]} after batch {start}", repr(got))


def _leaves_rows(clause: Clause, kind: Kind, options: Options, batches: list[Batch]) -> None:
    with clause("it leaves rows and contents as they are, but for its numbers", "work on copies; write ring.numbers"):
        ring = _ring(kind, options)
        for number, batch in enumerate(batches):
            shown, before = copy.deepcopy(batch), copy.deepcopy(ring.state_dict())
            chosen = ring.offer(*shown)
            same(shown[0], batch[0], 0)
            needs(shown[1:] == batch[1:], "the same labels and draws", "others")
            for name in ("x", "y", "since") if "taken" in before else ():
                column = before["taken"].columns[name]
                same(getattr(ring, name)[: len(column)], column, 0)
            _take(ring, chosen, batch, number)


def _says_the_same(clause: Clause, kind: Kind, options: Options, batches: list[Batch], said: list[Any]) -> None:
    with clause("of the same rows and draws another one says the same", "take chance from rows.draws alone; no clock"):
        ring = _ring(kind, options)
        got = [_offer(ring, copy.deepcopy(batch), number) for number, batch in enumerate(batches)]
        needs(got == said, repr(said), repr(got))
    with clause("what it keeps of the rows it copies: they may change after the call", "keep x.clone(), [*labels]"):
        ring, got = _ring(kind, options), []
        for number, (x, labels, draws) in enumerate(copy.deepcopy(batches)):
            got.append(_offer(ring, (x, labels, draws), number))
            x.fill_(-1)
            labels.clear()
        needs(got == said, repr(said), repr(got))


def _gives_places_up(clause: Clause, kind: Kind, options: Options, batches: list[Batch]) -> None:
    with clause(
        "where there are fewer places than before it goes on with those, by `ring.capacity`",
        "have `leaving(draw)` name a filled place, or leave it out; `dropped` says that its row is gone",
    ):
        ring = _ring(kind, options)
        for number, batch in enumerate(batches):
            ring.resize(CAPACITY - number // 2, lambda count: [0.7] * count)
            _offer(ring, copy.deepcopy(batch), number)
            needs(ring.filled <= ring.capacity, f"at most {ring.capacity} records", str(ring.filled))


def _ring(kind: Kind, options: Options) -> Ring:
    return Ring(CAPACITY, kind.make(options), 0)


def _offer(ring: Ring, batch: Batch, number: int) -> dict[int, int]:
    chosen = ring.offer(*batch)
    _take(ring, chosen, batch, number)
    return chosen


def _take(ring: Ring, chosen: dict[int, int], batch: Batch, number: int) -> None:
    """The rows take their places; those of every fourth batch are withdrawn."""
    x, labels, _ = batch
    if chosen:
        rows = [*chosen.values()]
        y = torch.tensor(labels)[rows]
        ring.take(torch.tensor([*chosen]), x[rows], y, 0, torch.zeros(len(rows), 3))
    if number % 4 == 3:
        ring.drop(chosen)


def _batch(number: int) -> Batch:
    """One row, or five, near their class."""
    generator = torch.Generator().manual_seed(number)
    count = 1 if number % 3 == 0 else 5
    y = torch.randint(0, 3, (count,), generator=generator)
    x = y.unsqueeze(1) + torch.randn(count, 4, generator=generator)
    return x, y.tolist(), [(a, b) for a, b in torch.rand(count, 2, generator=generator).tolist()]
