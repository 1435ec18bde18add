"""Calls into plugins' code: guarded, timed and counted, so that a broken plugin hurts only itself.

    call(plugin, hook, function, ...) ─► what it gives │ None: it failed (a strike), or is off after three

Strikes belong to the state where what follows from them does: a resumed run must ask the same questions. In a rehearsal
they are ``strict``: what is wrong at once is an error at start.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from streamkd.errors import PluginError, StreamkdError
from streamkd.process import lacks_memory

STRIKES = 3  # chosen by hand
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Blamed(PluginError):
    """A plugin failed, and is named."""


class Strikes:
    """Of the plugins of one ``kind``, by name; errors by plugin and hook, and seconds, are those since the start."""

    def __init__(self, kind: str, until: str = "a start from scratch") -> None:
        self.kind, self._until = kind, until
        self.counts: dict[str, int] = {}
        self.errors: Counter[tuple[str, str]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.strict = False
        import torch  # not before: a module that only names a contract loads none

        self._gradients, self._set_gradients = torch.is_grad_enabled, torch.set_grad_enabled

    def off(self, plugin: str) -> bool:
        """Whether it is not asked any more."""
        return self.counts.get(plugin, 0) >= STRIKES

    def call(self, plugin: str, hook: str, function: Callable[..., T], *arguments: Any) -> T | None:
        """What the function gives.

        Raises:
            PluginError: it failed, and this is ``strict``. Whatever says that the machine has no memory left.
        """
        if self.counts and self.off(plugin):
            return None
        begun, gradients = time.perf_counter(), self._gradients()
        try:
            given = function(*arguments)
            if self._gradients() != gradients:
                raise PluginError("needed torch's gradients on or off as they were", fix="use `with torch.no_grad():`")
            return given
        except (Exception, SystemExit) as fault:
            self._set_gradients(gradients)
            if lacks_memory(fault):
                raise
            if self.strict:
                raise blame(f"{self.kind} {plugin}", hook, fault) from fault
            self.strike(plugin, hook, fault)
            return None
        finally:
            self.seconds[plugin] += time.perf_counter() - begun

    def strike(self, plugin: str, hook: str, fault: BaseException) -> None:
        """Count what a plugin did wrong, and say it.

        Raises:
            PluginError: this is ``strict``.
        """
        if self.strict:
            raise blame(f"{self.kind} {plugin}", hook, fault) from fault
        self.errors[plugin, hook] += 1
        count = self.counts[plugin] = self.counts.get(plugin, 0) + 1
        said = "%s (%d of %d, then it is off)"
        logger.error(said, blame(f"{self.kind} {plugin}", hook, fault), count, STRIKES, exc_info=fault)
        if self.off(plugin):
            logger.error("%s %s is off until %s", self.kind, plugin, self._until)


def blame(plugin: str, hook: str, fault: BaseException) -> PluginError:
    """The error of a plugin, by its name: an error of ours says itself what was needed and got.

    Of one that was asked by another the other is not to blame.
    """
    if isinstance(fault, Blamed):
        return fault
    if isinstance(fault, StreamkdError):
        said, fix = fault.message, fault.fix
    else:
        said, fix = f"raised {type(fault).__name__}: {fault}", ""
    check = "`streamkd plugins check` holds what is installed to its contract; or name another in the configuration"
    return Blamed(said, where=f"{plugin}, {hook}", fix=fix or check)
