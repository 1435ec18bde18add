"""What `streamkd init` tells of a file in a few lines: its label with the shares of the classes, and its inputs."""

from collections.abc import Iterator

import numpy as np

from streamkd.streams.files.columns import Column
from streamkd.streams.files.doubts import Labels
from streamkd.streams.files.roles import ColumnRoles

CLASSES, COLUMNS = 6, 4  # that are named of each kind
RARE = 0.1  # of an even share: 5 % of the records where there are two classes


def told(roles: ColumnRoles) -> Iterator[str]:
    """The label, the inputs by kind, and a class that is rare."""
    labels = roles.labels
    order = np.argsort(-labels.counts, kind="stable")
    shares = [f"{labels.values[place]!s:.40} {labels.counts[place] / labels.records:.1%}" for place in order]
    yield (
        f"The label is {roles.label.name!r}: {len(shares)} different values ({_some(shares, CLASSES)}); "
        "--label names another column."
    )
    yield f"The inputs: {'; '.join(_kinds(roles))}. Take a line out to leave a column out."
    if (rare := rarest(labels)) is not None:
        yield (
            f"Only {rare[1]:.1%} of the records are {rare[0]!r}: without it one is right for {1 - rare[1]:.1%}, so "
            "look at recall and F1 rather than accuracy; publish.class_weights, a comment now, answers it more often."
        )


def rarest(labels: Labels) -> tuple[object, float] | None:
    """The rarest class and its share of the records; ``None`` where no class is rare."""
    least = int(labels.counts.argmin())
    share = float(labels.counts[least] / labels.records)
    return (labels.values[least], share) if share < RARE / len(labels.values) else None


def _kinds(roles: ColumnRoles) -> Iterator[str]:
    words = {
        "numbers": "numbers",
        "tensor": "lists of numbers",
        "image": "images",
        "categories": "categories",
        "codes": "categories of many values",
        "text": "texts",
        "times": "times",
    }
    for holds, word in words.items():
        columns = [column for column in roles.inputs if column.holds == holds]
        if columns:
            yield f"{len(columns)} {word} ({_some([_one(column, roles) for column in columns], COLUMNS)})"


def _one(column: Column, roles: ColumnRoles) -> str:
    gaps = roles.gaps.get(column.name, 0)
    of = f" of {column.values:,}" if column.holds in ("categories", "codes") else ""
    return f"{column.name}{of}" + (f", {gaps:,} gaps" if gaps else "")


def _some(items: list[str], count: int) -> str:
    return "; ".join(items[:count]) + (f"; {len(items) - count:,} more" if len(items) > count else "")
