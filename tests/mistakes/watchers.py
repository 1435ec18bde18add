"""Mistakes of boundary detectors and observers."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mistakes.mistake import ALOOF, Mistake


class Counter:
    """A detector that is right: a task every four batches."""

    def __init__(self, options: Any) -> None:
        self.seen = 0

    def begins(self, records: Any, new_labels: Any, since_boundary: int) -> Any:
        self.seen += 1
        return "" if self.seen % 4 == 1 else None

    def state_dict(self) -> dict[Any, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self.seen = state["seen"]


class Amnesiac(Counter):
    def load_state_dict(self, state: dict[Any, Any]) -> None: ...


class Keyed(Counter):
    """Integer keys."""

    def state_dict(self) -> dict[Any, Any]:
        return {0: self.seen}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self.seen = state[0]


class Meddling(Counter):
    def begins(self, records: Any, new_labels: Any, since_boundary: int) -> Any:
        records.inputs[:] = 0
        return super().begins(records, new_labels, since_boundary)


class Popping(Counter):
    """Takes the new labels out of the list."""

    def begins(self, records: Any, new_labels: Any, since_boundary: int) -> Any:
        new_labels.clear()
        return super().begins(records, new_labels, since_boundary)


class Truthful(Counter):
    def begins(self, records: Any, new_labels: Any, since_boundary: int) -> Any:
        return bool(new_labels)


class Adding(Counter):
    """Adds labels up, though some records have none."""

    def begins(self, records: Any, new_labels: Any, since_boundary: int) -> Any:
        return "" if sum(records.labels) > 500 else None


class Keeping(Counter):
    """Compares with the batch before, which it keeps as it is."""

    before: Any = None

    def begins(self, records: Any, new_labels: Any, since_boundary: int) -> Any:
        before, self.before = self.before, records.inputs
        return "" if before is not None and records.inputs.mean() - before.mean() > 0.5 else None

    def state_dict(self) -> dict[Any, Any]:
        return {"before": None if self.before is None else torch.from_numpy(self.before.copy())}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self.before = None if state["before"] is None else state["before"].numpy()


class Chancy(Counter):
    """Guesses, from a generator without seed."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.chance = np.random.default_rng()

    def begins(self, records: Any, new_labels: Any, since_boundary: int) -> Any:
        return str(self.chance.random())


class Gambling(Counter):
    def begins(self, records: Any, new_labels: Any, since_boundary: int) -> Any:
        return "" if np.random.rand() < 0.5 else None


class Timed(Counter):
    """Names tasks by the clock."""

    def begins(self, records: Any, new_labels: Any, since_boundary: int) -> Any:
        return str(time.monotonic_ns())


class Watching:
    """An observer that is right, of three events."""

    def __init__(self, options: Any) -> None: ...

    def on_step(self, record: int, loss: float, accuracy: float) -> None: ...

    def on_checkpoint(self, record: int, offsets: Any) -> None: ...

    def on_published(self, version: int, record: int) -> None: ...


class Misspelt:
    def __init__(self, options: Any) -> None: ...

    def on_publish(self, version: int) -> None: ...


class Short(Watching):
    def on_published(self, version: int) -> None: ...  # type: ignore[override]


class Rounding(Watching):
    """Makes an integer of an accuracy that may be NaN."""

    def on_step(self, record: int, loss: float, accuracy: float) -> None:
        round(100 * accuracy)


class Awaited(Watching):
    async def on_published(self, version: int, record: int) -> None: ...  # type: ignore[override]


class Noting(Watching):
    """Writes into the offsets."""

    def on_checkpoint(self, record: int, offsets: Any) -> None:
        offsets["seen"] = 1


class Seeding(Watching):
    """Seeds torch for everybody."""

    def on_step(self, record: int, loss: float, accuracy: float) -> None:
        torch.manual_seed(record)


class RateDecay(Watching):
    """Leaves gradients off for everybody."""

    def on_step(self, record: int, loss: float, accuracy: float) -> None:
        torch.set_grad_enabled(False)


def detector(name: str, clause: str, make: Callable[..., Any]) -> Mistake:
    return Mistake("detectors", name, clause, make)


def observer(name: str, clause: str, make: Callable[..., Any]) -> Mistake:
    return Mistake("observers", name, clause, make)


RESTORED = "stopped before any batch and restored, it goes on as if never stopped"
MISTAKES = (
    detector("answers yes and no", "begins() says a task's name or None", Truthful),
    detector("adds labels up, though some are None", "begins() says a task's name or None", Adding),
    detector("writes into the inputs", "it leaves the records as they are", Meddling),
    detector("empties the list of new labels", "it leaves the records as they are", Popping),
    detector("guesses, from numpy's generator", ALOOF, Gambling),
    detector("guesses, from a generator without seed", "of the same batches another one says the same", Chancy),
    detector("names tasks by the clock", "of the same batches another one says the same", Timed),
    detector("keeps the caller's array", "what it keeps of the records it copies", Keeping),
    detector("forgets how far it was", RESTORED, Amnesiac),
    detector("integer keys in its state", RESTORED, Keyed),
    observer("an event that does not exist", "its events are among on_step", Misspelt),
    observer("no event at all", "its events are among on_step", lambda options: object()),
    observer("an argument too few", "on_published takes its arguments", Short),
    observer("cannot take an accuracy of NaN", "on_step takes its arguments", Rounding),
    observer("writes into the offsets", "on_checkpoint takes its arguments", Noting),
    observer("async def", "on_published takes its arguments, and is done when it returns", Awaited),
    observer("seeds torch", ALOOF, Seeding),
    observer("turns gradients off", ALOOF, RateDecay),
)
