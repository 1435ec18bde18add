"""The observer ``example``: a line in the log for each task that begins, and each version that is published."""

import logging
from collections.abc import Iterator

from streamkd.api import Boundary, Kind, Options, hookimpl

logger = logging.getLogger(__name__)


class ExampleOptions(Options):
    """It has none; give each a type, a default and a description."""


class Example:
    """Any of the methods of ``streamkd.api.Observer``; the others may be left out. It can never hurt the learner."""

    def __init__(self, options: ExampleOptions) -> None:
        self.right, self.steps = 0.0, 0

    def on_step(self, record: int, loss: float, accuracy: float) -> None:
        """After each training step; ``accuracy`` is NaN where no row had a label."""
        if accuracy == accuracy:
            self.right, self.steps = self.right + accuracy, self.steps + 1

    def on_boundary(self, boundary: Boundary) -> None:
        """A task has begun."""
        logger.info("task %s began at record %d (%s)", boundary.task, boundary.record, boundary.detector)

    def on_published(self, version: int, record: int) -> None:
        """A version was published."""
        logger.info("version %d after %d records, %.3f right", version, record, self.right / max(self.steps, 1))


@hookimpl
def streamkd_observers() -> Iterator[Kind]:
    """One observer."""
    yield Kind("example", Example, ExampleOptions, "a line for each task and each version")
