"""What can be asked of the source ``replay``: which data, in which order, in which forms, how often and how fast."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from streamkd.hookspecs import Options
from streamkd.streams.files.dialect import CsvDialect
from streamkd.streams.files.doubts import Doubtful
from streamkd.streams.replay import datasets, generators, variations

Positive = Annotated[int, Field(gt=0)]
HELD_OUT = 20_000


class ReplayOptions(Options):
    """What is replayed, in which order, in which forms, how often and how fast."""

    dataset: str | None = Field(default=None, description=f"one of {', '.join(datasets.NAMES)}")
    path: Path | None = Field(default=None, description="a Parquet, Arrow, Feather, CSV or JSON-lines file")
    csv: CsvDialect | None = Field(
        default=None, description="how CSV files are written; None: with commas, .tsv with tabs, and a header"
    )
    test_path: Path | None = Field(default=None, description="a file of test records")
    test_ratio: float = Field(default=0.2, ge=0, lt=1, description="held out of a file without test_path, per label")
    test_limit: int | None = Field(
        default=None,
        ge=0,
        description=f"at most so many test records; None: of a file {HELD_OUT:,}, of test records of their own all",
    )
    test: Literal["test", "rest", "last"] = Field(
        default="test",
        description="rest: test on the train records beyond per_class; last: hold out a file's end",
    )
    validation_ratio: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="held out of the train records, per label, to test on; the test records stay unread",
    )
    classes_per_task: Positive | None = Field(default=None, description="None: the file's task column, or one task")
    order: Literal["seed", "given", "time"] = Field(
        default="seed", description="of classes, tasks and records; time: by the records' event time"
    )
    request_time: str | None = Field(
        default=None, description="column of when a record came, where its label came later; orders the stream"
    )
    label_time: str | None = Field(
        default=None,
        description="column of when its label came; the same one: each record is there twice, joined by id",
    )
    seed: int | None = Field(default=None, ge=0, description="None: the configuration's seed")
    variations: tuple[str, ...] = Field(default=("plain",), description="each repeats all tasks in changed form")
    permuted: int = Field(default=0, ge=0, description="so many fixed orders of the elements, the first one plain")
    rotated: tuple[float, ...] = Field(default=(), description="angles in degrees, a form each")
    label_noise: float = Field(default=0.0, ge=0, lt=1, description="share of train labels changed within their task")
    unlabelled: float = Field(default=0.0, ge=0, le=1, description="share of train records that lose their label")
    per_class: Positive | None = Field(default=None, description="only the first train records of each class")
    repeat: bool | Positive = Field(default=False, description="true: for ever; a number: so many rounds")
    rounds: Literal["same", "changed"] = Field(
        default="same",
        description="changed: from the second on each image is a little turned, moved, thicker or thinner",
    )
    rate: float | None = Field(default=None, gt=0, description="records per second; None: as fast as they are read")
    limit: Positive | None = Field(default=None, description="the stream ends after so many records")
    accept: tuple[Doubtful, ...] = Field(
        default=(), description="what a file is refused for unless it is meant: many-labels, one-label, ..."
    )

    @field_validator("variations")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not variations.PATTERN.fullmatch(name):
                raise ValueError(f"there is no variation {name!r}: plain, invert, rotate-<degrees>, permute-<number>")
        return names

    @field_validator("dataset")
    @classmethod
    def _named(cls, name: str | None) -> str | None:
        if name is not None and name not in datasets.NAMES:
            raise ValueError(f"there is no dataset {name!r}: {', '.join(datasets.NAMES)}")
        return name

    @model_validator(mode="after")
    def _fits(self) -> "ReplayOptions":
        if (self.dataset is None) == (self.path is None):
            raise ValueError("needs either dataset or path")
        if (self.request_time is None) != (self.label_time is None):
            raise ValueError("late labels need both request_time and label_time")
        if self.request_time and self._made:
            raise ValueError(f"request_time and label_time order the stream, which {self._made} cannot be beside")
        if self.dataset and self.test_path:
            raise ValueError("test_path belongs to path; a dataset brings its own test records")
        if sum([self.variations != ("plain",), bool(self.permuted), bool(self.rotated)]) > 1:
            raise ValueError("takes one of variations, permuted and rotated")
        if self.test == "rest" and not self.per_class:
            raise ValueError("test: rest needs per_class, which leaves the rest")
        if self.rounds == "changed" and not self.repeat:
            raise ValueError("rounds: changed needs repeat, which makes rounds")
        if self.test_path and self.test != "test":
            raise ValueError(f"test: {self.test} takes test records out of the train file; test_path brings others")
        if self.test_path and self.test_ratio and "test_ratio" in self.model_fields_set:
            raise ValueError("test_ratio holds records out of a file that has no test_path; give one of them")
        if self.dataset and self.order == "time":
            raise ValueError("order: time belongs to path; no dataset has event times")
        if self.dataset in generators.NAMES and (self.order != "given" or self.classes_per_task):
            raise ValueError(
                f"{self.dataset} drifts as its records are numbered: needs order: given, no classes_per_task"
            )
        if self.dataset and self.test == "last":
            raise ValueError("test: last belongs to path; a dataset brings its own test records")
        if not self.forms or len(set(self.forms)) < len(self.forms):
            raise ValueError(f"needs at least one variation, each once, got {list(self.forms)}")
        return self

    @property
    def _made(self) -> str:
        """What is asked for that a stream in the order of its labels has no place for."""
        asked = {
            "dataset": self.dataset,
            "classes_per_task": self.classes_per_task,
            "order: seed": "order" in self.model_fields_set and self.order == "seed",
            "variations": self.forms != ("plain",),
            "repeat": self.repeat,
            "rate": self.rate,
        }
        return ", ".join(name for name, there in asked.items() if there)

    @property
    def held_out(self) -> int:
        """At most so many records are taken out of the train file."""
        return HELD_OUT if self.test_limit is None else self.test_limit

    @property
    def forms(self) -> tuple[str, ...]:
        """The variations, with ``permuted`` and ``rotated`` written out."""
        if self.permuted:
            return ("plain", *(f"permute-{number}" for number in range(1, self.permuted)))
        if self.rotated:
            return tuple(f"rotate-{angle:g}" if angle else "plain" for angle in self.rotated)
        return self.variations
