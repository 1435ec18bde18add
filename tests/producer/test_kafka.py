"""`streamkd push --to kafka://...`: every row is a message once, in order by key, and the source reads it back."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from kafka_brokers import Cluster

from streamkd.cli import cli
from streamkd.errors import LimitExceeded, SchemaMismatch, SourceError
from streamkd.producer.push import Ack, push
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Limits
from streamkd.streams.brokers.messages import FORMATS, Form, Message


@pytest.fixture(scope="module")
def brokers() -> Any:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def topic(brokers: Cluster, request: pytest.FixtureRequest) -> str:
    return brokers.create("".join(c if c.isalnum() else "-" for c in request.node.name))


def rows(count: int, first: int = 0) -> pa.RecordBatch:
    values = list(range(first, first + count))
    return pa.record_batch(
        {"x": pa.array(values, pa.float32()), "user": [f"u{v % 5}" for v in values], "label": values}
    )


def test_each_row_is_a_message_and_is_acknowledged(brokers: Cluster, topic: str) -> None:
    """JSON as the source reads it; acks count all, in increasing sequences."""
    acks: list[Ack] = []
    summary = push([rows(300), rows(200, 300)], f"kafka://{brokers.servers}/{topic}", on_ack=acks.append)
    assert (summary.sent, summary.accepted, summary.rejected, summary.duplicates) == (500, 500, 0, 0)
    assert sum(ack.records for ack in acks) == 500
    assert [ack.sequence for ack in acks] == sorted(ack.sequence for ack in acks)
    found = [json.loads(message.value()) for part in brokers.messages(topic) for message in part]
    assert sorted(each["label"] for each in found) == list(range(500))
    assert found[0].keys() == {"x", "user", "label"}


@pytest.mark.parametrize("format", ["json", "arrow"])
def test_rows_of_one_key_keep_their_order(brokers: Cluster, topic: str, format: str) -> None:
    """They are in one partition, and read back by the source they are the rows that were sent."""
    push([rows(100), rows(100, 100)], f"kafka://{brokers.servers}/{topic}?format={format}&key=user")
    schema = RecordSchema(inputs=(InputColumn(name="x"),), task="user")
    users: dict[str, list[int]] = {}
    for part in brokers.messages(topic):
        for message in part:
            [(sifted, _)] = FORMATS[format]([Message(message.offset(), message.value())], Form(schema, Limits(), "t"))
            for user, label in zip(*(sifted.rows.column(name).to_pylist() for name in ("user", "label")), strict=True):
                assert message.key().decode() == user
                users.setdefault(user, []).append(label)
    assert users == {f"u{n}": list(range(n, 200, 5)) for n in range(5)}


def test_everything_that_a_row_may_hold_is_read_back(brokers: Cluster, topic: str) -> None:
    """Lists, bytes, times, gaps and text, as JSON."""
    moment = pa.array([1_700_000_000_123_456], pa.timestamp("us", "UTC"))
    picture = (Path(__file__).parents[2] / "docs" / "page.png").read_bytes()[:100]
    columns = {"x": [[1.0, 2.5]], "seen": moment, "kind": ["ä"], "gap": pa.array([None], pa.float32()), "label": [3]}
    push([pa.record_batch({**columns, "raw": pa.array([picture])})], f"kafka://{brokers.servers}/{topic}")
    inputs = (
        InputColumn(name="x", shape=(2,)),
        InputColumn(name="seen", kind="time"),
        InputColumn(name="kind", kind="category", shape=(2,)),
        InputColumn(name="gap", missing="fill"),
    )
    [message] = [message for part in brokers.messages(topic) for message in part]
    form = Form(RecordSchema(inputs=inputs), Limits(), "t")
    [(sifted, _)] = FORMATS["json"]([Message(0, message.value())], form)
    [row] = sifted.rows.to_pylist()
    assert row["x"] == [1.0, 2.5]
    assert row["seen"].timestamp() == 1_700_000_000.123456
    assert (row["kind"], row["label"]) == ("ä", 3)


def test_large_rows_are_cut_to_what_a_message_may_hold(brokers: Cluster, topic: str) -> None:
    """As Arrow; one row that is too large is refused with what may be done."""
    wide = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(range(200_000), pa.float32()), 4_000)})
    push([wide] * 5, f"kafka://{brokers.servers}/{topic}?format=arrow")
    assert sum(len(part) for part in brokers.messages(topic)) > 4
    huge = pa.record_batch({"text": ["x" * 2_000_000]})
    with pytest.raises(LimitExceeded, match="0 records are kept") as caught:
        push([huge], f"kafka://{brokers.servers}/{topic}")
    assert "message.max.bytes" in caught.value.fix


def test_brokers_that_stay_away_end_it_in_words() -> None:
    """After the patience, with how many are kept."""
    with pytest.raises(SourceError, match="0 records are kept") as caught:
        push([rows(3)], "kafka://127.0.0.1:9/orders", patience_seconds=0.3)
    assert "see whether the brokers run" in caught.value.fix


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka://127.0.0.1:9092", "needed kafka://HOST:PORT/TOPIC"),
        ("kafka://127.0.0.1:9092/orders?format=xml", "needed kafka://HOST:PORT/TOPIC"),
        ("kafka://127.0.0.1:9092/orders?sasl.password=hunter2", "sasl.password needs env:NAME"),
        ("kafka://127.0.0.1:9092/orders?fetch.sise=1", "No such configuration property"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, said: str) -> None:
    """Before anything is sent, with one that is."""
    with pytest.raises(Exception, match=said):
        push([rows(1)], url)


def test_a_key_that_is_no_column_is_refused(brokers: Cluster, topic: str) -> None:
    """With the columns that there are."""
    with pytest.raises(SchemaMismatch, match="there is no column 'shop': x, user, label"):
        push([rows(1)], f"kafka://{brokers.servers}/{topic}?key=shop")


def test_the_command_says_what_became_of_a_file(brokers: Cluster, topic: str, tmp_path: Path) -> None:
    """And that a name of the producer is no use here."""
    pq.write_table(pa.Table.from_batches([rows(30)]), tmp_path / "rows.parquet")
    url = f"kafka://{brokers.servers}/{topic}"
    done = CliRunner().invoke(cli, ["push", str(tmp_path / "rows.parquet"), "--to", url])
    assert "30 records sent, 30 accepted, 0 rejected, 0 duplicates" in done.output
    refused = CliRunner().invoke(cli, ["push", str(tmp_path / "rows.parquet"), "--to", url, "--producer", "me"])
    assert isinstance(refused.exception, SourceError)
    assert "what is pushed to it again is there twice" in str(refused.exception)
