"""Times as numbers: microseconds since 1970 in UTC, and what a student sees of them.

    hour, weekday, ... ─► sin 2πp, cos 2πp   of the part p ∈ [0, 1) of its day, week, ...      age ─► years since 2000

What says no zone is in UTC. A gap is 0 in all of them, which is in the middle of every circle.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import numpy as np

from streamkd.records import Epoch, InputColumn, TimePart

GAP = np.iinfo(np.int64).min  # what numpy calls not a time
UNITS: Mapping[Epoch, tuple[int, int]] = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}
_DAY = 86_400_000_000
_YEAR = 365.25 * _DAY
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_LIMITS = tuple((d.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND for d in (datetime.min, datetime.max))  # noqa: DTZ901


def microseconds(value: object, epoch: Epoch | None = None) -> int:
    """Since 1970 of ISO 8601, or of a whole number where the unit is told.

    Raises:
        ValueError: it is neither, or of another year than 1 to 9999.
    """
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip())
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ValueError(f"needed ISO 8601, got {value[:40]!r}") from None
        return (moment - _EPOCH) // _MICROSECOND
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"needed ISO 8601, got {value!r:.40}")
    if epoch is None:
        raise ValueError(f"needed ISO 8601, got the number {value!r:.40} (epoch: s, ms, us or ns says what it counts)")
    more, less = UNITS[epoch]
    found = int(value) * more // less
    if not _LIMITS[0] <= found <= _LIMITS[1]:
        raise ValueError(f"needed a time of the years 1 to 9999, got {value!r:.40} {epoch} since 1970")
    return found


def features(moments: np.ndarray, column: InputColumn) -> np.ndarray:
    """float32 [rows, width] of microseconds [rows] int64; ``GAP`` is a gap."""
    gaps = moments == GAP
    moments = np.where(gaps, 0, moments)
    found = np.zeros((len(moments), column.width), np.float32)
    place = 0
    for part in column.parts:
        if part == "age":
            found[:, place] = (moments - _TWO_THOUSAND) / _YEAR
            place += 1
        else:
            angle = 2 * np.pi * _CIRCLES[part](moments)
            found[:, place], found[:, place + 1] = np.sin(angle), np.cos(angle)
            place += 2
    if gaps.any():
        found[gaps] = 0.0
        found[gaps, list(column.indicators)] = 1.0
    return found


_TWO_THOUSAND = 10_957 * _DAY


def _within(larger: str) -> Callable[[np.ndarray], np.ndarray]:
    """The days since the begin of the month or the year."""

    def days(moments: np.ndarray) -> np.ndarray:
        stamps = moments.view("datetime64[us]")
        return (stamps.astype("datetime64[D]") - stamps.astype(f"datetime64[{larger}]").astype("datetime64[D]")).astype(
            int
        )

    return days


_CIRCLES: Mapping[TimePart, Callable[[np.ndarray], np.ndarray]] = {
    "minute": lambda moments: moments % 3_600_000_000 / 3_600_000_000,
    "hour": lambda moments: moments % _DAY / _DAY,
    "weekday": lambda moments: (moments // _DAY + 3) % 7 / 7,  # 1970 began with a Thursday
    "day_of_month": lambda moments: _within("M")(moments) / 31,
    "day_of_year": lambda moments: _within("Y")(moments) / 365.25,
}
