"""Asking a teacher: guarded, timed and counted, so that a broken teacher hurts only itself.

A teacher that raises gives no answer to that batch; after three strikes it is not asked again until the learner
starts anew from scratch (the strikes are state: a resumed run must ask the same questions).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from torch import Tensor

from streamkd.errors import Overloaded, PluginError, StateError
from streamkd.teachers.former import FormerTeacher
from streamkd.teachers.snapshot import SnapshotTeacher
from streamkd.teachers.teacher import Hindsight, Incremental, Recalling, Teacher

STRIKES = 3  # chosen by hand
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Absent(Exception):
    """A teacher in a process of its own is away: nobody's fault here; ``reason`` where it has just gone."""

    def __init__(self, key: str, reason: str = "") -> None:
        super().__init__(f"teacher {key} is away")
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

    def of(self, group: str) -> Calls:
        """The tally of a teacher, or of all snapshots."""
        return self.tallies.setdefault(group, Calls())

    def ask(self, teacher: Teacher, x: Tensor, classes: int, y: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Logits [batch, classes] on raw inputs and the classes known; ``None``: it failed, or did so too often.

        ``y`` are the columns of rows that were learned: who has learned from them leaves each out of what it says.
        """
        if self.strikes.get(teacher.key, 0) < STRIKES and not getattr(teacher, "away", False):
            self.of(group(teacher)).requests += 1
        return self.guarded(
            teacher, lambda: self._checked(_said(teacher, x, y), teacher.known().to(x.device), len(x), classes)
        )

    def test_then_train(
        self, teacher: Incremental, x: Tensor, y: Tensor, learn: Tensor, then: np.ndarray | None = None
    ) -> Tensor | None:
        """What it says of each row before it learns it, [n, classes] on the rows' device; ``None``: it failed.

        ``then`` is its ``opinion`` of the rows when they came, where that was earlier.
        """

        def call() -> Tensor:
            known = teacher.known()
            if then is not None and isinstance(teacher, Hindsight):
                said = teacher.test_then_train(x, y, learn, then)
            else:
                said = teacher.test_then_train(x, y, learn)
            return self._checked(said.to(x.device), known, len(x), len(known))[0]

        return self.guarded(teacher, call)

    def guarded(self, teacher: Teacher, call: Callable[[], T]) -> T | None:
        """What a teacher's own code gives, timed; ``None``: it failed, or did so too often."""
        if self.strikes.get(teacher.key, 0) >= STRIKES:
            return None
        tally = self.of(group(teacher))
        begun = time.perf_counter()
        try:
            return call()
        except Absent as away:
            if away.reason:
                tally.failures[away.reason] += 1
            return None
        except (Overloaded, StateError):  # that it is away cannot be written down: nothing may follow from it
            raise
        except Exception:  # a plugin is a stranger's code: it hurts only itself
            tally.failures["raised"] += 1
            self.strikes[teacher.key] = self.strikes.get(teacher.key, 0) + 1
            logger.exception(
                "teacher %s failed (%d of %d, then it is off)", teacher.key, self.strikes[teacher.key], STRIKES
            )
            return None
        finally:
            tally.seconds += time.perf_counter() - begun

    @staticmethod
    def _checked(logits: Tensor, known: Tensor, rows: int, classes: int) -> tuple[Tensor, Tensor]:
        if logits.shape != (rows, classes) or known.shape != (classes,):
            got = f"{tuple(logits.shape)} and {tuple(known.shape)}"
            raise PluginError(f"needed logits {(rows, classes)} and known {(classes,)}, got {got}")
        return logits, known


def _said(teacher: Teacher, x: Tensor, y: Tensor | None) -> Tensor:
    return teacher.recall(x, y) if y is not None and isinstance(teacher, Recalling) else teacher.logits(x)
