"""Files as people have them are right the first time, or there is one sentence: init, replay, push and predict."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from streamkd import config
from streamkd.errors import SourceError
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.serve.predictions import client, openinference
from streamkd.serve.predictions.tensors import Faults
from streamkd.streams.encoding.arrays import encode_inputs
from streamkd.streams.encoding.codec import encode
from streamkd.streams.files import formats
from streamkd.streams.files.describe import describe
from streamkd.streams.replay.options import ReplayOptions
from streamkd.streams.replay.source import PARTITION, Replay

from .kinds import KINDS, Kind, N

TAKEN = [kind for kind in KINDS if not kind.refused]
REFUSED = [kind for kind in KINDS if kind.refused]


@cache
def _registry() -> Registry:
    return Registry.load()


def _load(text: str, folder: Path) -> config.Config:
    (folder / "written.yaml").write_text(text, "utf-8")
    return config.load(folder / "written.yaml", registry=_registry())


@pytest.mark.parametrize("kind", TAKEN, ids=lambda kind: kind.title)
def test_a_file_is_right_the_first_time(kind: Kind, tmp_path: Path) -> None:
    """What init writes loads and plays every record; pushed they are the same numbers, and asked about too."""
    path = kind.made(tmp_path)
    described = describe(path, kind.label)
    assert kind.said in "\n".join([described.text, *described.notes]), described
    loaded = _load(
        described.text.replace("order: seed", "order: given").replace("test_ratio: 0.2", "test_ratio: 0"), tmp_path
    )
    schema = loaded.stream.records
    assert schema is not None
    source = Replay(ReplayOptions.model_validate(loaded.stream.source.values), schema)
    played, refused = encode(source.read(PARTITION, 0, N).rows, schema, 0)
    assert (len(played), len(refused)) == (N - kind.lost, kind.lost)
    (batch,) = list(formats.batches(path, N))
    pushed, refused = encode(batch.select([n for n in batch.schema.names if n in _names(schema)]), schema, 0)
    if "order: time" not in described.text:
        np.testing.assert_array_equal(pushed.inputs, played.inputs)
    assert (len(pushed), len(refused)) == (N - kind.lost, kind.lost)
    faults = Faults()
    asked = _asked(batch.take(pushed.offsets), schema, faults)
    assert not faults
    np.testing.assert_array_equal(asked, pushed.inputs)


def _names(schema: RecordSchema) -> set[str | None]:
    return {column.name for column in schema.inputs} | {schema.label, schema.id, schema.event_time}


def _asked(batch: pa.RecordBatch, schema: RecordSchema, faults: Faults) -> np.ndarray:
    """What a student would see of these rows, over the inference protocol."""
    inputs = openinference.metadata(schema, ["yes", "no"], [1])["inputs"]
    body, length = client.request(batch, inputs, faults)
    request = openinference.parse(body, str(length), schema, N)
    assert not request.faults
    return encode_inputs(request.columns, schema, lambda row, column, said: pytest.fail(f"{row}, {column}: {said}"))


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.title)
def test_a_file_that_cannot_be_is_told_so(kind: Kind, tmp_path: Path) -> None:
    """One error with what was seen, where, and what to do."""
    with pytest.raises(SourceError) as raised:
        describe(kind.made(tmp_path), kind.label)
    assert kind.said in str(raised.value)
    assert raised.value.fix
    assert raised.value.where


def test_there_are_forty() -> None:
    """And more, each under a title of its own."""
    assert len({kind.title for kind in KINDS}) == len(KINDS) >= 40
