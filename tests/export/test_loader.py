"""The loader that goes with an artefact: its numbers are the codec's, whatever comes; what does not fit is told."""

import ast
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamkd.export import graph, loader
from streamkd.export.published import Published, encoded
from streamkd.records import InputColumn, RecordSchema

SOURCE = Path(loader.__file__).read_text()


def reader(schema: RecordSchema) -> loader.Exported:
    """A loader of records of a schema, without a graph."""
    about = graph.about(Published(None, [0, 1], schema))  # type: ignore[arg-type]
    model = loader.Exported.__new__(loader.Exported)
    model.about, model.labels, model.columns = about, about["labels"], about["columns"]
    return model


def of(**column: Any) -> loader.Exported:
    return reader(RecordSchema(inputs=(InputColumn(name="x", **column),)))


def test_it_is_a_hundred_lines_over_numpy_and_onnxruntime() -> None:
    """What it imports is the standard library beside those two."""
    assert len(SOURCE.splitlines()) <= 100
    imports = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    assert names - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def test_its_numbers_are_the_codecs(table: tuple[RecordSchema, list[dict[str, Any]]]) -> None:
    """Of every kind of column, with gaps, unseen categories, zones and lists of any length; by rows and by columns."""
    schema, rows = table
    columns = {column.name: [row[column.name] for row in rows] for column in schema.inputs}
    arrow = {
        **columns,
        "colour": [None if v is None else str(int(v) if v in (True, 1.0) else v) for v in columns["colour"]],
    }
    wanted = encoded(pa.RecordBatch.from_pydict(arrow), schema).inputs
    for given in (rows, columns):
        found = reader(schema).encode(given)
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (9, 8, 3)])
def test_an_image_is_its_pixels(shape: tuple[int, ...]) -> None:
    """Nested lists, arrays, and bytes that are decoded already: uint8 in the record's own shape."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    model = of(kind="image", shape=shape)
    for given in (image, image.tolist(), image.astype(float)):
        found = model.encode([{"x": given}])
        assert found.dtype == np.uint8
        assert np.array_equal(found[0], image)


def test_images_channels_first_are_turned() -> None:
    """Flat or nested, as the column's layout says, they are what the codec makes of them."""
    image = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
    model = of(shape=(3, 2, 4), dtype="uint8", layout="CHW")
    for given in (image, image.ravel().tolist()):
        assert np.array_equal(model.encode([{"x": given}])[0], np.moveaxis(image, 0, -1))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ({"shape": (3,)}, [1.0, 2.0], "needed 3 numbers a row, got 2"),
        ({"shape": (3,)}, None, "a gap in row 0"),
        ({"shape": (3,)}, [1.0, math.nan, 2.0], "a gap in row 0"),
        ({"shape": (2,), "missing": "fill"}, ["a", "b"], "needed 2 numbers a row, got 2 <U1"),
        ({"dtype": "uint8"}, 256, "a value that uint8 cannot hold"),
        ({"dtype": "int8"}, 1.5, "a value that int8 cannot hold"),
        ({"kind": "category", "shape": (3,)}, "", "a gap in row 0"),
        ({"kind": "time"}, None, "a gap in row 0"),
        ({"kind": "text", "shape": (16,)}, "words", "needed 16 numbers a row, got 1 <U5"),
    ],
)
def test_what_does_not_fit_is_told(column: dict[str, Any], value: Any, said: str) -> None:
    """By the column's name; a text is taken as the numbers that it is hashed to."""
    with pytest.raises(ValueError, match=f"column x: {said}"):
        of(**column).encode([{"x": value}])


def test_whole_numbers_are_kept_whole() -> None:
    """An int64 that no float holds."""
    large = 2**60 + 1
    assert of(dtype="int64").encode([{"x": large}]).tolist() == [[large]]
