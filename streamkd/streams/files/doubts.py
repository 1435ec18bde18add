"""What of a file is hardly meant: a quantity for the label, one class, a record for the header, ids for inputs.

    names, labels, columns, test records ─► doubts ─► refused with what was seen and the way out, unless accepted

A stream that is taken so gives figures that mean nothing: 100 % for a single class, 0 for a quantity. Whoever means it
says so, with ``accept: [many-labels]`` in the source or ``--accept many-labels`` of ``streamkd init``. ``describe``
asks before it writes a configuration, ``review`` before a file is played.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import SourceError
from streamkd.streams.encoding.types import is_text
from streamkd.streams.files.dialect import NUMBER, no_header, numbered
from streamkd.streams.files.formats import sniff
from streamkd.streams.files.rows import Rows

Doubtful = Literal[
    "header",
    "many-labels",
    "one-label",
    "joined-labels",
    "spaced-labels",
    "number-texts",
    "ids",
    "label-copies",
    "same-tests",
    "other-tests",
]
DOUBTFUL: tuple[Doubtful, ...] = get_args(Doubtful)
ENOUGH = 20  # records, or labels: of fewer nothing is concluded
RECORDS_EACH = 5  # a number that fewer records share than this, on average, is no class
WORDS = 0.05  # a column of numbers has at most so many words among them
SEPARATORS = "|;,+"
ID_NAME = re.compile(r"(?i:(^|[_ .-])(id|uuid|guid|key|no|nr|number|index|idx)$)|[a-z](Id|ID|No|Nr)$")
CODE = re.compile(r"[0-9a-fA-F-]{8,}")


@dataclass(frozen=True)
class Doubt:
    """One thing that is hardly meant: what was seen, and what to do about it."""

    kind: Doubtful
    said: str
    fix: str


@dataclass(frozen=True)
class Labels:
    """The different values of a label column, nulls and NaN apart, and how many records have each."""

    name: str
    values: Sequence[object]
    counts: np.ndarray

    @property
    def records(self) -> int:
        return int(self.counts.sum())


def labels_of(name: str, chunks: Iterable[pa.Array]) -> Labels:
    """The different values of a label column, in the order of their first records."""
    counts: Counter[object] = Counter()
    for chunk in chunks:
        found = pc.value_counts(chunk.drop_null())
        counts.update(dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)))
    there = [value for value in counts if value == value]
    return Labels(name, there, np.array([counts[value] for value in there], np.int64))


def refuse(doubts: Iterable[Doubt], accepted: Sequence[str], where: str, insist: str) -> None:
    """Doubts that are not accepted end the matter, all in one error; ``insist`` says how to accept, with ``{}`` in it.

    Raises:
        SourceError: what was seen and what to do, for each of them.
    """
    left = [doubt for doubt in doubts if doubt.kind not in accepted]
    if len(left) == 1:
        raise SourceError(left[0].said, where=where, fix=f"{left[0].fix}; {insist.format(left[0].kind)} if it is meant")
    if left:
        lines = [f"\n  - {doubt.said}\n    fix: {doubt.fix}" for doubt in left]
        kinds = ", ".join(dict.fromkeys(doubt.kind for doubt in left))
        raise SourceError(
            f"{len(left)} things are hardly meant:{''.join(lines)}",
            where=where,
            fix=f"one by one, as said; {insist.format(kinds)} if they are meant",
        )


def of_header(path: Path, rows: Rows) -> Iterator[Doubt]:
    """Whether the names of a CSV file's columns are rather values: numbers over numbers, words that come again."""
    names = rows.schema.names
    if sniff(path) != "csv" or numbered(names):
        return
    records = rows.pick(np.arange(min(100, len(rows))))
    if no_header(names, [column.to_pylist() for column in records.columns]):
        seen = ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
        yield Doubt(
            "header",
            f"the first line is taken for the columns' names, and looks like a record: {seen}",
            "`csv: {header: false}` under stream.source, or a line with a name for each column before it",
        )


def of_labels(labels: Labels) -> Iterator[Doubt]:
    """What a label column may hold instead of classes."""
    name, values = labels.name, labels.values
    if len(values) < 2:
        same = f"the label {values[0]!r}" if values else "no label"
        yield Doubt(
            "one-label",
            f"all {labels.records:,} records have {same} in {name!r}"
            if values
            else f"no record has a label in {name!r}",
            "name a column that tells records apart; of one class any answer is right for 100 %",
        )
        return
    yield from _many(labels)
    texts = [value for value in values if isinstance(value, str)]
    yield from _joined(name, texts)
    yield from _spaced(name, texts)


def _many(labels: Labels) -> Iterator[Doubt]:
    """Numbers that few records share are a quantity; values that hardly come again are ids or texts."""
    different, records = len(labels.values), labels.records
    singles = int((labels.counts == 1).sum())
    if records < ENOUGH:
        return
    seen = f"{labels.name!r} has {different:,} different values in {records:,} records"
    numbers = numbers_of(labels.values)
    own = records < 2 * different or (different > ENOUGH and singles > different / 2)
    if numbers is None or (own and singles == different):
        if own:
            like = ", ".join(map(repr, labels.values[:3]))
            yield Doubt(
                "many-labels",
                f"{seen}, {singles:,} of them once (such as {like}): an id or a text rather than classes",
                "name the column of the classes",
            )
    elif different > ENOUGH and (
        records < RECORDS_EACH * different or singles > different / 10 or _measured(labels, numbers)
    ):
        span = f"from {min(numbers):g} to {max(numbers):g}, {singles:,} of them once"
        yield Doubt(
            "many-labels",
            f"{seen}, {span}: a quantity rather than classes",
            "name a column of classes, or make classes of it (such as low, middle, high)",
        )


def _measured(labels: Labels, numbers: Sequence[float]) -> bool:
    """Decimals, or numbers of which those in the middle are common and those at both ends rare: what one measures."""
    if any(isinstance(value, float) for value in labels.values):
        return True
    ordered, quarter = labels.counts[np.argsort(numbers)], len(numbers) // 4
    ends = max(ordered[:quarter].mean(), ordered[-quarter:].mean())
    return bool(ends < ordered[quarter:-quarter].mean() / 2)


def _joined(name: str, texts: Sequence[str]) -> Iterator[Doubt]:
    """Several labels in one text: `a|b|c`, whose parts come again in other texts."""
    for separator in SEPARATORS:
        parts = {text: [part.strip() for part in text.split(separator)] for text in texts}
        several = {text: found for text, found in parts.items() if len(found) > 1}
        uses = Counter(part for found in parts.values() for part in set(found))
        again = [text for text, found in several.items() if all(uses[part] > 1 and part for part in found)]
        if len(again) > 1 and 2 * len(again) >= len(several):
            different = len({part for text in again for part in parts[text]})
            yield Doubt(
                "joined-labels",
                f"{name!r} joins several labels with {separator!r}: {', '.join(map(repr, again[:3]))}; "
                f"{len(texts)} combinations of {different} labels would be as many classes",
                "keep one label of each record; a record has one class",
            )
            return


def _spaced(name: str, texts: Sequence[str]) -> Iterator[Doubt]:
    """Labels that differ by spaces alone."""
    by_word: dict[str, list[str]] = {}
    for text in texts:
        by_word.setdefault(" ".join(text.split()), []).append(text)
    twins = next((found for found in by_word.values() if len(found) > 1), None)
    if twins:
        yield Doubt(
            "spaced-labels",
            f"labels in {name!r} differ by spaces alone: {', '.join(map(repr, twins))} would be {len(twins)} classes",
            "strip the labels",
        )


def numbers_of(values: Sequence[object]) -> list[float] | None:
    """Values as numbers, also those that are written as text; ``None`` where one is none."""
    if all(isinstance(value, int | float) for value in values):
        return [float(value) for value in values]  # type: ignore[arg-type]
    if all(isinstance(value, str) and NUMBER.fullmatch(value) for value in values):
        return [float(str(value).replace(",", ".")) for value in values]
    return None


def of_input(name: str, column: pa.ChunkedArray, label: pa.ChunkedArray) -> Doubt | None:
    """What a column of single numbers or texts may be instead of an input; ``label``: of the same records.

    Fractions are none of these.
    """
    if len(column) < ENOUGH or not (is_text(column.type) or pa.types.is_integer(column.type)):
        return None
    values, different = column.drop_null(), pc.count_distinct(column).as_py()
    if is_text(column.type) and different > ENOUGH and (found := _number_texts(name, values.to_pylist())):
        return found
    if why := _id(name, values, different):
        return Doubt("ids", f"the column {name!r} looks like an id: {why}", "take it out of the inputs")
    if different > 1 and _copies(column, label):
        said = f"the column {name!r} says the label: each of the {different} labels has a value of its own there"
        return Doubt("label-copies", said, "take it out of the inputs")
    return None


def _number_texts(name: str, values: Sequence[str]) -> Doubt | None:
    """Numbers as text, perhaps with some words among them."""
    words = [value for value in values if not NUMBER.fullmatch(value)]
    if len(words) > WORDS * len(values):
        return None
    said = f"holds numbers written as text, such as {values[0]!r}: each would be a word"
    if words:
        said = f"holds numbers and {len(words):,} words, such as {words[0]!r}: each number would be a word, too"
    fix = "write numbers and empty cells, with pandas: pandas.to_numeric(column, errors='coerce')"
    return Doubt("number-texts", f"the column {name!r} {said}", fix)


def _id(name: str, values: pa.ChunkedArray, different: int) -> str:
    if ID_NAME.search(name) and len(values) // 2 < different < len(values):
        return f"{different:,} of {len(values):,} records have their own, such as {values[0]}"
    if different < len(values) or not len(values):
        return ""
    if pa.types.is_integer(values.type):
        numbers = values.to_numpy()
        if np.all(numbers[1:] > numbers[:-1]) or np.all(numbers[1:] < numbers[:-1]):
            return f"it counts from {numbers[0]} to {numbers[-1]}"
        return f"each of {different:,} records has a number of its own" if ID_NAME.search(name) else ""
    texts = values.to_pylist()
    if ID_NAME.search(name) or all(CODE.fullmatch(text) for text in texts):
        return f"each of {different:,} records has its own, such as {texts[0]!r}"
    return ""


def _copies(column: pa.ChunkedArray, label: pa.ChunkedArray) -> bool:
    """Whether two columns part the records in the same groups."""
    pairs = pa.table({"ours": column, "theirs": label}).drop_null().group_by(["ours", "theirs"]).aggregate([])
    different = [pc.count_distinct(each).as_py() for each in pairs.columns]
    return len(pairs) > 1 and different == [len(pairs)] * 2
