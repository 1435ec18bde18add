"""Teachers that learn record by record, each alone: how often they are right before they learn, and at what cost.

    python -m streamkd_river.bench electricity.parquet weather.parquet

A table's columns are numbers but for ``label``; those named by ``--without`` are left out. A line is written for each
teacher and table as it is done. Nothing random is drawn but what the teachers draw, from seed 0.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from streamkd.api import Incremental, InputColumn, RecordSchema, Student, TeacherContext
from streamkd_river.models import MODELS
from streamkd_river.teacher import RiverOptions, RiverTeacher

BATCH = 100  # records a call; it changes no answer


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table of the teachers and tables that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m streamkd_river.bench", description=__doc__)
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="a Parquet file in the stream's order")
    parser.add_argument("--without", nargs="*", default=["concept"], metavar="COLUMN", help="columns that nobody sees")
    known = ["last-label", "linear", *MODELS]
    parser.add_argument("--teachers", nargs="*", default=known, choices=known, metavar="TEACHER", help=", ".join(known))
    chosen = parser.parse_args(arguments)
    _line("teacher", "table", "records", "accuracy", "kappa against no change", "µs of CPU a record")
    _line(*["---"] * 6)
    for name in chosen.teachers:
        for table in chosen.tables:
            x, y = read(table, chosen.without)
            right, seconds = run(teacher(name, x.shape[1], int(y.max()) + 1), x, y)
            same = float((y[1:] == y[:-1]).sum() / len(y))
            kappa = (right - same) / (1 - same)
            _line(name, table.stem, str(len(y)), f"{right:.3f}", f"{kappa:.2f}", f"{1e6 * seconds:.0f}")


def _line(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


def read(table: Path, without: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, features] and columns of labels [n], by order of arrival."""
    columns = pq.read_table(table)
    labels = columns["label"].to_pylist()
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    named = [name for name in columns.column_names if name != "label" and name not in without]
    x = np.stack([columns[name].to_numpy() for name in named], 1).astype(np.float32)
    return torch.from_numpy(x), torch.tensor([places[label] for label in labels])


def teacher(name: str, features: int, classes: int) -> Incremental:
    """The teacher of that name, or of that River model."""
    schema = RecordSchema(inputs=(InputColumn(name="x", shape=(features,), dtype="float32"),))
    student = Student(torch.nn.Identity(), schema, 0)
    context = TeacherContext(name, student, schema, list(range(classes)), torch.device("cpu"))
    if name in MODELS:
        return RiverTeacher(RiverOptions(model=name), context)
    [entry] = entry_points(group="streamkd", name=name)
    [kind] = entry.load().streamkd_teachers()
    made: Incremental = kind.make(kind.options(), context)
    return made


def run(who: Incremental, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Prequential accuracy, and seconds of CPU a record."""
    right, begun = 0, time.process_time()
    for rows, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        said = who.test_then_train(rows, labels, torch.ones_like(labels, dtype=torch.bool))
        right += int((said.argmax(1) == labels).sum())
    return right / len(y), (time.process_time() - begun) / len(y)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
