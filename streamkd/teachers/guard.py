"""Asking a teacher: guarded, timed and counted, so that a broken teacher hurts only itself.

A teacher that raises gives no answer to that batch; after three strikes it is not asked again until the learner
starts anew from scratch (the strikes are state: a resumed run must ask the same questions).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from torch import Tensor

from streamkd.errors import Overloaded, PluginError, StateError
from streamkd.strikes import STRIKES, blame
from streamkd.teachers.former import FormerTeacher
from streamkd.teachers.snapshot import SnapshotTeacher
from streamkd.teachers.teacher import Hindsight, Incremental, Recalling, Teacher

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Absent(Exception):
    """A teacher in a process of its own is away: nobody's fault here; ``reason`` where it has just gone."""

    def __init__(self, key: str, reason: str = "", said: str = "") -> None:
        super().__init__(said or f"teacher {key} is away")
        self.reason = reason


@dataclass
class Calls:
    """What was asked of one teacher; ``cached`` counts rows whose remembered answer spared a question."""

    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """By reason."""

    seconds: float = 0.0
    cached: int = 0


def group(teacher: Teacher) -> str:
    """Under what name a teacher is counted: its own; of copies, that of the choice in the configuration."""
    return (isinstance(teacher, SnapshotTeacher | FormerTeacher) and teacher.key.rpartition("-")[0]) or teacher.key


@dataclass
class Guard:
    """The questions to all teachers, tallied by ``group``: copies come and go, and count as one."""

    tallies: dict[str, Calls] = field(default_factory=dict)
    strikes: dict[str, int] = field(default_factory=dict)
    strict: bool = False
    """In a rehearsal, in which what is wrong at once is an error."""

    def of(self, group: str) -> Calls:
        """The tally of a teacher, or of all snapshots."""
        return self.tallies.setdefault(group, Calls())

    def ask(self, teacher: Teacher, x: Tensor, classes: int, y: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Logits [batch, classes] on raw inputs and the classes known; ``None``: it failed, or did so too often.

        ``y`` are the columns of rows that were learned: who has learned from them leaves each out of what it says.
        """
        if self.strikes.get(teacher.key, 0) < STRIKES and not getattr(teacher, "away", False):
            self.of(group(teacher)).requests += 1

        def call() -> tuple[Tensor, Tensor]:
            with untouched(x):
                said = _said(teacher, x, y)
            return self._checked(said, teacher.known().to(x.device), len(x), classes)

        return self.guarded(teacher, call, "logits" if y is None else "recall")

    def test_then_train(
        self, teacher: Incremental, x: Tensor, y: Tensor, learn: Tensor, then: np.ndarray | None = None
    ) -> Tensor | None:
        """What it says of each row before it learns it, [n, classes] on the rows' device; ``None``: it failed.

        No rows where it knows no class yet.

        ``then`` is its ``opinion`` of the rows when they came, where that was earlier.
        """

        def call() -> Tensor:
            known = teacher.known()
            with untouched(x, y):
                if then is not None and isinstance(teacher, Hindsight):
                    said = teacher.test_then_train(x, y, learn, then)
                else:
                    said = teacher.test_then_train(x, y, learn)
            said = self._checked(said.to(x.device), known, len(x), len(known))[0]
            return said if teacher.known().any() else said[:0]

        return self.guarded(teacher, call, "test_then_train")

    def guarded(self, teacher: Teacher, call: Callable[[], T], hook: str) -> T | None:
        """What a teacher's own code gives, timed; ``None``: it failed, or did so too often.

        Raises:
            PluginError: it failed, and this is ``strict``.
        """
        if self.strikes.get(teacher.key, 0) >= STRIKES:
            return None
        tally = self.of(group(teacher))
        begun = time.perf_counter()
        try:
            return call()
        except Absent as away:
            if self.strict:
                raise blame(f"teacher {teacher.key}", hook, PluginError(f"is away: {away}")) from away
            if away.reason:
                tally.failures[away.reason] += 1
            return None
        except (Overloaded, StateError):  # that it is away cannot be written down: nothing may follow from it
            raise
        except (Exception, SystemExit) as fault:
            blamed = blame(f"teacher {teacher.key}", hook, fault)
            if self.strict:
                raise blamed from fault
            tally.failures["raised"] += 1
            self.strikes[teacher.key] = self.strikes.get(teacher.key, 0) + 1
            logger.exception("%s (%d of %d, then it is off)", blamed, self.strikes[teacher.key], STRIKES)
            return None
        finally:
            tally.seconds += time.perf_counter() - begun

    @staticmethod
    def _checked(logits: Tensor, known: Tensor, rows: int, classes: int) -> tuple[Tensor, Tensor]:
        if logits.shape != (rows, classes) or known.shape != (classes,):
            got = f"{tuple(logits.shape)} and {tuple(known.shape)}"
            fix = "widen the answers in grow(), one column per label"
            raise PluginError(f"needed logits {(rows, classes)} and known {(classes,)}, got {got}", fix=fix)
        return logits, known


@contextmanager
def untouched(*given: Tensor) -> Iterator[None]:
    """The tensors are the step's own, for whoever comes next.

    Raises:
        PluginError: one of them was written to.
    """
    before = [tensor._version for tensor in given]
    yield
    if before != [tensor._version for tensor in given]:
        raise PluginError("needed the rows as they were given, got them changed in place", fix="work on x.clone()")


def _said(teacher: Teacher, x: Tensor, y: Tensor | None) -> Tensor:
    return teacher.recall(x, y) if y is not None and isinstance(teacher, Recalling) else teacher.logits(x)
