"""The words for data on its way from a source to the student: Arrow and numpy, no torch.

``RecordSchema`` says what a stream's records look like, ``Chunk`` is rows as a source gives
them, ``Records`` is what the codec makes of the good ones, ``Reject`` what it says of a bad one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Label = str | int
InputKind = Literal["tensor", "text", "image", "category", "time"]
TimePart = Literal["minute", "hour", "weekday", "day_of_month", "day_of_year", "age"]
Epoch = Literal["s", "ms", "us", "ns"]
_SCALING = ("scale", "mean", "std", "fit", "follow")
_OF_KINDS: Mapping[str, tuple[InputKind, ...]] = {
    "values": ("category",),
    "parts": ("time",),
    "epoch": ("time",),
    "raw": ("text",),
    "layout": ("tensor",),
    **dict.fromkeys(_SCALING, ("tensor", "text", "image", "time")),
}
ElementType = Literal["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
LabelType = Literal["int", "string"]

# Why a row was refused; a closed set, because it is the value of a metric's label.
RejectReason = Literal[
    "missing_label",
    "missing_input",
    "missing_task",
    "wrong_shape",
    "not_finite",
    "decode",
    "too_large",
    "too_many_labels",
    "late",
]


class Model(BaseModel):
    """A frozen node of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputColumn(Model):
    """One input column: what it holds on the wire and how it becomes numbers.

    ``tensor`` is a number, a boolean, a list, a fixed-size list or a fixed-shape tensor; ``text`` is a string, hashed
    into ``shape[0]`` features, or with ``raw`` its first ``shape[0]`` bytes in UTF-8, for whoever reads texts itself;
    ``image`` is PNG or JPEG bytes, decoded to ``shape`` (height, width) or (height, width, channels); numbers whose
    ``layout`` is CHW come as (channels, height, width), which ``shape`` says, and are kept as those. ``category`` is a
    string, a whole number or a boolean, a one-hot vector of ``shape[0]`` places: one for each of ``values``, the others
    for whatever else comes, by its hash. ``time`` is a timestamp, a date, or text in ISO 8601: of each part sine and
    cosine, of ``age`` the years since 2000.
    The student sees ``(value * scale - mean) / std``; with ``fit`` = N, mean and std come from the first N records of
    the stream and are kept in the checkpoint; with ``follow`` they go on, by about the last N.
    A gap (null, NaN, an empty category or time) is refused, or filled with what the student sees as 0, and beside it
    stands an indicator that is 1: one for each number of a tensor, one for anything else (a category's last place).
    """

    name: str = Field(min_length=1)
    kind: InputKind = "tensor"
    shape: tuple[int, ...] = Field(default=(), description="of one record; () is a single number")
    dtype: ElementType = "float32"
    scale: float = 1.0
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    fit: int = Field(default=0, ge=0)
    follow: bool = Field(
        default=False, description="mean and std follow the last `fit` records, for a level that moves"
    )
    pad: bool = Field(default=False, description="lists of varying length: shorter end in zeros, longer are cut")
    missing: Literal["refuse", "fill"] = Field(default="refuse", description="records with a gap in this column")
    values: tuple[str, ...] = Field(default=(), description="categories with a place of their own")
    parts: tuple[TimePart, ...] = Field(
        default=("hour", "weekday", "day_of_year"), min_length=1, description="what is read of a time, in UTC"
    )
    raw: bool = Field(
        default=False,
        description="texts come as their first bytes, in place of hashed features, to students and teachers that read "
        "texts themselves",
    )
    layout: Literal["HWC", "CHW"] = Field(
        default="HWC", description="CHW: numbers, and `shape`, come channels first: (channels, height, width)"
    )
    epoch: Epoch | None = Field(default=None, description="whole numbers are times, in this unit since 1970")

    @field_validator("values", mode="before")
    @classmethod
    def _written_out(cls, values: Any) -> Any:
        """YAML reads some names as numbers and booleans: they are what the encoding makes of them."""
        return [str(int(v)) if isinstance(v, int) else v for v in values] if _is_list(values) else values

    @model_validator(mode="after")
    def _shape_fits(self) -> "InputColumn":
        if any(length < 1 for length in self.shape):
            raise ValueError(f"every length of shape is at least 1, got {self.shape}")
        if self.kind == "text" and len(self.shape) != 1:
            raise ValueError(
                f"text needs a shape of one length, its hashed features (raw: its bytes), got {self.shape}"
            )
        if self.kind == "image" and (len(self.shape) not in (2, 3) or self.shape[2:] not in ((), (1,), (3,), (4,))):
            raise ValueError(
                f"an image needs the shape (height, width) or (height, width, 1, 3 or 4 channels), got {self.shape}"
            )
        if self.layout == "CHW" and len(self.shape) != 3:
            raise ValueError(f"layout CHW needs the shape (channels, height, width), got {self.shape}")
        if self.kind == "time" and self.shape:
            raise ValueError(f"the shape of a time follows from its parts, got {self.shape}")
        return self

    @model_validator(mode="after")
    def _normalisation_fits(self) -> "InputColumn":
        last = self.axes[-1] if self.shape else 1
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and len(value) not in (1, last):
                raise ValueError(
                    f"{name} needs one number or {last}, one per channel (the last axis; CHW: the first), "
                    f"got {len(value)}"
                )
        if np.float32(np.min(self.std)) <= 0:
            raise ValueError(f"std is greater than 0 in float32, got {self.std}")
        if self.follow and not self.fit:
            raise ValueError("follow needs fit: how many of the newest records mean and std go by")
        if not np.float32(self.scale):
            raise ValueError(f"scale is not 0: all records would be the same; got {self.scale}")
        return self

    @model_validator(mode="after")
    def _kind_fits(self) -> "InputColumn":
        for option, kinds in _OF_KINDS.items():
            if self.kind not in kinds and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option} is for kind: {' and '.join(kinds)}, got kind: {self.kind}")
        if self.raw and any(getattr(self, n) != type(self).model_fields[n].default for n in _SCALING):
            raise ValueError(f"the bytes of a raw text are no amounts: leave out {', '.join(_SCALING)}")
        if len(set(self.values)) < len(self.values) or len(set(self.parts)) < len(self.parts):
            raise ValueError("values and parts differ from one another, got one of them twice")
        if "" in self.values:
            raise ValueError("an empty category is a gap, got it among values")
        needed = len(self.values) + 1 + (self.missing == "fill")
        if self.kind == "category" and (len(self.shape) != 1 or self.shape[0] < needed):
            raise ValueError(
                f"a category needs a shape of one length, its places: one for each of values, one for gaps where they "
                f"are filled, one or more for whatever else comes; so {needed} or more, got {self.shape}"
            )
        return self

    @model_validator(mode="after")
    def _gaps_can_be(self) -> "InputColumn":
        if self.missing == "refuse":
            return self
        if self.kind == "image":
            raise ValueError("there is nothing to fill an image with; leave missing out")
        if self.kind == "tensor" and (len(self.shape) > 1 or np.dtype(self.dtype).kind != "f"):
            raise ValueError(
                f"gaps are filled in a number or a list of numbers, of a floating dtype (where a gap is NaN), "
                f"got {self.dtype} {self.shape}"
            )
        return self

    @property
    def size(self) -> int:
        """Elements that ``shape`` says: of a tensor or image those of one record, as they come."""
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[int, ...]:
        """``shape`` as it is kept: of images (height, width, channels)."""
        return (*self.shape[1:], self.shape[0]) if self.layout == "CHW" else self.shape

    @property
    def encoded_shape(self) -> tuple[int, ...]:
        """Shape of one encoded record; indicators come last."""
        filled = self.missing == "fill"
        if self.kind == "time":
            return (sum(1 if part == "age" else 2 for part in self.parts) + filled,)
        if self.kind == "text":
            return (self.shape[0] + filled,)
        if self.kind == "tensor" and filled:
            return (2 * self.size,)
        return self.axes or (1,)

    @property
    def element_type(self) -> ElementType:
        """Of one encoded record. The bytes of a text are names and no amounts, which uint8 would be."""
        if self.kind == "tensor":
            return self.dtype
        return "uint8" if self.kind == "image" else "int8" if self.raw else "float32"

    @property
    def width(self) -> int:
        """Elements of one encoded record."""
        return math.prod(self.encoded_shape)

    @property
    def indicators(self) -> range:
        """The elements of an encoded record that are 1 where there was a gap."""
        if self.missing == "refuse":
            return range(0)
        return range(self.width - (self.size if self.kind == "tensor" else 1), self.width)


def _is_list(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple)


class RecordSchema(Model):
    """The columns of a stream: inputs, and the names of the others (``None``: the stream has none).

    Records may hold more inputs than the student reads: teachers read the others.
    """

    inputs: tuple[InputColumn, ...] = Field(min_length=1)
    student: tuple[str, ...] = Field(default=(), description="the input columns that the student reads; empty: all")
    label: str = "label"
    label_type: LabelType = "int"
    task: str | None = None
    producer: str | None = Field(
        default=None, description="who labelled a record; whoever is contradicted more than others is heard less"
    )
    id: str | None = None
    event_time: str | None = None
    unlabelled: bool = Field(default=False, description="`stream.unlabelled` says it: records may lack their label")

    @field_validator("label_type", mode="before")
    @classmethod
    def _a_label_is_a_class(cls, given: object) -> object:
        if isinstance(given, str) and given.rstrip("0123456789") in ("float", "double", "number", "decimal"):
            raise ValueError(
                f"a label is a class, int or string, got {given}; a quantity (regression) is not learned: make"
                " classes of it, such as low, middle, high"
            )
        return given

    @model_validator(mode="after")
    def _names_differ(self) -> "RecordSchema":
        others = (self.task, self.producer, self.id, self.event_time)
        names = [c.name for c in self.inputs] + [self.label] + [name for name in others if name]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"each column has one role; used twice: {', '.join(twice)}")
        self.only(self.student)
        return self

    def only(self, names: Sequence[str]) -> "RecordSchema":
        """The schema as a reader of these input columns sees it, in their order; no names: all of them.

        Raises:
            ValueError: a name that is no input column, or one that comes twice.
        """
        columns = {column.name: column for column in self.inputs}
        for name in names:
            if name not in columns or list(names).count(name) > 1:
                said = "comes twice" if name in columns else f"is no input column; there are: {', '.join(columns)}"
                raise ValueError(f"{name!r} {said}")
        chosen = tuple(columns[name] for name in names) or self.inputs
        return self.model_copy(update={"inputs": chosen, "student": ()})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded record: the column's own, or one flat vector of several columns."""
        if len(self.inputs) == 1:
            return self.inputs[0].encoded_shape
        return (sum(column.width for column in self.inputs),)

    @property
    def indicators(self) -> dict[str, slice]:
        """By column with gaps that are filled: the elements of a record that tell of them."""
        found, at = {}, 0
        for column in self.inputs:
            if places := column.indicators:
                found[column.name] = slice(at + places.start, at + places.stop)
            at += column.width
        return found

    @property
    def dtype(self) -> np.dtype:
        """Element type of an encoded record; several columns of different types become float32."""
        kinds = {column.element_type for column in self.inputs}
        return np.dtype(kinds.pop() if len(kinds) == 1 else "float32")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one partition: ``rows[0]`` has ``offset``; reading goes on at ``next_offset``.

    No rows means that there is nothing to read at ``offset`` now.
    """

    rows: pa.RecordBatch
    partition: str
    offset: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class Records:
    """Encoded good rows: ``inputs`` [records, *shape] in the schema's element type, and their labels.

    The label of a record that has none is ``None``; only streams that distil such records take it. ``tasks`` is
    ``None`` where the stream has no task column, ``producers`` where it does not say who labels; one may be ``None``.
    ``offsets`` [records] int64.
    """

    inputs: np.ndarray
    labels: Sequence[Label | None]
    tasks: Sequence[Label] | None
    offsets: np.ndarray
    producers: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def labelled(self) -> "Records":
        """Those that have a label."""
        if None not in self.labels:
            return self
        return self.take([row for row, label in enumerate(self.labels) if label is not None])

    def take(self, rows: Sequence[int]) -> "Records":
        """These rows alone."""
        labels, tasks, producers = self.labels, self.tasks, self.producers
        return Records(
            self.inputs[rows],
            [labels[row] for row in rows],
            None if tasks is None else [tasks[row] for row in rows],
            self.offsets[rows],
            None if producers is None else [producers[row] for row in rows],
        )


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be learned: its place in the batch it came in, the reason, and the values seen."""

    row: int
    reason: RejectReason
    detail: str


class Source(Protocol):
    """Records by offset: the same offset gives the same record for as long as the source keeps it.

    Read by the learner. A push source's records are read from the log, which is a ``Source`` too.
    """

    partitions: tuple[str, ...]
    finite: bool

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        """Up to ``limit`` rows from ``offset`` on, without waiting."""
        ...

    def end(self, partition: str) -> int | None:
        """The offset after the last record that is there; ``None`` where the source never ends."""
        ...

    def tests(self) -> Mapping[str, pa.RecordBatch]:
        """Test records by task, in the order of the tasks; empty where there are none."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Repeating(Protocol):
    """A source that begins anew when it has come to its end, and knows how often it has."""

    def turn(self, partition: str, offset: int) -> int | None:
        """In which pass over its records the offset lies, from 1 on; ``None`` where there is only one."""
        ...


@runtime_checkable
class Late(Protocol):
    """A source whose labels come later than its records. Its offsets number the labels, in the order they come in."""

    def asked(self, partition: str, start: int, offset: int) -> tuple[pa.RecordBatch, np.ndarray]:
        """The records that came before the label at ``offset``, from the ``start``-th on, and the offsets of theirs."""
        ...
