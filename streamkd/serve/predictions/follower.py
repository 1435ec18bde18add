"""Follows the published versions of a state directory and puts each new one before the predictor.

    state.sqlite changed? ─► which version is served? ─► read (hash checked) ─► load ─► try it ─► swap

Loading happens in a thread of its own: requests are answered by the version before until the new one has
shown that it can answer. A version that cannot be loaded or fails its trial is refused, counted and
said, and the one before stays.
"""

import dataclasses
import logging
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamkd.errors import CheckpointDamaged, NotReady, StateError, StreamkdError
from streamkd.plugins import Registry
from streamkd.serve.predictions.predictor import Predictor, ServedModel
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionInfo, VersionStore
from streamkd.telemetry import Recorder


@dataclass(frozen=True, slots=True)
class Pin:
    """A rollback that is pinned; ``newest``: the version that `unpin` serves."""

    version: int
    source_version: int | None
    newest: int


_KEPT = 3
logger = logging.getLogger(__name__)


class VersionFollower:
    """One thread that keeps the predictor on the served version; other kept versions are loaded when asked for.

    ``pin`` is the version that is pinned, as last seen; ``None`` where the newest is served.
    """

    def __init__(
        self,
        directory: StateDirectory,
        registry: Registry,
        predictor: Predictor,
        recorder: Recorder,
        keep: int = 10,
        poll_seconds: float = 0.2,
    ) -> None:
        self._directory = directory
        self._registry = registry
        self._predictor = predictor
        self._recorder = recorder
        self._keep = keep
        self._poll_seconds = poll_seconds
        self._versions: VersionStore | None = None
        self._loading = threading.Lock()
        self._loaded: OrderedDict[int, ServedModel] = OrderedDict()
        self._refused: int | None = None
        self.pin: Pin | None = None
        self.looked = threading.Event()  # once: what was published before is loaded, or cannot be
        self._poked = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._follow, name="versions", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Look now: the learner says that it has published."""
        self._poked.set()

    def list(self) -> Sequence[VersionInfo]:
        """The versions that are kept, oldest first; none before the learner has made the directory."""
        versions = self._open()
        return versions.list() if versions else []

    def get(self, version: int) -> ServedModel:
        """A kept version by number, loaded where it is not yet.

        Raises:
            NotReady: no version is published yet. StateError: that version is not kept.
        """
        current = self._predictor.current()
        if version == current.version:
            return current
        with self._loading:
            return self._ready(version)

    def seen(self, version: int) -> dict[str, Any]:
        """How many records a version has learned, and up to where; nothing of one that is not kept any more."""
        try:
            info = self._need().info(version)
        except StateError:
            return {}
        return {"records": info.records, "offsets": dict(info.offsets), "positions": dict(info.positions)}

    def rollback(self, version: int) -> int:
        """Serve an old version under a new number until ``unpin``; returns the number.

        Raises:
            NotReady: no version is published yet. StateError: that version is not kept.
        """
        with self._writing() as versions:
            number = versions.rollback(version)
        self.poke()
        return number

    def unpin(self) -> None:
        """Serve the newest learned version again."""
        with self._writing() as versions:
            versions.unpin()
        self.poke()

    def close(self) -> None:
        """Stop following; the predictor keeps its version."""
        self._closed = True
        self._poked.set()
        self._thread.join(10.0)
        if self._versions:
            self._versions.close()

    def _follow(self) -> None:
        seen: int | None = None
        said = ""
        while not self._closed:
            try:
                seen = self._look(seen)
                said = ""
            except (StreamkdError, sqlite3.Error, OSError) as fault:
                seen = None
                if str(fault) != said:
                    said = str(fault)
                    logger.warning("the published versions cannot be read: %s", said)
            self.looked.set()
            self._poked.wait(self._poll_seconds)

    def _look(self, seen: int | None) -> int | None:
        """Follow what has changed since ``seen``, a number of ``VersionStore.changes``."""
        poked = self._poked.is_set()
        self._poked.clear()
        versions = self._open()
        if versions is None:
            return seen
        now = versions.changes()
        if poked or now != seen:
            self._step(versions)
        return now

    def _step(self, versions: VersionStore) -> None:
        """Swap to the served version; at the start, where that one is damaged, to the newest that is not."""
        served, newest = versions.served(), versions.newest()
        if served is None or newest is None:
            return
        self.pin = Pin(served.version, served.source_version, newest.version) if served.pinned else None
        if served.version in (self._predictor.version, self._refused):
            return
        if not self._swap_to(served) and self._predictor.version is None:
            older = [info for info in reversed(versions.list()) if info.version < served.version]
            next(filter(self._swap_to, older), None)

    def _swap_to(self, info: VersionInfo) -> bool:
        begin = time.monotonic()
        try:
            with self._loading:
                published = self._ready(info.version)
        except Exception as fault:  # noqa: BLE001 - a plugin's student may fail on anything: the version before stays
            self._refuse(info.version, fault)
            return False
        self._predictor.swap(published)
        self._recorder.count("model_swaps_total")
        self._recorder.observe("model_swap_duration_seconds", time.monotonic() - begin)
        return True

    def _refuse(self, version: int, fault: Exception) -> None:
        if self._is_gone(version):
            self.poke()  # retention took it meanwhile: there is a newer one
            return
        self._refused = version if self._refused is None else max(self._refused, version)
        self._recorder.count("model_swaps_rejected_total", reason=_reason(fault))
        said = fault if isinstance(fault, StreamkdError) else f"its files do not fit this streamkd ({fault!r})"
        logger.warning("version %d is refused, version %s stays: %s", version, self._predictor.version, said)

    def _ready(self, version: int) -> ServedModel:
        """A version that has answered once, from the few that are kept loaded or from the disk."""
        if version in self._loaded:
            self._loaded.move_to_end(version)
            return self._loaded[version]
        versions = self._need()
        published = load_version(versions, version, self._registry)
        try_out(published)
        self._loaded[version] = published
        while len(self._loaded) > _KEPT:
            self._loaded.popitem(last=False)
        return published

    def _open(self) -> VersionStore | None:
        if self._versions is None and self._directory.exists():
            self._versions = VersionStore(self._directory, self._keep, read_only=True)
        return self._versions

    def _writing(self) -> closing[VersionStore]:
        """For a change; to follow reads only, as the learner may yet refuse what lies here and leave it as it is."""
        self._need()
        return closing(VersionStore(self._directory, self._keep))

    def _need(self) -> VersionStore:
        versions = self._open()
        if versions is None:
            raise NotReady("no version is published yet", fix="come again when the learner is ready")
        return versions

    def _is_gone(self, version: int) -> bool:
        try:
            self._need().info(version)
        except StateError:
            return True
        return False


def load_version(versions: VersionStore, version: int, registry: Registry) -> ServedModel:
    """A published version from its files; its time is its row's, so a rollback is published when it is made."""
    from streamkd.teachers import served

    info = versions.info(version)
    return dataclasses.replace(served.load(versions.read(version), registry, version), published_at=info.created)


def try_out(published: ServedModel) -> None:
    """Let a version answer one record, which also warms it up.

    Raises:
        ValueError: the answer is no row of probabilities.
    """
    schema, classes = published.schema, len(published.classes)
    answer = published.predict(np.zeros((1, *schema.shape), schema.dtype))
    if answer.shape != (1, classes) or not np.isfinite(answer).all() or not np.isclose(answer.sum(), 1.0, atol=1e-3):
        raise ValueError(f"needed {classes} probabilities that sum to 1, got {answer!r:.200}")


def _reason(fault: Exception) -> str:
    if isinstance(fault, CheckpointDamaged):
        return "damaged"
    return "not_loaded" if isinstance(fault, StreamkdError) else "failed_trial"
