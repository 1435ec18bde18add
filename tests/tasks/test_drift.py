"""Detectors of drift: statistics beside slow or published versions, false alarms, what a boundary does to them."""

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from streamkd import config as configuration
from streamkd import testing
from streamkd.hookspecs import Kind, Options
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.records import Records
from streamkd.streams.encoding import codec
from streamkd.streams.replay import datasets, generators
from streamkd.streams.replay import source as replay
from streamkd.streams.replay.options import ReplayOptions
from streamkd.tasks import drift
from streamkd.tasks.boundary import Boundary, TaskColumn, Tasks
from streamkd.tasks.drift import Adwin, PageHinkley
from streamkd.wiring import open_source, schema_of

KINDS = {kind.name: kind for kind in drift.streamkd_detectors()}
RIVER = pytest.mark.skipif(not importlib.util.find_spec("river"), reason="River is not here: pip install river==0.23.*")
STATIONARY = 30_000


def made(name: str, **options: Any) -> Any:
    return KINDS[name].make(KINDS[name].options(**options))


def batch(inputs: np.ndarray) -> Records:
    return Records(inputs, [0] * len(inputs), None, np.arange(len(inputs)))


def alarms(name: str, wrong: np.ndarray, inputs: np.ndarray, size: int = 10) -> list[int]:
    """The records with which ``Tasks`` begins another task, of a stream in batches, by one detector."""
    tasks = Tasks({name: made(name)})
    found = []
    for at in range(0, len(wrong), size):
        boundary = tasks.observe(batch(inputs[at : at + size]), [], at)
        if boundary is not None and boundary.detector == name:
            found.append(at)
        tasks.score(wrong[at : at + size])
    return found


def errors(rng: np.random.Generator, *stretches: tuple[int, float]) -> np.ndarray:
    """Whether records are wrong: so many with this probability, then so many with that."""
    return np.concatenate([rng.uniform(size=count) < rate for count, rate in stretches])


def slow_adwin(numbers: Sequence[float], delta: float) -> int | None:
    """ADWIN with every number kept: the first one after which some cut shows that they have risen; none may fall."""
    window: list[float] = []
    for at, number in enumerate(numbers):
        window.append(number)
        n, every = len(window), np.array(window)
        if (at + 1) % Adwin.CLOCK or n <= Adwin.GRACE:
            continue
        for cut in range(Adwin.SHORTEST, n - Adwin.SHORTEST + 1):
            share = 1 / (cut - Adwin.SHORTEST + 1) + 1 / (n - cut - Adwin.SHORTEST + 1)
            certain = np.log(2 * np.log(n) / delta)
            epsilon = np.sqrt(2 * share * every.var() * certain) + 2 / 3 * certain * share
            if every[cut:].mean() - every[:cut].mean() > epsilon:
                return at
    return None


@pytest.mark.parametrize("seed", range(4))
def test_adwin_finds_what_a_window_of_all_numbers_finds(seed: int) -> None:
    """Buckets leave out cuts, so it is as early as the slow version, or a few looks later; never earlier."""
    numbers = errors(np.random.default_rng(seed), (600, 0.1), (400, 0.45)).astype(float)
    chart, slow = Adwin(0.002), slow_adwin(numbers, 0.002)
    first = next(at for at, number in enumerate(numbers) if chart.update(number))
    assert slow is not None
    assert 600 < slow <= first <= slow + 3 * Adwin.CLOCK


@pytest.mark.parametrize("count", [1, 5, 6, 100, 1_000, 4_321])
def test_adwin_keeps_every_number_in_few_buckets(count: int) -> None:
    """Width and sum are those of all numbers, in at most five buckets of each size (six while one is made)."""
    numbers = np.random.default_rng(0).integers(0, 2, count)
    chart = Adwin(1e-300)
    for number in numbers.tolist():
        assert not chart.update(number)
    rows = chart.state_dict()["rows"]
    assert chart.width == count
    assert sum(map(sum, rows)) == numbers.sum()
    assert max(map(len, rows)) <= Adwin.BUCKETS


def test_adwin_forgets_what_was_worse() -> None:
    """Errors that become fewer are no drift; the window then holds the newer ones, so that the next rise shows."""
    rng, chart = np.random.default_rng(1), Adwin(0.002)
    assert not any(chart.update(one) for one in errors(rng, (2_000, 0.8), (1_000, 0.1)).astype(float))
    assert chart.width < 1_500
    assert any(chart.update(one) for one in errors(rng, (300, 0.5)).astype(float))


def rises(river: Any, numbers: np.ndarray) -> Iterator[int]:
    """Where River's detector tells of a change."""
    for at, number in enumerate(numbers.tolist()):
        river.update(number)
        if river.drift_detected:
            yield at


@RIVER
@pytest.mark.parametrize("seed", range(6))
def test_adwin_is_rivers(seed: int) -> None:
    """On zeros and ones the first rise is found with the same number."""
    from river.drift import ADWIN

    numbers = errors(np.random.default_rng(seed), (1_500, 0.2), (600, 0.2 + 0.05 * (1 + seed))).astype(float)
    chart = Adwin(0.002)
    ours = [at for at, number in enumerate(numbers.tolist()) if chart.update(number)]
    assert ours[:1] == list(rises(ADWIN(0.002), numbers))[:1]


@RIVER
@pytest.mark.parametrize("seed", range(6))
def test_page_hinkley_is_rivers(seed: int) -> None:
    """With the same settings, upwards and without fading, every alarm comes with the same number."""
    from river.drift import PageHinkley as Theirs

    numbers = errors(np.random.default_rng(seed), (800, 0.2), (900, 0.6), (900, 0.9)).astype(float)
    chart = PageHinkley(0.005, 20)
    ours = [at for at, number in enumerate(numbers.tolist()) if chart.update(number)]
    assert ours
    assert ours == list(rises(Theirs(30, 0.005, 20, alpha=1.0, mode="up"), numbers))


def test_page_hinkley_is_its_formula() -> None:
    """Of the sums of what is above the mean so far, less delta, the last is above the least by more than allowed."""
    numbers = np.concatenate([np.zeros(100), np.ones(100)])
    chart = PageHinkley(0.1, 10.0)
    first = next(at for at, number in enumerate(numbers.tolist()) if chart.update(number))
    sums = (numbers - numbers.cumsum() / np.arange(1, 201) - 0.1).cumsum()
    assert first == np.flatnonzero(sums - np.minimum.accumulate(sums) > 10.0)[0]


@pytest.mark.parametrize("values", [lambda r, n: r.normal(size=(n, 3)), lambda r, n: r.integers(0, 4, (n, 3))])
def test_distances_are_kolmogorovs(values: Callable[..., np.ndarray]) -> None:
    """Of each feature the statistic that scipy finds, with ties and without."""
    rng = np.random.default_rng(0)
    first, second = values(rng, 70), values(rng, 50) + np.array([0, 1, 2])
    wanted = [stats.ks_2samp(first[:, k], second[:, k]).statistic for k in range(3)]
    assert drift.distances(first, second) == pytest.approx(wanted)


def test_one_feature_of_many_is_enough() -> None:
    """A single shifted feature tells, corrected for the other 99; none of them shifted does not."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(500, 100)), rng.normal(size=(200, 100))
    assert not drift.differ(first, second, 1e-5)
    second[:, 42] += 0.8
    assert drift.differ(first, second, 1e-5)


def normal(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, 20))


def table(rng: np.random.Generator, count: int) -> np.ndarray:
    """Numbers and codes, half of one column zeros."""
    return generators.applicants(rng, count)


def images(rng: np.random.Generator, count: int) -> np.ndarray:
    """Digits, drawn again and again."""
    return load_digits().data[rng.integers(0, 1_797, count)]


def stationary(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of a student that learns, from all to a fifth, and inputs of one distribution."""
    rng = np.random.default_rng(seed)
    falling = 0.2 + 0.7 * np.exp(-np.arange(count) / 1_000)
    inputs = (normal, table, images)[seed % 3](rng, count)
    return rng.uniform(size=count) < falling, inputs.astype(np.float32)


@pytest.mark.parametrize("name", KINDS)
def test_a_stationary_stream_gives_no_alarm(name: str) -> None:
    """Thirty thousand records: at most one."""
    assert len(alarms(name, *stationary(0, STATIONARY))) <= 1


@pytest.mark.soak
@pytest.mark.parametrize("name", KINDS)
def test_false_alarms_are_rarer_than_one_in_thirty_thousand(name: str) -> None:
    """Over thirty streams of thirty thousand records each, at rates of errors from 0.02 to 0.5: at most three.

    A third of the streams are normal inputs, a third a table, a third images.
    """
    found = 0
    for seed in range(30):
        wrong, inputs = stationary(seed, STATIONARY)
        rng = np.random.default_rng(100 + seed)
        rate = (0.02, 0.05, 0.1, 0.3, 0.5)[seed % 5]
        found += len(alarms(name, wrong if seed % 2 else rng.uniform(size=STATIONARY) < rate, inputs))
    print(f"{name}: {found} false alarms in {30 * STATIONARY:,} records")
    assert found <= 3


@pytest.mark.soak
@pytest.mark.parametrize(("inputs", "classes"), [(table, 2), (images, 10)])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_student_that_learns_gives_no_alarm(
    inputs: Callable[..., np.ndarray], classes: int, noise: float, tmp_path: Path
) -> None:
    """All detectors together over thirty thousand records of one world, labels right or a fifth of them wrong: none
    tells of more than one change.
    """
    rng = np.random.default_rng(8)
    x = inputs(rng, STATIONARY)
    y = generators.FUNCTIONS[1](x) if classes == 2 else _called(x, load_digits())
    y = np.where(rng.uniform(size=STATIONARY) < noise, rng.integers(0, classes, STATIONARY), y)
    columns = {f"c{number}": column for number, column in enumerate(x.T)}
    pq.write_table(pa.table({**columns, "label": y.astype(int)}), tmp_path / "stream.parquet")
    one = learner_of(tmp_path / "stream.parquet", list(columns))
    while one.advance():
        pass
    found = Counter(boundary.detector for boundary in one.tasks.boundaries)
    assert one.records > STATIONARY * 0.9
    assert found.pop("start") == 1
    print(f"{inputs.__name__}, noise {noise}: {dict(found)}")
    assert max(found.values(), default=0) <= 1


def _called(x: np.ndarray, digits: Any) -> np.ndarray:
    """Their labels."""
    label = {row.tobytes(): one for row, one in zip(digits.data, digits.target, strict=True)}
    return np.array([label[row.tobytes()] for row in x])


def learner_of(path: Path, columns: Sequence[str]) -> Learner:
    """A small student beside every detector, over a file in its own order."""
    named = [{"name": name, "dtype": "float64", "fit": 1_000} for name in columns]
    source = {"name": "replay", "path": str(path), "order": "given", "test_ratio": 0.0}
    tree = {
        "stream": {"source": source, "records": {"inputs": named, "label": "label"}},
        "student": {"name": "mlp", "hidden": [32]},
        "memory": {"size": 200, "replay": 10},
        "vicinal": {"rows": 0},
        "teachers": [{"name": "ema"}],
        "adapt": {"every": 0},
        "detectors": [{"name": name} for name in ("task-column", "new-label", *KINDS)],
        "device": "cpu",
    }
    registry = Registry.load()
    config = configuration.from_tree(tree, registry)
    schema = schema_of(config, registry)
    source_of, _ = open_source(config, registry, schema)
    return Learner(config, registry, source_of, schema)


@pytest.mark.parametrize("name", KINDS)
def test_a_change_is_found_within_500_records(name: str) -> None:
    """Errors from a fifth to a half, or inputs that have moved, at record 3,000: one boundary, soon."""
    rng = np.random.default_rng(3)
    wrong, inputs = errors(rng, (3_000, 0.2), (3_000, 0.5)), rng.normal(size=(6_000, 20)).astype(np.float32)
    inputs[3_000:, :3] += 1.0
    (found,) = alarms(name, wrong, inputs)
    assert 3_000 < found <= 3_500


@pytest.mark.parametrize("name", KINDS)
def test_a_boundary_that_another_saw_is_not_seen_again(name: str) -> None:
    """Where the task changes with the world, the detector starts anew and adds no boundary of its own."""
    rng = np.random.default_rng(4)
    wrong, inputs = errors(rng, (2_000, 0.1), (3_000, 0.6)), rng.normal(size=(5_000, 20)).astype(np.float32)
    inputs[2_000:] += 2.0

    class Given:
        def begins(self, records: Records, new_labels: Sequence[Any], since_boundary: int) -> str | None:
            return "next" if since_boundary == 2_000 else None

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    tasks = Tasks({"given": Given(), name: made(name)})
    for at in range(0, 5_000, 10):
        tasks.observe(batch(inputs[at : at + 10]), [], at)
        tasks.score(wrong[at : at + 10])
    assert [b.detector for b in tasks.boundaries] == ["start", "given", "given"]


@pytest.mark.parametrize("name", KINDS)
def test_a_task_has_its_minimum(name: str) -> None:
    """A change within the minimum is none."""
    rng = np.random.default_rng(5)
    wrong, inputs = errors(rng, (600, 0.0), (390, 0.9)), rng.normal(size=(990, 4)).astype(np.float32)
    inputs[600:] += 3.0
    for minimum, said in ((0, True), (1_000, False)):
        tasks = Tasks({name: made(name, minimum=minimum)})
        for at in range(0, 990, 10):
            tasks.observe(batch(inputs[at : at + 10]), [], at)
            tasks.score(wrong[at : at + 10])
        assert (len(tasks.boundaries) > 1) == said


class Changes:
    """Sees a change with record 300 of every thousand."""

    within_tasks = True

    def begins(self, records: Records, new_labels: Sequence[Any], since_boundary: int) -> str | None:
        return "" if records.offsets[0] % 1_000 == 300 else None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def named(start: int, task: str) -> Records:
    return Records(np.zeros((100, 1), np.float32), [0] * 100, [task] * 100, np.arange(start, start + 100))


@pytest.mark.parametrize("order", [("task-column", "changes"), ("changes", "task-column")])
def test_a_change_within_a_task_that_the_stream_names_is_a_boundary_of_the_same_task(order: tuple[str, ...]) -> None:
    """Given boundaries come first, whoever is asked first; a name comes from the stream alone."""
    kinds = {"task-column": TaskColumn(Options()), "changes": Changes()}
    tasks = Tasks({name: kinds[name] for name in order})
    for at in range(0, 2_300, 100):
        tasks.observe(named(at, "a" if at < 1_300 else "b"), [], at)
    assert tasks.names == ["a", "b"]
    assert tasks.boundaries == [
        Boundary(0, "a", "task-column"),
        Boundary(300, "a", "changes"),
        Boundary(1_300, "b", "task-column"),
    ]


@pytest.mark.parametrize("name", KINDS)
def test_drift_within_a_named_task_is_found(name: str) -> None:
    """Once, soon after it came; to the given boundary, where inputs move as well, nothing is added."""
    rng = np.random.default_rng(7)
    wrong, inputs = errors(rng, *[(1_500, 0.1), (1_500, 0.5)] * 2), rng.normal(size=(6_000, 4)).astype(np.float32)
    inputs[1_500:3_000] += 3.0
    inputs[3_000:] += 9.0
    inputs[4_500:] += 3.0
    tasks = Tasks({"task-column": TaskColumn(Options()), name: made(name)})
    for at in range(0, 6_000, 10):
        tasks.observe(Records(inputs[at : at + 10], [0] * 10, ["ab"[at // 3_000]] * 10, np.arange(10)), [], at)
        tasks.score(wrong[at : at + 10])
    assert [(b.task, b.detector) for b in tasks.boundaries] == [(a, who) for a in "ab" for who in ("task-column", name)]
    assert 1_500 < tasks.boundaries[1].record <= 2_000
    assert 4_500 < tasks.boundaries[3].record <= 5_000


def test_without_the_detector_of_given_tasks_a_change_is_a_task_of_its_own() -> None:
    """A column that nobody was asked to follow names nothing."""
    tasks = Tasks({"changes": Changes()})
    for at in range(0, 1_500, 100):
        tasks.observe(named(at, "a"), [], at)
    assert [(b.record, b.task) for b in tasks.boundaries] == [(0, "#0"), (300, "#1"), (1_300, "#2")]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [{}, {"minimum": 0}])
def test_detectors_keep_their_contract(name: str, options: dict[str, Any]) -> None:
    """Stopped, restored and gone on, each says what it would have said; also of streams on which it speaks."""
    kind: Kind = KINDS[name]
    more = {"reference": 100, "recent": 100} if name == "two-sample" and options else {}
    testing.check_detector(kind, {**options, **more})


@pytest.mark.skipif(
    not datasets.DEBIAN.exists(), reason="Fashion-MNIST is absent: apt-get install dataset-fashion-mnist"
)
@pytest.mark.parametrize(
    ("seed", "angles"),
    [(0, 2), *(pytest.param(seed, 5, marks=pytest.mark.soak) for seed in range(5))],
)
def test_turned_images_are_found_by_their_pixels(seed: int, angles: int) -> None:
    """Of rotated Fashion-MNIST each boundary is found within 500 records, and there is no other."""
    options = ReplayOptions(dataset="fashion-mnist", per_class=600, rotated=(0, 30, 60, 90, 120)[:angles], seed=seed)
    schema = replay.describe(options)
    assert schema is not None
    rows = replay.Replay(options, schema).read(replay.PARTITION, 0, 6_000 * angles).rows
    inputs = codec.encode(rows, schema, 0)[0].inputs
    found = [at - 6_000 * turn for turn, at in enumerate(alarms("two-sample", np.zeros(len(inputs), bool), inputs), 1)]
    print(f"two-sample, seed {seed}: {found} records after each turn")
    assert len(found) == angles - 1
    assert all(0 < at <= 500 for at in found)
