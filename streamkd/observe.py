"""Observers: plugins that watch the learner and can never hurt it.

Each call is guarded and counted; an observer that raises three times is off until the next start.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from streamkd.tasks.boundary import Boundary
from streamkd.telemetry import Recorder

STRIKES = 3
logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Any of these methods; the others may be left out."""

    def on_step(self, record: int, loss: float, accuracy: float) -> None:
        """After each training step: records trained so far, loss, earlier accuracy on its labelled rows or NaN."""
        ...

    def on_boundary(self, boundary: Boundary) -> None:
        """A task has begun."""
        ...

    def on_checkpoint(self, record: int, offsets: Mapping[str, int]) -> None:
        """A checkpoint was committed."""
        ...

    def on_published(self, version: int, record: int) -> None:
        """A version was published."""
        ...

    def on_start(self, config: Mapping[str, Any], directory: Path | None) -> None:
        """The learner begins or goes on: the resolved configuration, its state directory (``None`` in a run)."""
        ...

    def on_stop(self) -> None:
        """It stops in order, or a finite stream is over; a process that is killed does not say so."""
        ...


class Observers:
    """All observers, called one by one and guarded."""

    EVENTS = ("on_step", "on_boundary", "on_checkpoint", "on_published", "on_start", "on_stop")

    def __init__(self, observers: Sequence[tuple[str, Any]], recorder: Recorder) -> None:
        self._recorder = recorder
        self._strikes: dict[str, int] = {}
        self._listeners = {
            event: [(name, method) for name, o in observers if (method := getattr(o, event, None)) is not None]
            for event in self.EVENTS
        }
        for name, _ in observers:
            recorder.set("plugin_enabled", 1, plugin=name)

    def tell(self, event: str, *arguments: Any) -> None:
        """Call every observer that has the event."""
        for name, method in list(self._listeners[event]):
            try:
                method(*arguments)
            except Exception:  # noqa: BLE001 - a plugin is a stranger's code: it hurts only itself
                self._strike(name, event)

    def _strike(self, name: str, event: str) -> None:
        self._strikes[name] = self._strikes.get(name, 0) + 1
        self._recorder.count("plugin_errors_total", plugin=name, hook=event)
        logger.exception(  # noqa: LOG004 - called where an error is handled
            "observer %s failed in %s (%d of %d)", name, event, self._strikes[name], STRIKES
        )
        if self._strikes[name] >= STRIKES:
            logger.error("observer %s is off until the next start", name)
            self._recorder.set("plugin_enabled", 0, plugin=name)
            for listeners in self._listeners.values():
                listeners[:] = [pair for pair in listeners if pair[0] != name]
