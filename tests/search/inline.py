"""Searches that run here, in the process of the test, over stand-ins."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import stand_ins
from stand_ins import GOOD

from streamkd.plugins import Registry
from streamkd.search import driver
from streamkd.search.course import reason_of, steps
from streamkd.search.driver import Search
from streamkd.search.ledger import TrialRecord
from streamkd.search.settings import Settings

REGISTRY = Registry.load()


class Inline:
    """An engine of a few lines: trials one after another, here."""

    def __init__(self, settings: Settings, before: Callable[[TrialRecord], Any] = lambda record: None) -> None:
        self._before = before

    def run(self, search: Search) -> None:
        while (record := search.next()) is not None and not search.stopping:
            self._before(record)
            try:
                for record in steps(search.job, search.recordings, record):  # noqa: B020
                    if not search.told(record):
                        record = replace(record, state="pruned")
                        break
            except Exception as fault:
                record = replace(record, state="failed", reason=reason_of(fault))
            search.ended(record)


def tune(out: Path, engine: Any = Inline, make: Any = stand_ins.StandIn, **more: Any) -> Any:
    """A search of stand-ins."""
    rest = {name: more.pop(name) for name in ("resume", "watches", "space", "config") if name in more}
    settings = Settings(**{"engine": "inline", "sampler": "random", "seeds": (100,), "trials": 6, **more})
    config = rest.pop("config", stand_ins.config())
    space = rest.pop("space", GOOD)
    return driver.tune(config, REGISTRY, space, settings, out, {"inline": engine}, make=make, **rest)
