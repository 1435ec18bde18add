"""What `streamkd push SOURCE` sends: datasets, files and definitions."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from streamkd.errors import ConfigError, SourceError
from streamkd.producer.outgoing import open_outgoing
from streamkd.streams.replay import datasets
from streamkd.streams.replay.source import PARTITION, Replay, ReplayOptions, describe


def test_a_dataset_is_its_train_half() -> None:
    """A named dataset is sent in its own order, in batches of the size asked for."""
    outgoing = open_outgoing("digits", batch_records=100)
    batches = list(outgoing.batches)
    assert outgoing.total == 1433
    assert {batch.num_rows for batch in batches[:-1]} == {100}
    assert pa.Table.from_batches(batches).equals(datasets.load("digits").train.combine_chunks())


def test_a_limit_ends_it() -> None:
    """limit sends the first records and says so before."""
    outgoing = open_outgoing("digits", limit=250, batch_records=100)
    assert outgoing.total == 250
    assert [batch.num_rows for batch in outgoing.batches] == [100, 100, 50]


def test_columns_are_picked_and_renamed(tmp_path: Path) -> None:
    """columns sends these columns alone, under the stream's names; an unknown one is refused with the nearest."""
    path = tmp_path / "a.csv"
    pa.csv.write_csv(pa.table({"pixels": [1, 2], "digit": [3, 4], "more": [5, 6]}), path)
    (batch,) = open_outgoing(str(path), {"digit": "label", "pixels": "x"}).batches
    assert batch.to_pydict() == {"label": [3, 4], "x": [1, 2]}
    with pytest.raises(SourceError, match=r"no column 'pixel': pixels, digit, more[\s\S]*did you mean 'pixels'"):
        list(open_outgoing(str(path), {"pixel": "x"}).batches)


def test_a_definition_is_its_stream_without_its_pace(tmp_path: Path) -> None:
    """A definition is sent record by record as it would be replayed, its seed included, as fast as it goes."""
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 7\nstream: {source: {name: replay, dataset: digits, classes_per_task: 2, rate: 1}}\n")
    outgoing = open_outgoing(str(path), batch_records=200)
    assert outgoing.total == 1433
    options = ReplayOptions(dataset="digits", classes_per_task=2, seed=7)
    schema = describe(options)
    assert schema is not None
    expected = Replay(options, schema).read(PARTITION, 0, 1433).rows
    assert pa.Table.from_batches(outgoing.batches).combine_chunks().to_batches()[0].equals(expected)


def test_a_definition_that_never_ends_needs_no_total(tmp_path: Path) -> None:
    """A stream that repeats for ever has no total, and a limit gives it one."""
    path = tmp_path / "mine.yaml"
    path.write_text("stream: {source: {name: replay, dataset: digits, repeat: true}}\n")
    assert open_outgoing(str(path)).total is None
    limited = open_outgoing(str(path), limit=2000)
    assert limited.total == sum(batch.num_rows for batch in limited.batches) == 2000


def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    """An unknown name lists the datasets; a definition that is itself pushed to has nothing to read."""
    with pytest.raises(SourceError, match=r"no dataset and no file 'digit'[\s\S]*digits, fashion-mnist"):
        open_outgoing("digit")
    path = tmp_path / "live.yaml"
    path.write_text("stream: {source: {name: flight}, records: {inputs: [{name: x}]}}\n")
    with pytest.raises(ConfigError, match="'flight' is pushed to"):
        open_outgoing(str(path))
