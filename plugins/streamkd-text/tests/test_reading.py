"""Bytes of a record as the text that was sent."""

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streamkd_text import reading

from streamkd.errors import PluginError
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.encoding import codec


def encoded(texts: list[str], **column: object) -> torch.Tensor:
    schema = RecordSchema(
        inputs=(InputColumn.model_validate({"name": "t", "kind": "text", "raw": True, "shape": [16], **column}),)
    )
    rows = pa.RecordBatch.from_pydict({"t": texts, "label": [0] * len(texts)})
    return torch.from_numpy(codec.encode(rows, schema, 0)[0].inputs)


@settings(deadline=None)  # the first one loads the codec
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=4))
def test_what_was_sent_is_read(texts: list[str]) -> None:
    """Through the codec and back, as far as it fits, between two characters; zeros are spaces."""
    expected = [t.replace("\0", " ").encode()[:16].decode(errors="ignore") for t in texts]
    x = encoded(texts)
    assert x.dtype == torch.int8
    assert reading.texts(x) == expected
    assert reading.texts(x.float()) == expected  # as a student gets it
    assert torch.equal(reading.rows_of(texts, x), x)


def test_a_gap_is_the_empty_text() -> None:
    """With `missing: fill` the indicator behind the bytes is no letter."""
    assert reading.texts(encoded(["", "sixteen letters!"], missing="fill")) == ["", "sixteen letters!"]


@pytest.mark.parametrize("shape", [(8, 8), (1,), ()])
def test_other_records_are_refused(shape: tuple[int, ...]) -> None:
    """An image is no text; the error has the lines of a configuration."""
    with pytest.raises(PluginError, match="raw: true"):
        reading.require_text(shape, "student x")
