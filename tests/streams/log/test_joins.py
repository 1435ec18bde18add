"""Labels that come later: each prediction becomes one record, with what was answered then, whatever the order is."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkd.errors import LogDamaged
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import LateLabels
from streamkd.streams.log import predictions
from streamkd.streams.log.joins import label_schema
from streamkd.streams.log.log import Entry, JoinReceipt, Log
from streamkd.streams.log.predictions import KeptRequest, kept_schema, key_of, with_requests

SCHEMA = RecordSchema(
    inputs=(InputColumn(name="x", shape=(2,)), InputColumn(name="words", kind="text", shape=(4,))),
    label_type="string",
    task="task",
    producer="who",
    id="key",
    event_time="at",
)
ASKED = 1_700_000_000_000_000  # µs since 1970


class Clock:
    """Seconds as a test sets them."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def kept(asked: Sequence[tuple[str, int]], first: int = 0, version: int = 7, schema: RecordSchema = SCHEMA) -> Entry:
    """Requests by id and rows; row n of all has the inputs and the answer of ``n + first``."""
    numbers = np.arange(first, first + sum(count for _, count in asked))
    x = np.stack([numbers, -numbers], 1).astype(np.float32)
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 2),
        pa.array([f"word {number}" for number in numbers]),
        pa.array([f"said {number}" for number in numbers]),
        pa.array(numbers / 1_000, pa.float32()),
        pa.array(ASKED + numbers, pa.timestamp("us", "UTC")),
    ]
    rows = pa.RecordBatch.from_arrays(columns, schema=kept_schema(schema))
    return Entry(with_requests(rows, [KeptRequest(id, count, version) for id, count in asked]), kind="predictions")


def labelled(labels: Sequence[tuple[str, str]], sequence: int | None = None) -> Entry:
    """Labels by the key of their prediction; task and labeller are those of the label's first and last letters."""
    names, values = [name for name, _ in labels], [label for _, label in labels]
    beside = {"task": [f"t{value[:1]}" for value in values], "who": [f"w{value[-1:]}" for value in values]}
    rows = pa.record_batch({"prediction_id": names, "label": values, **beside})
    assert (label_schema(SCHEMA).task, label_schema(SCHEMA).producer) == ("task", "who")
    producer = None if sequence is None else "labeller"
    return Entry(rows, producer, sequence, digest=repr(labels).encode(), kind="labels")


SETTLE = Entry(pa.record_batch({"nothing": pa.array([], pa.int8())}), kind="settle")


@dataclass
class Case:
    """A log with a clock of its own, which can be opened again."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    settings: LateLabels = field(default_factory=LateLabels)
    early_rows: int = 100

    def open(self) -> None:
        self.log = Log(
            self.folder / "log.sqlite",
            SCHEMA,
            labels=self.settings,
            early_rows=self.early_rows,
            clock=self.clock,
        )

    def put(self, *entries: Entry) -> Any:
        outcome = self.log.append_many(entries)[-1]
        assert not isinstance(outcome, Exception)
        return outcome

    def learned(self) -> list[tuple[str, str, str]]:
        """Of every record its id, what it was answered, and its label."""
        rows = self.log.read(0, max(1, self.log.end())).rows.to_pylist()
        answers = self.log.answers(0, len(rows))
        return [(row["key"], str(answers[at].label), row["label"]) for at, row in enumerate(rows)]


@contextmanager
def a_case(**settings: Any) -> Iterator[Case]:
    early_rows = settings.pop("early_rows", 100)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder), settings=LateLabels(**settings), early_rows=early_rows)
        case.open()
        yield case
        case.log.close()


def test_a_label_makes_a_record_of_its_prediction() -> None:
    """Inputs, label, task, labeller, the key as id, the time of asking as event time; beside it what was answered."""
    with a_case() as case:
        case.put(kept([("a", 1), ("b", 2)]))
        receipt = case.put(labelled([("b/1", "yes"), ("a", "no")]))
        assert (receipt.accepted, receipt.rejected, receipt.offset) == (2, 0, 2)
        row, other = case.log.read(0, 2).rows.to_pylist()
        assert (row["x"], row["words"], row["label"], row["task"], row["key"]) == (
            [2, -2],
            "word 2",
            "yes",
            "ty",
            "b/1",
        )
        assert row["at"].timestamp() * 1e6 == ASKED + 2
        assert row["who"] == "ws"
        assert other["words"] == "word 0"
        answer = case.log.answers(0, 1)[0]
        assert (answer.label, answer.version) == ("said 2", 7)
        assert answer.probability == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("key", "reason", "said"),
    [
        ("b", "unknown", "has 2 rows: name one, b/0 to b/1"),
        ("b/2", "unknown", "and no row 2"),
        ("b/x", "unknown", "is no prediction's id"),
        ("", "unknown", "is no prediction's id"),
        ("y" * 129, "unknown", "is no prediction's id"),
        ("a/0", "repeated", "has its label already"),
        ("old", "late", "is not kept any more"),
    ],
)
def test_what_is_not_joined_is_told_why(key: str, reason: str, said: str) -> None:
    """Row, reason and words for every label that no record is made of; it is counted."""
    with a_case(keep_seconds=10) as case:
        case.put(kept([("old", 1)]))
        case.clock.now += 11
        case.put(SETTLE, kept([("a", 1), ("b", 2)]), labelled([("a", "first")]))
        receipt = case.put(labelled([(key, "yes")]))
        assert isinstance(receipt, JoinReceipt)
        assert (receipt.accepted, receipt.rejected) == (0, 1)
        assert [(each.row, each.reason) for each in receipt.unmatched] == [(0, reason)]
        assert said in receipt.unmatched[0].detail
        assert case.log.label_counts()[reason] == 1


def test_an_early_label_waits_for_its_prediction() -> None:
    """It is joined once the prediction is kept, by another process too; after its time it is unknown."""
    with a_case(early_seconds=10) as case:
        receipt = case.put(labelled([("a", "yes"), ("never", "no"), ("a", "other")]))
        assert (receipt.accepted, receipt.waiting, receipt.rejected) == (2, 2, 1)
        assert (receipt.early, receipt.early_seconds) == (2, 10)
        case.log.close()
        case.open()
        case.put(kept([("a", 1)]), labelled([("a", "no longer the first")]))
        assert case.learned() == [("a", "said 0", "yes")]
        assert case.log.read(0, 1).rows.column("who").to_pylist() == ["ws"]
        assert not case.log.is_due()
        case.clock.now += 11
        assert case.log.is_due()
        assert [each.reason for each in case.put(SETTLE).unmatched] == ["unknown"]
        assert case.log.label_counts() == {
            "kept": 1,
            "joined": 1,
            "repeated": 2,
            "unknown": 1,
            "waiting": 0,
            "early": 2,
        }


def test_so_many_may_wait_for_their_prediction() -> None:
    """The next is unknown at once: labels for nothing do not fill the disk."""
    with a_case(early_rows=3) as case:
        receipt = case.put(labelled([(f"none-{n}", "yes") for n in range(5)]))
        assert (receipt.waiting, [each.row for each in receipt.unmatched]) == (3, [3, 4])


def test_the_last_label_within_the_time_wins() -> None:
    """With ``settle_seconds`` a label waits for a later one; after that the record is final."""
    with a_case(settle_seconds=5) as case:
        receipt = case.put(kept([("a", 1)]), labelled([("a", "first")]))
        assert (receipt.waiting, receipt.early) == (1, 0)
        case.clock.now += 4
        assert case.put(labelled([("a", "second")])).accepted == 1
        case.clock.now += 2
        case.put(SETTLE)
        assert case.put(labelled([("a", "third")])).rejected == 1
        assert case.learned() == [("a", "said 0", "second")]
        assert case.log.read(0, 1).rows.column("who").to_pylist() == ["wd"]
        assert case.log.label_counts()["repeated"] == 2


def test_a_label_that_settles_does_not_outlive_its_prediction() -> None:
    """It is joined before the prediction expires, though a later label might have come."""
    with a_case(settle_seconds=100, keep_seconds=10) as case:
        case.put(kept([("a", 1), ("b", 1)]), labelled([("a", "yes")]))
        case.clock.now += 11
        case.put(SETTLE)
        assert case.learned() == [("a", "said 0", "yes")]
        assert case.log.label_counts()["unlabelled"] == 1


def test_a_batch_of_labels_sent_again_counts_once() -> None:
    """Joined, waiting or refused: the receipt of the first time, and every figure as it was."""
    with a_case() as case:
        case.put(kept([("a", 1)]))
        batch = [("a", "yes"), ("early", "no")]
        first, again = case.put(labelled(batch, 0)), case.put(labelled(batch, 0))
        assert (again.duplicate, again.accepted, again.rejected) == (True, first.accepted, first.rejected)
        assert case.put(labelled([("a", "no")], 1)).rejected == 1
        assert case.put(labelled([("a", "no")], 1)).duplicate
        assert case.log.label_counts() == {"kept": 1, "joined": 1, "waiting": 1, "early": 1, "repeated": 1}


def test_the_first_prediction_of_an_id_stands() -> None:
    """One that comes again, perhaps because nobody heard that it had been kept, changes nothing."""
    with a_case() as case:
        case.put(kept([("a", 1)]))
        assert case.put(kept([("a", 1), ("a", 1), ("b", 1)], first=50)).accepted == 1
        case.put(labelled([("a", "yes"), ("b", "no")]))
        assert case.learned() == [("a", "said 0", "yes"), ("b", "said 52", "no")]


def test_large_rows_are_joined_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand labels of large rows do not become one batch of the log; their order is the labels'."""
    monkeypatch.setattr("streamkd.streams.log.joins.CHUNK_BYTES", 300)
    monkeypatch.setattr(predictions, "PAYLOAD_BYTES", 200)
    with a_case() as case:
        case.put(kept([(f"p{n}", 1) for n in range(50)]))
        order = np.random.default_rng(0).permutation(50)
        assert case.put(labelled([(f"p{n}", f"label {n}") for n in order])).offset == 50
        assert [label for *_, label in case.learned()] == [f"label {n}" for n in order]
        with case.log.file.reading() as reader:
            assert reader.execute("SELECT count(*) FROM batches").fetchone()[0] > 10


def test_a_damaged_prediction_is_no_record() -> None:
    """What was kept and is not what was written is said, and nothing is joined with it."""
    with a_case() as case:
        case.put(kept([("a", 1)]))
        with case.log.file.writing() as writer:
            writer.execute("UPDATE predictions SET payload = zeroblob(length(payload))")
        with pytest.raises(LogDamaged, match="predictions that are kept is not what was written"):
            case.put(labelled([("a", "yes")]))
        assert case.log.end() == 0


def test_the_ids_of_expired_predictions_are_forgotten_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late is told from unknown for so many requests and no more: what is kept beside the rows is bounded too."""
    monkeypatch.setattr(predictions, "REMEMBERED", 2)
    with a_case(keep_seconds=1, early_seconds=0) as case:
        case.put(*(kept([(f"p{n}", 1)]) for n in range(5)))
        case.put(labelled([("p0", "yes")]))
        case.clock.now += 2
        case.put(SETTLE)
        reasons = [each.reason for each in case.put(labelled([(f"p{n}", "yes") for n in range(5)])).unmatched]
        assert reasons == ["unknown", "unknown", "unknown", "late", "late"]
        with case.log.file.reading() as reader:
            assert reader.execute("SELECT count(*) FROM joined").fetchone()[0] == 0


def test_answers_go_with_their_records() -> None:
    """A log that is trimmed keeps no answers of what it has forgotten."""
    with a_case() as case:
        case.put(kept([(f"p{n}", 1) for n in range(4)]))
        for n in range(4):
            case.put(labelled([(f"p{n}", "yes")]))
        case.log.trim(3)
        assert [*case.log.answers(0, 9)] == [3]


@pytest.mark.parametrize(
    ("text", "key"),
    [("a", ("a", None)), ("a/0", ("a", 0)), ("a/", None), ("/0", None), ("a/-1", None), ("a/1/2", None), ("a/²", None)],
)
def test_keys(text: str, key: tuple[str, int | None] | None) -> None:
    """An id, and a row in digits."""
    assert key_of(text) == key


IDS = st.sampled_from("abcde")
KEYS = st.builds(lambda id, row: id if row is None else f"{id}/{row}", IDS, st.sampled_from([None, 0, 1, 2]))
STEPS = st.one_of(
    st.tuples(st.just("keep"), st.lists(st.tuples(IDS, st.integers(1, 2)), min_size=1, max_size=3)),
    st.tuples(st.just("label"), st.lists(st.tuples(KEYS, st.sampled_from("xyz")), min_size=1, max_size=4)),
    st.tuples(st.just("again"), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 4.0, 20.0])),
    st.tuples(st.just("settle"), st.none()),
    st.tuples(st.just("restart"), st.none()),
)


class Oracle:
    """The same in plain dictionaries; a batch of predictions expires as a whole."""

    def __init__(self, settings: LateLabels, clock: Clock) -> None:
        self.settings, self.clock = settings, clock
        self.batches: list[tuple[float, dict[str, list[int]]]] = []  # when, and of each id the numbers of its rows
        self.known: dict[str, int] = {}  # rows of every request that ever was
        self.done: set[tuple[str, int]] = set()
        self.waiting: dict[tuple[str, int | None], tuple[float, str]] = {}
        self.learned: list[tuple[str, str, str]] = []
        self.counts: Counter[str] = Counter()
        self.rows = 0

    def keep(self, asked: list[tuple[str, int]]) -> None:
        batch: dict[str, list[int]] = {}
        for id, count in asked:
            if id not in self.known:
                self.known[id] = count
                batch[id] = [*range(self.rows, self.rows + count)]
                self.counts["kept"] += count
            self.rows += count
        if batch:
            self.batches.append((self.clock.now, batch))
        for key in [key for id in batch for key in self.waiting if key[0] == id]:
            if self.settings.settle_seconds:
                self.waiting[key] = (self.clock.now + self.settings.settle_seconds, self.waiting[key][1])
            else:
                self.join(*key, self.waiting.pop(key)[1])

    def find(self, id: str, row: int | None) -> int | str:
        """The number of the row, or the reason."""
        if id not in self.known or (row is None and self.known[id] > 1) or (row or 0) >= self.known[id]:
            return "unknown"
        if (id, row or 0) in self.done:
            return "repeated"
        return next((batch[id][row or 0] for _, batch in self.batches if id in batch), "late")

    def join(self, id: str, row: int | None, label: str) -> None:
        found = self.find(id, row)
        if isinstance(found, int):
            self.done.add((id, row or 0))
            self.learned.append((id if row is None else f"{id}/{row}", f"said {found}", label))
        self.counts[found if isinstance(found, str) else "joined"] += 1

    def label(self, labels: list[tuple[str, str]]) -> None:
        for name, label in labels:
            id, _, digits = name.partition("/")
            key = (id, int(digits) if digits else None)
            found = self.find(*key)
            early = id not in self.known and self.settings.early_seconds
            settling = isinstance(found, int) and self.settings.settle_seconds
            if not early and not settling:
                self.join(*key, label)
            elif key not in self.waiting:
                seconds = self.settings.early_seconds if early else self.settings.settle_seconds
                self.waiting[key] = (self.clock.now + seconds, label)
                self.counts["early"] += bool(early)
            else:
                self.counts["repeated"] += 1
                if self.settings.settle_seconds:
                    self.waiting[key] = (self.waiting[key][0], label)

    def settle(self) -> None:
        gone = [batch for when, batch in self.batches if when <= self.clock.now - self.settings.keep_seconds]
        ripe = [key for key, (due, _) in self.waiting.items() if due <= self.clock.now]
        ripe.sort(key=lambda key: self.waiting[key][0])
        last = [key for key in self.waiting if key not in ripe and any(key[0] in batch for batch in gone)]
        for key in (*ripe, *last):
            self.join(*key, self.waiting.pop(key)[1])
        self.batches = self.batches[len(gone) :]
        rows = [(id, row) for batch in gone for id, numbers in batch.items() for row in range(len(numbers))]
        self.counts["unlabelled"] += sum(each not in self.done for each in rows)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(STEPS, min_size=1, max_size=25),
    settle_seconds=st.sampled_from([0.0, 3.0]),
    early_seconds=st.sampled_from([0.0, 5.0]),
)
def test_every_order_ends_as_plain_dictionaries_do(
    steps: list[tuple[str, Any]], settle_seconds: float, early_seconds: float
) -> None:
    """Predictions, labels, expiry and restarts in any order: the same records in the same order, and every count."""
    with a_case(settle_seconds=settle_seconds, early_seconds=early_seconds, keep_seconds=15) as case:
        oracle = Oracle(case.settings, case.clock)
        sent = -1
        for what, value in steps:
            if what == "keep":
                first = oracle.rows
                oracle.keep(value)
                case.put(kept(value, first))
            elif what == "label":
                sent, last = sent + 1, value
                oracle.label(value)
                case.put(labelled(value, sent))
            elif what == "again" and sent >= 0:
                case.put(labelled(last, sent))
            elif what == "wait":
                case.clock.now += value
            elif what == "settle":
                oracle.settle()
                case.put(SETTLE)
            elif what == "restart":
                case.log.close()
                case.open()
        assert case.learned() == oracle.learned
        counts = case.log.label_counts()
        oracle.counts["waiting"] = len(oracle.waiting)
        assert +counts == +oracle.counts
        labels = [label for what, batch in steps if what == "label" for label in batch]
        assert len(labels) == sum(counts[what] for what in ("joined", "repeated", "late", "unknown", "waiting"))
