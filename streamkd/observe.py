"""Observers: plugins that watch the learner and can never hurt it.

Each call is guarded, timed and counted; an observer that fails three times is off until the next start.
"""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from streamkd.errors import PluginError
from streamkd.strikes import Strikes
from streamkd.tasks.boundary import Boundary


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

    def __init__(self, observers: Sequence[tuple[str, Any]]) -> None:
        for name, observer in observers:
            _refuse_deaf(name, observer)
        self.strikes = Strikes("observer", until="the next start")
        self.names = tuple(name for name, _ in observers)
        self._listeners = {
            event: [(name, method) for name, o in observers if (method := getattr(o, event, None)) is not None]
            for event in self.EVENTS
        }

    def hear(self, event: str) -> bool:
        """Whether anybody has the event: what nobody hears need not be worked out."""
        return bool(self._listeners[event])

    def tell(self, event: str, *arguments: Any) -> None:
        """Call every observer that has the event."""
        listeners = self._listeners[event]
        for name, method in listeners:
            self.strikes.call(name, event, method, *arguments)
        if self.strikes.counts and any(self.strikes.off(name) for name, _ in listeners):
            for each, them in self._listeners.items():
                self._listeners[each] = [pair for pair in them if not self.strikes.off(pair[0])]


def _refuse_deaf(name: str, observer: Any) -> None:
    """One that hears nothing, or not what it seems to listen for.

    Raises:
        PluginError: a method is named as no event is, or there is none, or it would have to be awaited.
    """
    events, where = Observers.EVENTS, f"observer {name}"
    meant = [method for method in dir(observer) if method.startswith("on_") and callable(getattr(observer, method))]
    if odd := [method for method in meant if method not in events]:
        near = difflib.get_close_matches(odd[0], events, 1)
        fix = f"did you mean {near[0]}? " if near else ""
        raise PluginError(f"there is no event {odd[0]}", where=where, fix=f"{fix}events: {', '.join(events)}")
    if not meant:
        got = f"needed a method for an event, got {type(observer).__name__} without any"
        raise PluginError(got, where=where, fix=f"events: {', '.join(events)}")
    if awaited := [method for method in meant if inspect.iscoroutinefunction(getattr(observer, method))]:
        said = f"needed a function that is done when it returns, got `async def {awaited[0]}`"
        raise PluginError(said, where=where, fix="write `def`; what takes long belongs into a thread of its own")
