"""The door to Prometheus: what ``families`` declares, recorded anywhere, exposed by one process.

    learner, ingress: Recorder.count/set/observe ─► drain() ─► channel ─► supervisor: Exposition.apply ─► /metrics

One process owns the numbers, the others send what changed since their last message; a child that is
restarted goes on where the sums stand. Label values are closed sets or bounded by the configuration,
and ``SERIES`` is the ceiling of all families together.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from streamkd.errors import StreamkdError
from streamkd.families import FAMILIES, Family, FamilyType

PREFIX = "streamkd_"
SERIES = 499
HELD = 4 * SERIES  # series that a recorder keeps between two drains: more than are ever exposed, and no more
VALUE = 256  # characters of a label's value
logger = logging.getLogger(__name__)


_Series = tuple[str, tuple[str, ...]]  # a family and the values of its labels
_DROPPED: _Series = ("telemetry_dropped_total", ("series",))


class Recorder:
    """What happened since the last ``drain``; cheap, thread safe, and without Prometheus."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[_Series, Any] = {}

    def count(self, family: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        if amount < 0:
            raise StreamkdError(f"a counter only rises, got {amount}", where=f"metric {family}")
        key = _key(family, "counter", labels)
        with self._lock:
            if self._has_room(key):
                self._values[key] = self._values.get(key, 0.0) + amount

    def set(self, family: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        key = _key(family, "gauge", labels)
        with self._lock:
            if self._has_room(key):
                self._values[key] = float(value)

    def remove(self, family: str, **labels: str) -> None:
        """Take a gauge's series away: a teacher left the pool, and its last worth is no worth."""
        key = _key(family, "gauge", labels)
        with self._lock:
            if self._has_room(key):
                self._values[key] = None

    def observe(self, family: str, value: float, **labels: str) -> None:
        """Add one value to a histogram."""
        key = _key(family, "histogram", labels)
        buckets = FAMILIES[family].buckets
        place = next((i for i, bound in enumerate(buckets) if value <= bound), len(buckets))
        with self._lock:
            if self._has_room(key):
                counts = self._values.setdefault(key, [0.0] + [0] * (len(buckets) + 1))
                counts[0] += float(value)
                counts[1 + place] += 1

    def _has_room(self, key: _Series) -> bool:
        """Whether a series may be kept; one that may not is counted."""
        if key in self._values or len(self._values) < HELD:
            return True
        self._values[_DROPPED] = self._values.get(_DROPPED, 0.0) + 1
        return False

    def drain(self) -> list[list[Any]]:
        """The changes since the last call, as JSON: [family, [label values], amount | value | [sum, *counts]]."""
        with self._lock:
            values, self._values = self._values, {}
        return [[family, list(labels), value] for (family, labels), value in values.items()]


class Exposition:
    """The sums of all processes, and the text that Prometheus reads. Owned by the supervisor."""

    def __init__(self, series: int = SERIES) -> None:
        self._lock = threading.Lock()
        # families without labels always have their place: no flood of labels may push out what alerts are made of
        self._room = series - sum(_cost(family) for family in FAMILIES.values() if not family.labels)
        self._refused: set[str] = set()
        self._values: dict[str, dict[tuple[str, ...], Any]] = {}
        self.apply([[name, [], _empty(family)] for name, family in FAMILIES.items() if _from_start(family)])

    def apply(self, deltas: Iterable[Any]) -> None:
        """Add what a recorder drained. A delta that is no delta of the table is refused whole.

        Raises:
            StreamkdError: an unknown family, other labels, or a value of another type.
        """
        checked = [_checked(delta) for delta in deltas]
        with self._lock:
            for name, labels, value in checked:
                self._add(name, labels, value)

    def _add(self, name: str, labels: tuple[str, ...], value: Any) -> None:
        family, series = FAMILIES[name], self._values.setdefault(name, {})
        if value is None:
            self._room += _cost(family) if labels and series.pop(labels, None) is not None else 0
            return
        if labels not in series:
            if labels and self._room < _cost(family):
                self._refuse(name, labels)
                return
            self._room -= _cost(family) if labels else 0
            series[labels] = _empty(family)
        if family.type == "gauge":
            series[labels] = value
        elif family.type == "counter":
            series[labels] += value
        else:
            series[labels] = [a + b for a, b in zip(series[labels], value, strict=True)]

    def _refuse(self, name: str, labels: tuple[str, ...]) -> None:
        if name not in self._refused:
            self._refused.add(name)
            logger.warning("no room for another series of %s%s %s: it is not exposed", PREFIX, name, labels)

    def forget(self, label: str) -> None:
        """Take away every gauge with such a label: who told them is gone, and will tell again what still is."""
        with self._lock:
            for name, family in FAMILIES.items():
                if family.type == "gauge" and label in family.labels:
                    self._room += len(self._values.pop(name, {}))

    def value(self, family: str, **labels: str) -> float | None:
        """A counter's or gauge's value as it stands; ``None`` where nothing was recorded."""
        with self._lock:
            return self._values.get(family, {}).get(_key(family, FAMILIES[family].type, labels)[1])

    def totals(self, family: str, label: str) -> dict[str, float]:
        """A counter by one of its labels, over all others."""
        place, found = FAMILIES[family].labels.index(label), Counter[str]()
        with self._lock:
            for labels, value in self._values.get(family, {}).items():
                found[labels[place]] += value
        return dict(found)

    def expose(self) -> tuple[bytes, str]:
        """The text and its content type."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterable[Any]:
        """The families as prometheus_client wants them."""
        with self._lock:
            snapshot = {name: dict(series) for name, series in self._values.items() if series}
        return [_metric(name, FAMILIES[name], snapshot[name]) for name in FAMILIES if name in snapshot]


@contextmanager
def served(exposition: Exposition, port: int) -> Iterator[int]:
    """The exposition on ``http://127.0.0.1:PORT/metrics`` until the end of the block; 0 picks a port. Yields the port.

    Raises:
        StreamkdError: the port is taken.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(exposition)
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as fault:
        said = fault.strerror or fault
        raise StreamkdError(f"needed a free port, got: {said}", where=f"127.0.0.1:{port}", fix="name another") from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _metric(name: str, family: Family, series: Mapping[tuple[str, ...], Any]) -> Any:
    from prometheus_client import core

    if family.type == "histogram":
        histogram = core.HistogramMetricFamily(PREFIX + name, family.help, labels=family.labels)
        for labels, (total, *counts) in series.items():
            histogram.add_metric(labels, _cumulative(family.buckets, counts), total)
        return histogram
    kind = core.CounterMetricFamily if family.type == "counter" else core.GaugeMetricFamily
    metric = kind(PREFIX + name, family.help, labels=family.labels)
    for labels, value in series.items():
        metric.add_metric(labels, value)
    return metric


def _cumulative(buckets: tuple[float, ...], counts: list[float]) -> list[tuple[str, float]]:
    bounds = [*(str(float(bound)) for bound in buckets), "+Inf"]
    return [(bound, sum(counts[: i + 1])) for i, bound in enumerate(bounds)]


def _key(family: str, type: FamilyType, labels: Mapping[str, str]) -> _Series:
    """The place of a series; refused where the table does not declare it."""
    declared = FAMILIES.get(family)
    if declared is None:
        raise StreamkdError("no such metric family", where=f"metric {family}", fix="declare it in FAMILIES")
    if declared.type != type:
        raise StreamkdError(f"is a {declared.type}, used as a {type}", where=f"metric {family}")
    if set(labels) != set(declared.labels):
        needed, got = ", ".join(declared.labels) or "none", ", ".join(labels) or "none"
        raise StreamkdError(f"needed the labels {needed}, got {got}", where=f"metric {family}")
    return family, tuple(str(labels[label])[:VALUE] for label in declared.labels)


def _checked(delta: Any) -> tuple[str, tuple[str, ...], Any]:
    name, labels, value = delta
    family = FAMILIES.get(name)
    if family is None or len(labels) != len(family.labels):
        raise StreamkdError(f"needed a declared family with its labels, got {delta!r}", where="metrics")
    if family.type == "histogram":
        if not isinstance(value, list) or len(value) != len(family.buckets) + 2:
            raise StreamkdError(f"needed a sum and {len(family.buckets) + 1} counts, got {value!r}", where=name)
    elif not isinstance(value, int | float) and not (value is None and family.type == "gauge"):
        raise StreamkdError(f"needed a number, got {value!r}", where=name)
    return name, tuple(map(str, labels)), value


def _cost(family: Family) -> int:
    """Series of one set of label values: a histogram has its buckets, +Inf, a sum and a count."""
    return len(family.buckets) + 3 if family.type == "histogram" else 1


def _empty(family: Family) -> Any:
    return [0.0] + [0] * (len(family.buckets) + 1) if family.type == "histogram" else 0.0


def _from_start(family: Family) -> bool:
    """Counters without labels are there from the start, so that their first rise is a rise."""
    return family.type == "counter" and not family.labels
