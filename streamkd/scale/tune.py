"""The engine that runs a search's trials on Ray: here on a Ray of its own, or on a cluster with ``address``.

    Search ─► recordings, once, into the object store ─► trials (an actor each, milestone by milestone) ─► Search
              started() ◄── cluster                       trainable, population

The search decides which trial is next and keeps the ledger; Ray finds the place, ends what halving gives up, moves
populations on, and survives what a trial does to its process. How each trial ended is in the ledger before Ray hears
of it, so a search goes on from the ledger alone, whatever was killed.
"""

import math
import os
from typing import TYPE_CHECKING

from streamkd.errors import ConfigError
from streamkd.scale import cluster
from streamkd.search.settings import Settings

if TYPE_CHECKING:
    from streamkd.search.driver import Search

SCHEDULE_SECONDS = 300.0
"""So long a cluster may take to find a place for a trial while none runs; it may have to start machines."""
STORE_SPARE = 1.5


class RayEngine:
    """Runs trials on Ray; ``cpus`` and ``gpus`` are declared to a Ray of its own instead of counted."""

    def __init__(
        self,
        settings: Settings,
        cpus: float | None = None,
        gpus: float | None = None,
        schedule_seconds: float = SCHEDULE_SECONDS,
    ) -> None:
        self._settings, self._cpus, self._gpus, self._schedule_seconds = settings, cpus, gpus, schedule_seconds

    def run(self, search: "Search") -> None:
        """Run what the search has to run; see ``search.driver.Engine``.

        Raises:
            ConfigError: a population whose space has nothing that may change. StreamkdError: no trial fits.
        """
        settings = self._settings
        if settings.scheduler == "pbt" and not search.job.space.mutable():
            raise ConfigError(
                "needed a path that can change in a running stream, got none", where="--space",
                fix="add a rate such as optimizer.learning_rate, or use --scheduler asha",
            )  # fmt: skip
        store_bytes = int(STORE_SPARE * sum(one.records.nbytes for one in search.recordings.values()))
        with cluster.started(
            settings.address, self._declared(), self._gpus, dashboard=settings.dashboard, store_bytes=store_bytes
        ) as found:
            if found.local and not found.fits(settings.cpus_per_trial, settings.gpus_per_trial):
                raise found.too_small(settings.cpus_per_trial, settings.gpus_per_trial)
            from streamkd.scale import trials  # imports Ray, which reads its environment then

            trials.run(search, found, self._schedule_seconds)

    def _declared(self) -> float | None:
        """CPUs of a Ray of our own: as told, as many as the concurrency that was asked for takes, or as counted."""
        settings = self._settings
        if self._cpus is not None or settings.concurrency is None:
            return self._cpus
        return max(os.cpu_count() or 1, math.ceil(settings.concurrency * settings.cpus_per_trial))
