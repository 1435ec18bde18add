"""From the learner's served network to a published version: copy, check, write, number.

Published weights are never trained on: a version is a copy in files, and the predictions read the files. A
candidate that fails a check is counted and left; what is served stays as it is.
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from streamkd import config as configuration
from streamkd.analytic import ensemble
from streamkd.analytic.ensemble import Model
from streamkd.config import Config
from streamkd.errors import StateError
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state import candidate
from streamkd.state.directory import StateDirectory
from streamkd.state.publish import Versions
from streamkd.teachers.teacher import copy_of
from streamkd.telemetry import Recorder

CANARY = 16  # held-out records that a candidate must answer sanely
logger = logging.getLogger("streamkd.learner")


class Publisher:
    """Publishes a learner's served network into its state directory; ``model`` is the last one, as it was published."""

    def __init__(self, directory: StateDirectory, config: Config, registry: Registry, recorder: Recorder) -> None:
        self._config, self._registry, self._recorder = config, registry, recorder
        self.versions = Versions(directory, config.publish.keep)
        self.model: Model | None = None
        self._records = -1
        info = self.versions.served()
        self.version = info.version if info else None

    def publish(self, learner: Learner) -> int | None:
        """Publish what has been learned since the last time; the new version, or ``None``."""
        if not learner.started or learner.records == self._records:
            return None
        clone = copy_of(learner.served).cpu()
        reason = self._refusal(clone, learner)
        if reason is not None:
            self._recorder.count("model_swaps_rejected_total", reason=reason)
            logger.warning("a version at record %d is not published: %s", learner.records, reason)
            return None
        try:
            self.version = self.versions.publish(
                lambda folder: self._write(folder, clone, learner), records=learner.records
            )
        except StateError as fault:
            self._recorder.count("model_swaps_rejected_total", reason="not_written")
            logger.error("%s", fault)
            return None
        self.model, self._records = clone, learner.records
        return self.version

    def _write(self, folder: Path, clone: Model, learner: Learner) -> dict[str, Any]:
        options = configuration.options(self._registry, "student", "students", self._config.student)
        meta = {
            "student": {"name": self._config.student.name, "options": options.model_dump(mode="json")},
            "schema": learner.schema.only(learner.schema.student).model_dump(mode="json"),  # what a request must bring
            "classes": learner.labels.labels,
            "seed": self._config.seed,
            "records": learner.records,
            "steps": learner.steps,
            "published_at": time.time(),
        }
        return ensemble.write(folder, clone, meta)

    def _refusal(self, clone: Model, learner: Learner) -> candidate.Refusal | None:
        ring = learner.step.memory.holdout
        x = ring.x[: ring.filled].cpu() if ring.x is not None else None
        y = ring.y[: ring.filled].cpu() if x is not None else None
        return candidate.refusal(
            clone.state_dict(),
            learner.served.state_dict(),
            lambda: _probabilities(clone, x[:CANARY]) if x is not None and len(x) else torch.ones(1, 1),
            _accuracy(clone, x, y),
            _accuracy(self.model, x, y) if self.model is not None else None,
            self._config.publish.regression,
        )


@torch.no_grad()
def _probabilities(model: Model, x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(model(x), 1)


def _accuracy(model: Model | None, x: torch.Tensor | None, y: torch.Tensor | None) -> float | None:
    if model is None or x is None or y is None or not len(x):
        return None
    return float((_probabilities(model, x).argmax(1) == y).float().mean())
