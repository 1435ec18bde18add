"""From the learner's served network to a published version: copy, check, write, number.

Published weights are never trained on: a version is a copy in files, and the predictions read the files. A
candidate that fails a check is counted and left; what is served stays as it is.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from streamkd import config as configuration
from streamkd.choices import Choice
from streamkd.config import Config
from streamkd.errors import StateError, StreamkdError
from streamkd.evaluate.arrival import Predict
from streamkd.hookspecs import Group
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionInfo, VersionStore
from streamkd.students.columns import Columns
from streamkd.teachers import served as serving
from streamkd.teachers.served import Model
from streamkd.teachers.teacher import copy_of
from streamkd.telemetry import Recorder

CANARY = 16  # held-out records that a candidate must answer sanely
Refusal = Literal["keys", "types", "shapes", "not_finite", "canary", "regression"]
logger = logging.getLogger("streamkd.learner")


class Publisher:
    """Publishes a learner's served network into its state directory; ``model`` is the last one, as it was published."""

    def __init__(self, directory: StateDirectory, config: Config, registry: Registry, recorder: Recorder) -> None:
        self._config, self._registry, self._recorder = config, registry, recorder
        self.versions = VersionStore(directory, config.publish.keep)
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
                lambda folder: self._write(folder, clone, learner),
                records=learner.records,
                offsets=dict(learner.offsets),
                positions=learner.positions,
            )
        except StateError as fault:
            self._recorder.count("model_swaps_rejected_total", reason="not_written")
            logger.error("%s", fault)
            return None
        self.model, self._records = clone, learner.records
        return self.version

    def _write(self, folder: Path, clone: Model, learner: Learner) -> dict[str, Any]:
        meta = {
            "student": self._named("student", "students", self._config.student),
            "served": self._named("publish.model", "selectors", self._config.publish.model),
            "schema": learner.schema.only(learner.schema.student).model_dump(mode="json"),  # what a request must bring
            "classes": learner.labels.labels,
            "seed": self._config.seed,
            "records": learner.records,
            "steps": learner.steps,
            "published_at": time.time(),
        }
        return serving.write(folder, clone, meta)

    def _named(self, path: str, group: Group, choice: Choice) -> dict[str, Any]:
        """A kind and its options, as whoever reads a version takes them."""
        options = configuration.options(self._registry, path, group, choice)
        return {"name": choice.name, "options": options.model_dump(mode="json")}

    def _refusal(self, clone: Model, learner: Learner) -> Refusal | None:
        x, y = _still_true(learner)
        return refusal(
            clone.state_dict(),
            learner.served.state_dict(),
            lambda: _probabilities(clone, x[:CANARY]) if x is not None and len(x) else torch.ones(1, 1),
            _accuracy(clone, x, y),
            _accuracy(self.model, x, y) if self.model is not None else None,
            self._config.publish.regression,
        )


def _still_true(learner: Learner) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The held-out records by which a candidate is judged, on the CPU.

    Where answers as good as the served version's are given to what comes now, held-out records of classes that come
    now are of a world that may be over: then those of the other classes judge alone.
    """
    ring = learner.step.memory.holdout
    if ring.x is None:
        return None, None
    x, y = ring.x[: ring.filled].cpu(), ring.y[: ring.filled].cpu()
    now, served = learner.prequential.mixture.accuracy, learner.prequential.version.measures.accuracy
    if now is None or served is None or now < served:
        return x, y
    absent = learner.step.mixture.share.share.presence.absent()
    away = torch.from_numpy(np.isin(y.numpy(), np.flatnonzero(absent)))
    return x[away], y[away]


@torch.no_grad()
def _probabilities(model: Model, x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(model(x), 1)


def _accuracy(model: Model | None, x: torch.Tensor | None, y: torch.Tensor | None) -> float | None:
    if model is None or x is None or y is None or not len(x):
        return None
    return float((_probabilities(model, x).argmax(1) == y).float().mean())


def refusal(
    candidate: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    canary: Callable[[], torch.Tensor],
    accuracy: float | None,
    served_accuracy: float | None,
    tolerance: float,
) -> Refusal | None:
    """The first reason against a candidate, or ``None``.

    Args:
        candidate: its weights by name.
        expected: those of the network that it is a copy of.
        canary: its probabilities [n, classes] on a few records.
        accuracy: its accuracy on held-out records; ``served_accuracy`` that of the served version on the same.
        tolerance: the largest drop that is still published.
    """
    return (
        against_weights(candidate, expected)
        or against_canary(canary)
        or against_accuracy(accuracy, served_accuracy, tolerance)
    )


def against_weights(candidate: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Refusal | None:
    """Other names, element types or shapes than expected, or a number that is not finite."""
    if candidate.keys() != expected.keys():
        return "keys"
    pairs = [(candidate[name], expected[name]) for name in expected]
    if any(ours.dtype != theirs.dtype for ours, theirs in pairs):
        return "types"
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return "shapes"
    return None if all(bool(torch.isfinite(ours).all()) for ours, _ in pairs) else "not_finite"


def against_canary(predict: Callable[[], torch.Tensor]) -> Refusal | None:
    """A candidate that fails on the canary records, or answers them with what are no rows of probabilities."""
    try:
        found = predict()
        is_table = found.dim() == 2 and found.numel() > 0 and bool(torch.isfinite(found).all() and (found >= 0).all())
        return None if is_table and torch.allclose(found.sum(1), found.new_ones(len(found)), atol=1e-3) else "canary"
    except Exception as fault:  # noqa: BLE001 - a student may be a stranger's code: it must not stop the learner
        logger.warning("the candidate failed on the canary records: %r", fault)
        return "canary"


def against_accuracy(accuracy: float | None, served_accuracy: float | None, tolerance: float) -> Refusal | None:
    """A held-out accuracy that falls by more than ``tolerance`` below that of the served version."""
    if accuracy is None or served_accuracy is None:
        return None
    return "regression" if accuracy < served_accuracy - tolerance else None


class ScoredVersion:
    """The version that a learner's arriving records are scored by: the one that users are answered by.

    One that this process has published is at hand; any other (a rollback, the one from before a restart) is read from
    its files. What the clock decides here reaches a figure, never the weights.
    """

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
            learner.prequential.version.take(self._at_hand(served, learner) or self._read(served, learner))
        except StreamkdError as fault:
            self._refused = served.version
            logger.warning("version %d is not scored on arriving records: %s", served.version, fault)
            return
        self.version = served.version

    def _at_hand(self, served: VersionInfo, learner: Learner) -> Predict | None:
        model = self._publisher.model if served.version == self._publisher.version else None
        return copy_of(model).to(learner.device) if model is not None and learner.device.type != "cpu" else model

    def _read(self, served: VersionInfo, learner: Learner) -> Predict:
        published = serving.load(self._publisher.versions.read(served.version), self._registry, served.version)
        known = learner.labels.labels[: len(published.classes)]
        if known != published.classes:
            raise StreamkdError(f"needed the labels {known!r:.200}, got {published.classes!r:.200}")
        columns = Columns(learner.schema, [column.name for column in published.schema.inputs])
        model = published.student.to(learner.device)
        return lambda x: model(columns(x))
