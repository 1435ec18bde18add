"""Which version answers, for the learner to score: the newest, or the one that is pinned.

    published, or pinned by a command ─► follow ─► its model stands before the arriving records (``Arrivals``)

A version that this process has published is at hand; any other (a rollback, the one from before a restart) is read
from its files. What the clock decides here reaches a figure, never the weights.
"""

import logging

from streamkd.analytic import ensemble
from streamkd.errors import StreamkdError
from streamkd.evaluate.arrival import Predict
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.serve.processes.publisher import Publisher
from streamkd.state.versions import VersionInfo
from streamkd.students.columns import Columns
from streamkd.teachers.teacher import copy_of

logger = logging.getLogger("streamkd.learner")


class Answering:
    """Puts the version that users are answered by before a learner's arriving records; ``version`` is its number."""

    def __init__(self, publisher: Publisher, registry: Registry) -> None:
        self._publisher, self._registry = publisher, registry
        self._refused: int | None = None
        self.version: int | None = None

    def follow(self, learner: Learner) -> None:
        """Look which version is served now. One that cannot be read is not served either: the one before stays."""
        served = self._publisher.versions.served()
        if served is None or served.version in (self.version, self._refused) or not learner.started:
            return
        if served.records > learner.records:  # killed before a checkpoint: what it has learned comes again first
            return
        try:
            learner.arrivals.take(self._at_hand(served, learner) or self._read(served, learner))
        except StreamkdError as fault:
            self._refused = served.version
            logger.warning("version %d is not scored on arriving records: %s", served.version, fault)
            return
        self.version = served.version

    def _at_hand(self, served: VersionInfo, learner: Learner) -> Predict | None:
        model = self._publisher.model if served.version == self._publisher.version else None
        return copy_of(model).to(learner.device) if model is not None and learner.device.type != "cpu" else model

    def _read(self, served: VersionInfo, learner: Learner) -> Predict:
        published = ensemble.load(self._publisher.versions.read(served.version), self._registry, served.version)
        known = learner.labels.labels[: len(published.classes)]
        if known != published.classes:
            raise StreamkdError(f"needed the labels {known!r:.200}, got {published.classes!r:.200}")
        columns = Columns(learner.schema, [column.name for column in published.schema.inputs])
        model = published.student.to(learner.device)
        return lambda x: model(columns(x))
