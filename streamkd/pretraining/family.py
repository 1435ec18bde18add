"""A family of short streams, over which a gate is learned: each is drawn from a number, and no benchmark has it.

    seed ─► kind of world, order (classes, domains, drift), length, label noise, memory, pool, strangers ─► Drawn
         ─► ``pass_over``: a learner over all of it ─► Scores of the student, and of what is served

Where classes or domains come one after another whoever forgets is not noticed by what comes. So after each task the
test records of all tasks so far are asked about; where the world drifts the records themselves are, as they come.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from streamkd import config as configuration
from streamkd.evaluate.test_sets import TestSet, probabilities, sets_of
from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.learner import Learner
from streamkd.meta import artefact
from streamkd.meta.artefact import Artefact
from streamkd.plugins import Registry
from streamkd.pretraining import worlds
from streamkd.pretraining.outsiders import NATURES, Outsider, closed_form
from streamkd.pretraining.worlds import Draw, World
from streamkd.records import Chunk, RecordSchema
from streamkd.teachers.teacher import TeacherContext

Order = Literal["classes", "domains", "drift"]
ORDERS: tuple[Order, ...] = ("classes", "domains", "drift")
RECORDS = (500, 2_000)
NOISY, NOISE = 0.4, (0.1, 0.45)  # of the streams; of their labels
TESTED = 150  # records of a task
TAUGHT = 1_200  # records that strangers have learned from, under their own draw
SOME = 0.5  # of the streams have strangers, one or two
ALWAYS = ({"name": "ema"}, {"name": "memory"})
SOMETIMES = {"analytic": 0.3, "snapshot": 0.3}
PRESENT = ("linear", "forgetting")  # half of the streams that drift have them
PARTITION = "records"


class Scores(NamedTuple):
    """Accuracies of one pass."""

    student: float
    served: float

    @property
    def mean(self) -> float:
        """What a gate is judged by."""
        return (self.student + self.served) / 2


class Given:
    """A source of records that are there."""

    def __init__(self, rows: pa.RecordBatch, tests: Mapping[str, pa.RecordBatch]) -> None:
        self.partitions: tuple[str, ...] = (PARTITION,)
        self.finite = True
        self._rows, self._tests = rows, tests

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        rows = self._rows.slice(offset, limit)
        return Chunk(rows, partition, offset, offset + rows.num_rows)

    def end(self, partition: str) -> int:
        return int(self._rows.num_rows)

    def tests(self) -> Mapping[str, pa.RecordBatch]:
        return self._tests

    def close(self) -> None: ...


@dataclass(frozen=True)
class Drawn:
    """One stream: its source, what its records look like, the configuration that learns it, and who else teaches."""

    name: str
    source: Given
    schema: RecordSchema
    tree: Mapping[str, Any]
    strangers: tuple[Outsider, ...]


def draw(seed: int, records: tuple[int, int] = RECORDS) -> Drawn:
    """The stream of that number, of as many records as ``records`` says at least and at most."""
    draws = np.random.default_rng([seed, 18])
    kind: worlds.Kind = worlds.KINDS[draws.integers(len(worlds.KINDS))]
    order: Order = ORDERS[draws.integers(len(ORDERS))]
    parts = int(draws.integers(2, 5))
    one = worlds.world(kind, int(draws.integers(2, 5)) * (2 if order == "classes" else 1), parts, draws)
    length = int(np.exp(draws.uniform(*np.log(records))))
    noise = float(draws.uniform(*NOISE)) if draws.uniform() < NOISY else 0.0
    source = _source(one, order, parts, length, noise, draws)
    teachers = _teachers(order, draws)
    strangers = _strangers(one, order, parts, length, draws)
    told = [f"{100 * noise:.0f} % of labels wrong"] if noise else []
    name = ", ".join([f"{kind} by {order}", *told, *(stranger.nature for stranger in strangers)])
    return Drawn(
        name,
        source,
        worlds.schema_of(one, tasks=order != "drift"),
        _tree(seed, teachers, strangers, draws),
        tuple(strangers),
    )


def _source(one: World, order: Order, parts: int, length: int, noise: float, draws: Draw) -> Given:
    """Equal parts: of classes, of domains, or of concepts that come without a word, the first perhaps once more.

    From concept to concept classes may change their names.
    """
    classes = np.array_split(draws.permutation(one.classes), min(parts, one.classes)) if order == "classes" else []
    count = len(classes) or parts
    again, renamed = (order == "drift" and bool(draws.integers(2)) for _ in range(2))
    rows, tests = [], {}
    for part in range(count + again):
        domain = 0 if order == "classes" or part == count else part
        known = classes[part] if order == "classes" else np.arange(one.classes)
        for sort, size in (("train", length // (count + again)), ("test", TESTED)):
            labels = draws.choice(known, size)
            tasks = None if order == "drift" else [str(part)] * size
            inputs = one.records(labels, domain, draws)
            labels = (labels + domain) % one.classes if renamed else labels
            if sort == "train":
                labels = _wrong(labels, known, noise, draws)
                rows.append(worlds.table(one, labels, inputs, tasks))
            elif order != "drift":
                tests[str(part)] = worlds.table(one, labels, inputs, tasks)
    return Given(pa.Table.from_batches(rows).combine_chunks().to_batches()[0], tests)


def _wrong(labels: np.ndarray, known: np.ndarray, noise: float, draws: Draw) -> np.ndarray:
    """A part of the labels is another of those that come now."""
    if len(known) < 2:
        return labels
    others = np.array([draws.choice(known[known != label]) for label in labels])
    return np.where(draws.uniform(size=len(labels)) < noise, others, labels)


def _teachers(order: Order, draws: Draw) -> list[dict[str, Any]]:
    asked = [{"name": name} for name, share in SOMETIMES.items() if draws.uniform() < share]
    of_now = [{"name": name} for name in PRESENT] if order == "drift" and draws.integers(2) else []
    return [*ALWAYS, *asked, *of_now]


def _strangers(one: World, order: Order, parts: int, length: int, draws: Draw) -> list[Outsider]:
    """Up to two teachers from outside, who have learned from records of every domain."""
    if draws.uniform() >= SOME:
        return []
    labels = draws.integers(0, one.classes, TAUGHT)
    domains = np.array_split(np.arange(TAUGHT), 1 if order == "classes" else parts)
    x = np.concatenate([one.records(labels[rows], part, draws) for part, rows in enumerate(domains)])
    network = closed_form(torch.from_numpy(x), torch.from_numpy(labels), int(draws.integers(1 << 30)))
    found = []
    for number in range(int(draws.integers(1, 3))):
        nature = NATURES[draws.integers(len(NATURES))]
        turn = int(length * draws.uniform(0.2, 0.7))
        found.append(Outsider(f"stranger-{number}", nature, network, one.classes, turn, int(draws.integers(1 << 30))))
    return found


def _tree(seed: int, teachers: list[dict[str, Any]], strangers: Sequence[Outsider], draws: Draw) -> dict[str, Any]:
    asked = [{"name": "stranger", "id": stranger.key} for stranger in strangers]
    return {
        "name": f"family-{seed}",
        "device": "cpu",
        "seed": seed,
        "stream": {"source": {"name": "replay", "dataset": "digits"}, "batch": {"size": 10}},
        "student": {"name": "mlp", "hidden": [64]},
        "memory": {"size": int(draws.integers(60, 400))},
        "teachers": [*teachers, *asked],
        "pool": {"limit": 20},
    }


def pass_over(drawn: Drawn, begun: Artefact) -> Scores:
    """A learner over the whole stream, which begins from ``begun``; on the threads that torch has."""
    with TemporaryDirectory(prefix="streamkd-") as folder:
        artefact.write(Path(folder), begun)
        return _pass_over(drawn, {"meta": folder})


def _pass_over(drawn: Drawn, changes: Mapping[str, Any]) -> Scores:
    registry = Registry.load()
    registry.register(SimpleNamespace(streamkd_teachers=_invited(drawn.strangers)), "strangers")
    config = configuration.from_tree({**drawn.tree, **changes}, registry)
    tests = sets_of(drawn.source.tests(), drawn.schema, torch.device("cpu"))
    seen: list[Scores] = []

    def task_ended(_: str) -> None:
        asked = [test for test in tests if test.task in learner.tasks.names]
        seen.append(Scores(_accuracy(learner, learner.student, asked), _accuracy(learner, learner.served, asked)))

    learner = Learner(config, registry, drawn.source, drawn.schema, on_task_end=task_ended if tests else lambda _: None)
    while learner.advance():
        pass
    learner.end_of_stream()
    if tests:
        return Scores(*(float(np.mean(side)) for side in zip(*seen, strict=True)))
    return Scores(learner.prequential.student.overall or 0.0, learner.prequential.mixture.overall or 0.0)


def _invited(strangers: Sequence[Outsider]) -> Any:
    """The hook that brings the strangers, each as it was before any stream."""

    def make(_: Options, context: TeacherContext) -> Outsider:
        return next(stranger for stranger in strangers if stranger.key == context.key).anew(context.labels)

    @hookimpl
    def streamkd_teachers() -> Sequence[Kind]:
        return [Kind("stranger", make, Options, "a teacher from outside")]

    return streamkd_teachers


def _accuracy(learner: Learner, model: Any, tests: Sequence[TestSet]) -> float:
    column = {label: place for place, label in enumerate(learner.labels.labels)}
    right: list[np.ndarray] = []
    for test in tests:
        said = probabilities(model, test.x).argmax(1)
        right.append(said == np.array([column.get(label, -1) for label in test.labels]))
    return float(np.concatenate(right).mean())
