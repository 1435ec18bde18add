"""Whose turn it is: few workers, many tenants, the one that has waited longest first.

    records wait ─► ask ─► queue ─► begin(worker) ─► ready ─► ... ─► over: others wait, its time is up or work done
                    ▲                                                   │
                    └──────────────── end, and records still wait ◄─────┘

Round robin with a time slice. Nobody has to leave while nobody waits, so a lone tenant is learned as by a server of its
own. The time of a turn counts from when its learner has loaded: however slow that is, each turn learns something.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass
class Turn:
    """One tenant's time with a worker; ``since``: when it began to learn, ``leaving``: it was told to stop."""

    tenant: str
    since: float | None = None
    leaving: bool = False


class Turns:
    """The queue and the turns that are under way. Not thread safe."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._asked: dict[str, float] = {}  # in order
        self.under_way: dict[str, Turn] = {}  # by worker

    @property
    def waiting(self) -> Sequence[str]:
        """Who waits, the next one first."""
        return tuple(self._asked)

    def of(self, tenant: str) -> Turn | None:
        """A tenant's turn that is under way."""
        return next((turn for turn in self.under_way.values() if turn.tenant == tenant), None)

    def ask(self, tenant: str) -> None:
        """Stand at the end of the queue, unless it stands there or has its turn."""
        if tenant not in self._asked and self.of(tenant) is None:
            self._asked[tenant] = self._clock()

    def withdraw(self, tenant: str) -> None:
        """Leave the queue."""
        self._asked.pop(tenant, None)

    def waited(self, tenant: str) -> float:
        """Seconds since it asked; 0 where it does not wait."""
        return self._clock() - self._asked[tenant] if tenant in self._asked else 0.0

    def begin(self, worker: str) -> tuple[str, float] | None:
        """Give a free worker to whoever has waited longest; who, and for how many seconds."""
        if not self._asked:
            return None
        tenant = next(iter(self._asked))
        waited = self._clock() - self._asked.pop(tenant)
        self.under_way[worker] = Turn(tenant)
        return tenant, waited

    def ready(self, worker: str) -> None:
        """The tenant has loaded: its time counts."""
        if (turn := self.under_way.get(worker)) is not None:
            turn.since = self._clock()

    def end(self, worker: str) -> Turn | None:
        """The worker is free again, or dead; whose turn it was."""
        return self.under_way.pop(worker, None)

    def over(self, idle: Collection[str], least_seconds: Callable[[str], float] = lambda tenant: 0.0) -> list[str]:
        """The workers to be freed now, at most one for each that waits: of ``idle`` tenants, then by their time.

        ``least_seconds``: how long a tenant's turn is at least, while it has work.
        """
        leaving = sum(turn.leaving for turn in self.under_way.values())
        ready = [(worker, turn) for worker, turn in self.under_way.items() if turn.since is not None]
        may_go = [
            (turn.tenant not in idle, turn.since or 0.0, worker)
            for worker, turn in ready
            if not turn.leaving and (turn.tenant in idle or self._is_up(turn, least_seconds(turn.tenant)))
        ]
        freed = [worker for _, _, worker in sorted(may_go)][: max(0, len(self._asked) - leaving)]
        for worker in freed:
            self.under_way[worker].leaving = True
        return freed

    def _is_up(self, turn: Turn, least_seconds: float) -> bool:
        return turn.since is not None and self._clock() - turn.since >= max(self._seconds, least_seconds)
