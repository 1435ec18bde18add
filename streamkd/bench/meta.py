"""``streamkd bench meta``: how many records a new task takes with phase 2 and without.

    Omniglot's alphabets, split by the seed ─► known: `meta-train` ─► unseen: the stream, one alphabet after another
    after every batch: accuracy on the test records of the alphabet that is being learned, over all labels so far

Of each unseen character a quarter of the drawings is for testing, the others come ``PASSES`` times while their alphabet
is learned: in one pass the learner without phase 2 learns nothing of a second alphabet, and a final accuracy of 0 is
reached at once. The level of a task is 90 % of the final accuracy that the stream without phase 2 reaches on it, so
both are asked for the same; ``records_ratio`` is what phase 2 needs to get there over what is needed without, summed
over the tasks of a seed, mean over the seeds. ``own_ratio`` takes 90 % of each side's own final accuracy instead.
Variants: with MetaSGD's rates kept, the start by MAML without a gate, the gate alone.
"""

import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from streamkd import config as configuration
from streamkd.bench import book, scores, streams
from streamkd.bench.book import Progress, Row
from streamkd.bench.streams import StreamPart
from streamkd.config import Config
from streamkd.cores import compute_on
from streamkd.errors import SourceError
from streamkd.meta import artefact
from streamkd.plugins import Registry
from streamkd.pretraining.gate import Phase2, meta_train
from streamkd.streams.encoding import codec

FILE = "omniglot-small.parquet"
UNSEEN = 3  # alphabets of eight
PASSES = 4
LEVEL = 0.9
MODELS = ("student", "served")
VARIANTS: dict[str, Phase2 | None] = {
    "without": None,
    "full": Phase2(),
    "maml": Phase2(episodes=0, student_start="maml"),
    "gate": Phase2(student_start="none"),
}
Curve = list[tuple[int, float, float]]


def measure(
    seeds: Sequence[int],
    work: Path,
    *,
    file: Path | None = None,
    student: Mapping[str, Any] | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Every variant under every seed; what ``work`` holds already is not run again.

    Raises:
        SourceError: the file is not there.
    """
    file = file or Path(os.environ.get("STREAMKD_DATA", "data")) / FILE
    if not file.exists():
        raise SourceError("needed Omniglot's small set", where=str(file), fix="name it with --data FILE")
    compute_on(1)
    network = dict(student or {"name": "mlp", "hidden": [100, 100]})
    folder = work / network["name"]
    jobs = [(variant, seed) for seed in seeds for variant in dict.fromkeys(["without", *variants])]
    tasks = [(book.key_of(*job), (*job, file, folder, network)) for job in jobs]
    rows = book.run_all(tasks, lambda task: run_one(*task), folder / "meta.jsonl", 1, progress)
    return book.result("meta", rows, figures=figures(rows))


def run_one(variant: str, seed: int, file: Path, work: Path, student: Mapping[str, Any]) -> Row:
    """One variant under one seed: the curve of each unseen alphabet, [[records, student, served], ...]."""
    registry = Registry.load()
    known, train, test = (work / f"{part}-{seed}.parquet" for part in ("known", "train", "test"))
    alphabets = _split(file, seed, known, train, test)
    phase, folder = VARIANTS[variant], work / f"{variant}-{seed}"
    if phase is not None and not (folder / artefact.DOCUMENT).exists():
        meta_train(_config({"path": str(known), "test_ratio": 0}, seed, student, registry), registry, folder, phase)
    source = {"path": str(train), "test_path": str(test)}
    stream = _config(source, seed, student, registry, folder if phase else None)
    curves = {task: _from_its_begin(points) for task, points in _curves(stream, registry).items()}
    seconds = artefact.read(folder).trained_on["seconds"] if phase else 0.0
    return {"variant": variant, "seed": seed, "unseen": alphabets, "seconds": seconds, "curves": curves}


def _split(file: Path, seed: int, known: Path, train: Path, test: Path) -> list[str]:
    """Write the known alphabets, and the unseen ones in two parts; the names of the unseen."""
    table = pq.read_table(file)
    names = sorted(pc.unique(table["alphabet"]).to_pylist())
    order = [names[place] for place in np.random.default_rng(seed).permutation(len(names))]
    pq.write_table(table.filter(pc.is_in(table["alphabet"], pa.array(order[UNSEEN:]))), known)
    unseen = table.filter(pc.is_in(table["alphabet"], pa.array(order[:UNSEEN])))
    counts: Counter[str] = Counter()
    held = []
    for label in unseen["label"].to_pylist():
        counts[label] += 1
        held.append(counts[label] % 4 == 0)
    pq.write_table(unseen.filter(pa.array(held)), test)
    pq.write_table(pa.concat_tables([unseen.filter(pc.invert(pa.array(held)))] * PASSES), train)
    return order[:UNSEEN]


def _config(
    source: Mapping[str, Any], seed: int, student: Mapping[str, Any], registry: Registry, meta: Path | None = None
) -> Config:
    """The defaults, but for what the data asks for; the mean and spread are those of ink on paper."""
    image = {"name": "image", "shape": [28, 28], "dtype": "uint8", "scale": 1 / 255, "mean": 0.08, "std": 0.27}
    tree = {
        "name": "omniglot",
        "device": "cpu",
        "seed": seed,
        "stream": {
            "source": {"name": "replay", **source},
            "records": {"inputs": [image], "label": "label", "label_type": "string", "task": "alphabet"},
        },
        "student": dict(student),
        "memory": {"size": 500},
        "meta": str(meta) if meta else None,
    }
    return configuration.from_tree(tree, registry)


def _curves(config: Config, registry: Registry) -> dict[str, Curve]:
    """Accuracy on the present task's test records after each batch, by records of the whole stream."""
    learner = streams.learner_of(config, registry)
    tests = {}
    for task, rows in learner.source.tests().items():
        records, _ = codec.encode(rows, learner.schema, 0)
        tests[task] = (torch.tensor(records.inputs), records.labels)
    found: dict[str, Curve] = {}
    while learner.advance():
        task = learner.tasks.names[learner.tasks.current]
        index = {label: column for column, label in enumerate(learner.labels.labels)}
        x, labels = tests[task]
        part = StreamPart(x, torch.tensor([-1 if label is None else index.get(label, -1) for label in labels]))
        point = (learner.records, streams.accuracy(learner.student, part), streams.accuracy(learner.served, part))
        found.setdefault(task, []).append(point)
    return found


def _from_its_begin(points: Curve) -> Curve:
    """Records counted within the task."""
    before = points[0][0] - min(points[0][0], points[1][0] - points[0][0])
    return [(records - before, student, served) for records, student, served in points]


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Ratios, final accuracies and seconds, means over the seeds; ``..._std`` beside the ratios."""
    found: dict[str, float] = {}
    plain = {row["seed"]: row for row in rows if row["variant"] == "without"}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        for place, model in enumerate(MODELS, 1):
            final = [curve[-1][place] for row in mine for curve in row["curves"].values()]
            found[f"{variant}.{model}.final_accuracy"] = statistics.mean(final)
            if variant == "without":
                continue
            for name, own in (("records_ratio", False), ("own_ratio", True)):
                ratios = [_ratio(row, plain[row["seed"]], place, own) for row in mine]
                found |= scores.named({f"{variant}.{model}.{name}": ratios})
        if variant != "without":
            found[f"{variant}.training_seconds"] = statistics.mean(row["seconds"] for row in mine)
    return found


def _ratio(row: Row, plain: Row, place: int, own: bool) -> float:
    """Records needed over those needed without, summed over the tasks; the level is ``own``, or that without."""
    needed = {"with": 0, "without": 0}
    for task, curve in row["curves"].items():
        base = plain["curves"][task]
        needed["with"] += _needed(curve, LEVEL * (curve if own else base)[-1][place], place)
        needed["without"] += _needed(base, LEVEL * base[-1][place], place)
    return needed["with"] / needed["without"]


def _needed(curve: Curve, level: float, place: int) -> int:
    """Records until the level is first reached; all of the task's where it never is."""
    return next((point[0] for point in curve if point[place] >= level), curve[-1][0])
