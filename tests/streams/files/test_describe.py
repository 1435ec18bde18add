"""`streamkd init`: the configuration written for a file loads, plays the file, and says what was found."""

import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from streamkd import config
from streamkd.config import Config
from streamkd.errors import SourceError
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.streams.encoding.codec import encode, sift
from streamkd.streams.files import describe as described
from streamkd.streams.files import rows as files
from streamkd.streams.files.describe import describe
from streamkd.streams.replay import source as replay

DATA = Path(os.environ.get("STREAMKD_DATA", Path(__file__).parents[4] / "shared" / "data"))
DRAW = np.random.default_rng(0)
LABELS = np.arange(60) % 3


def _write(folder: Path, columns: Mapping[str, Any], name: str = "mine.parquet") -> Path:
    path = folder / name
    table = pa.table(dict(columns))
    pa.csv.write_csv(table, path) if path.suffix == ".csv" else pa.parquet.write_table(table, path)
    return path


def _load(text: str, folder: Path) -> Config:
    path = folder / "written.yaml"
    path.write_text(text, "utf-8")
    return config.load(
        path,
        registry=Registry.load(
            only=[
                "replay",
                "vicinal",
                "policies",
                "admission",
                "selectors",
                "mixture",
                "students",
                "detectors",
                "teachers",
                "recall",
                "former",
                "snapshot",
                "last-label",
                "linear",
                "crossed",
                "forgetting",
                "analytic",
                "gates",
                "optimizers",
                "per-sample",
                "match-gate",
            ]
        ),
    )


def _records(loaded: Config) -> RecordSchema:
    assert loaded.stream.records is not None
    return loaded.stream.records


def _play(loaded: Config, limit: int = 30) -> tuple[np.ndarray, list[Any]]:
    """The first records as the student gets them; none of them is refused."""
    options = replay.ReplayOptions.model_validate(loaded.stream.source.values)
    source = replay.Replay(options, _records(loaded))
    rows, rejects = sift(source.read(replay.PARTITION, 0, limit).rows, _records(loaded))
    assert rejects == []
    encoded, rejects = encode(rows, _records(loaded), 0)
    assert rejects == []
    return encoded.inputs, list(encoded.labels)


def _png(shape: tuple[int, ...], value: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("stem", ["2026-01-01", "7", "true", "a b"])
def test_a_stream_may_be_called_as_its_file_is(tmp_path: Path, stem: str) -> None:
    """Also where YAML would take the name for a date, a number or a truth."""
    path = _write(tmp_path, {"x": LABELS + 0.5, "label": LABELS}, f"{stem}.parquet")
    assert _load(describe(path).text, tmp_path).name == stem.replace(" ", "-")


def test_several_numbers_become_several_inputs(tmp_path: Path) -> None:
    """A table of numbers: each column is an input fitted on the stream, and the student is an mlp."""
    names = ["sepal length", "sepal width", "petal: length, cm"]
    columns = {name: DRAW.normal(size=60) for name in names} | {"species": np.array(["a", "b", "c"])[LABELS]}
    loaded = _load(describe(_write(tmp_path, columns, "iris.csv")).text, tmp_path)
    records = _records(loaded)
    assert [column.name for column in records.inputs] == names
    assert all(column.fit and column.shape == () for column in records.inputs)
    assert (records.label, records.label_type, loaded.student.name) == ("species", "string", "mlp")
    assert _play(loaded)[0].shape == (30, 3)


def test_bytes_of_a_square_become_an_image(tmp_path: Path) -> None:
    """784 bytes a record are a 28×28 image, scaled, and the student is a convnet."""
    images = DRAW.integers(0, 256, (60, 784), dtype=np.uint8)
    column = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 784)
    loaded = _load(describe(_write(tmp_path, {"pixels": column, "digit": LABELS})).text, tmp_path)
    (image,) = _records(loaded).inputs
    assert (image.shape, image.dtype, image.scale) == ((28, 28), "uint8", 1 / 255)
    assert (_records(loaded).label_type, loaded.student.name) == ("int", "convnet")
    inputs, _ = _play(loaded, 48)
    assert (inputs * image.scale).mean() == pytest.approx(image.mean, abs=0.02)
    assert (inputs * image.scale).std() == pytest.approx(image.std, abs=0.02)


def test_image_files_become_an_image(tmp_path: Path) -> None:
    """PNG bytes, in a struct as image collections have them, are decoded to their own size."""
    pictures = pa.array([{"bytes": _png((20, 24, 3), 4 * n), "path": f"{n}.png"} for n in range(60)])
    loaded = _load(describe(_write(tmp_path, {"image": pictures, "label": LABELS})).text, tmp_path)
    (image,) = _records(loaded).inputs
    assert (image.name, image.kind, image.shape) == ("image.bytes", "image", (20, 24, 3))
    assert loaded.student.name == "convnet"
    assert _play(loaded)[0].shape == (30, 20, 24, 3)


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    """Images of different sizes are refused with the way out."""
    pictures = [_png((20 + n % 2, 20), 0) for n in range(60)]
    with pytest.raises(SourceError, match=r"needed images of one size, got 2 sizes[\s\S]*resize"):
        describe(_write(tmp_path, {"image": pictures, "label": LABELS}))


@pytest.mark.parametrize(("student", "shape"), [("convnet", (28, 28)), ("mlp", (10,))])
def test_columns_beside_lists_wait_to_be_taken_in(tmp_path: Path, student: str, shape: tuple[int, ...]) -> None:
    """Images and lists are inputs alone; lines that are ready stand below for numbers, gaps, categories and texts."""
    width = math.prod(shape)
    columns = {
        "vector": pa.FixedSizeListArray.from_arrays(DRAW.integers(0, 256, 60 * width).astype("uint8"), width),
        "age": pa.array([None if n % 7 == 0 else n % 5 + 0.5 for n in range(60)]),
        "country": np.array(["it", "fr"])[DRAW.integers(0, 2, 60)],
        "said": [f"word {n} and {n * 7 % 11} others of it" for n in range(60)],
        "label": LABELS,
    }
    written = describe(_write(tmp_path, columns))
    assert any("left out beside: 'age', 'country', 'said'" in note for note in written.notes)
    alone = _load(written.text, tmp_path)
    assert [(column.name, column.shape) for column in _records(alone).inputs] == [("vector", shape)]
    assert alone.student.name == student
    whole = written.text.replace("      # - {", "      - {")
    if "# with the inputs" in whole:
        whole = re.sub(r"(?m)^student: .*\n", "", whole).replace("# with the inputs that are left out: ", "")
    together = _load(whole, tmp_path)
    assert [column.name for column in _records(together).inputs] == ["vector", "age", "country", "said"]
    assert len(_play(together)[0]) == 30


def test_nested_lists_keep_their_shape(tmp_path: Path) -> None:
    """Lists of lists of one size are a tensor of that shape, fitted on the stream."""
    column = pa.array(DRAW.normal(size=(60, 3, 5)).tolist())
    loaded = _load(describe(_write(tmp_path, {"x": column, "label": LABELS})).text, tmp_path)
    (tensor,) = _records(loaded).inputs
    assert (tensor.shape, tensor.dtype, tensor.fit, tensor.pad) == ((3, 5), "float32", described.FIT, False)
    assert loaded.student.name == "mlp"
    assert _play(loaded)[0].shape == (30, 3, 5)


def test_lists_of_varying_length_are_padded_and_said(tmp_path: Path) -> None:
    """Lists of varying length get a fixed length with pad, and the text says the lengths."""
    column = pa.array([DRAW.integers(-9, 9, 10 + n % 10).tolist() for n in range(60)], pa.list_(pa.int16()))
    text = describe(_write(tmp_path, {"pcm": column, "label": LABELS})).text
    assert "lists of 10 to 19 values" in text
    loaded = _load(text, tmp_path)
    (tensor,) = _records(loaded).inputs
    assert (tensor.shape, tensor.dtype, tensor.pad) == ((18,), "int16", True)
    assert _play(loaded)[0].shape == (30, 18)


def test_text_is_an_input_beside_categories(tmp_path: Path) -> None:
    """Sentences are hashed, categories beside them are inputs too; the id is the id."""
    columns = {
        "id": np.arange(60),
        "text": [f"the {n}th sentence" for n in range(60)],
        "speaker": [f"s{n % 4}" for n in range(60)],
        "intent": np.array(["ask", "pay", "close"])[LABELS],
    }
    loaded = _load(describe(_write(tmp_path, columns)).text, tmp_path)
    records = _records(loaded)
    text, speaker = records.inputs
    assert (text.name, text.kind, text.shape) == ("text", "text", (described.TEXT_BESIDE,))
    assert (speaker.kind, speaker.values, speaker.shape) == (
        "category",
        ("s0", "s1", "s2", "s3"),
        (4 + described.SPARE,),
    )
    assert (records.label, records.id) == ("intent", "id")
    assert _play(loaded)[0].shape == (30, text.width + speaker.width)


def test_a_mixed_table_takes_every_kind(tmp_path: Path) -> None:
    """Numbers, categories, many codes, times and booleans are inputs together; gaps are filled where there are some."""
    columns = {
        "": np.arange(60),
        "amount": [None if n % 9 == 4 else n / 7 for n in range(60)],
        "colour": [[None, "red", "blue", "blue"][n % 4] for n in range(60)],
        "airport": [f"A{n * 17 % 29}" for n in range(60)],
        "open": [n % 2 == 0 for n in range(60)],
        "born": pa.array([n * 997 % 20_000 for n in range(60)], pa.date32()),
        "when": pa.array(np.arange(60), pa.timestamp("s")),
        "y": LABELS,
    }
    described_as = describe(_write(tmp_path, columns))
    loaded = _load(described_as.text, tmp_path)
    records = _records(loaded)
    kinds = {column.name: (column.kind, column.missing) for column in records.inputs}
    assert kinds == {
        "amount": ("tensor", "fill"),
        "colour": ("category", "fill"),
        "airport": ("category", "refuse"),
        "open": ("tensor", "refuse"),
        "born": ("time", "refuse"),
    }
    assert records.only(["colour"]).inputs[0].values == ("blue", "red")
    assert records.only(["born"]).inputs[0].parts == ("weekday", "day_of_year", "age")
    assert (records.label, records.event_time) == ("y", "when")
    assert "2 numbers (amount, 7 gaps; open); 1 categories (colour of 2, 15 gaps)" in described_as.notes[1]
    assert _play(loaded)[0].shape == (30, sum(column.width for column in records.inputs))


def test_labels_that_come_mixed_are_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large file played in its own order a rare label begins no task; labels that come in turn do."""
    monkeypatch.setattr(described, "open_rows", lambda *args, **more: files.open_rows(*args, **more, held_bytes=1))
    for labels, alone in ((DRAW.random(600) < 0.02, True), (np.repeat([0, 1, 2], 200), False)):
        text = describe(_write(tmp_path, {"x": DRAW.normal(size=600), "label": labels})).text
        assert ("detectors: []  # one task: its labels come mixed" in text) == alone


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"x": DRAW.normal(size=60), "class": LABELS, "other": LABELS}, "class"),
        ({"x": DRAW.normal(size=60), "Target": LABELS}, "Target"),
        ({"x": DRAW.normal(size=60), "sold_label": LABELS, "z": DRAW.normal(size=60)}, "sold_label"),
        ({"x": DRAW.normal(size=60), "n": LABELS}, "n"),
        ({"kind": np.array(["a", "b", "c"])[LABELS], "x": DRAW.normal(size=60)}, "kind"),
        ({"x": DRAW.normal(size=60), "y": DRAW.normal(size=60), "n": LABELS}, "n"),
        ({"x": DRAW.normal(size=60), "label": LABELS.astype(float)}, "label"),
    ],
)
def test_the_label_is_guessed(tmp_path: Path, columns: Mapping[str, Any], label: str) -> None:
    """A usual name, else a last column of few values, else the only categories are the label; fractions never."""
    assert _records(_load(describe(_write(tmp_path, columns)).text, tmp_path)).label == label


def test_the_label_can_be_named(tmp_path: Path) -> None:
    """--label wins over the guess; a name that is not there is refused with the nearest."""
    path = _write(tmp_path, {"x": DRAW.normal(size=60), "label": LABELS, "grade": LABELS})
    assert _records(_load(describe(path, "grade").text, tmp_path)).label == "grade"
    with pytest.raises(SourceError, match=r"no column 'grad': x \(double\), label[\s\S]*did you mean --label grade"):
        describe(path, "grad")
    with pytest.raises(SourceError, match="'x' cannot be a label: it holds 60 different fractional numbers"):
        describe(path, "x")


def test_no_label_names_the_columns_and_the_option(tmp_path: Path) -> None:
    """Where nothing looks like a label, the columns and --label are named."""
    path = _write(tmp_path, {"a": DRAW.normal(size=60), "b": DRAW.normal(size=60)})
    with pytest.raises(SourceError, match=r"no column looks like a label: a \(double\), b[\s\S]*--label COLUMN"):
        describe(path)


def test_no_input_and_no_rows_are_refused(tmp_path: Path) -> None:
    """A file with a label alone, or without rows, is refused with what is missing."""
    with pytest.raises(SourceError, match="can be an input"):
        describe(_write(tmp_path, {"label": LABELS}))
    with pytest.raises(SourceError, match="no rows"):
        describe(_write(tmp_path, {"x": pa.array([], pa.float64()), "label": pa.array([], pa.int64())}))


@pytest.mark.parametrize(("shares", "rare"), [((0.96, 0.04), True), ((0.94, 0.06), False), ((0.49, 0.49, 0.02), True)])
def test_a_rare_class_brings_its_weights_as_a_comment(shares: tuple[float, ...], rare: bool, tmp_path: Path) -> None:
    """They are off, for how dear a miss is no file says; without its mark the line is taken."""
    labels = np.repeat(np.arange(len(shares)), [round(1_000 * share) for share in shares])
    text = describe(_write(tmp_path, {"x": DRAW.normal(size=len(labels)), "label": labels})).text
    line = "publish: {class_weights: balanced}"
    assert (f"# {line}" in text) == ("publish.class_weights, a comment now" in text) == rare
    assert _load(text, tmp_path).publish.class_weights is None
    assert _load(text.replace(f"# {line}", line), tmp_path).publish.class_weights == ("balanced" if rare else None)


def test_missing_values_are_said(tmp_path: Path) -> None:
    """Records without label are counted in the comments."""
    label = pa.array([None if n < 4 else n % 3 for n in range(60)])
    assert "# 4 records have no 'label'" in describe(_write(tmp_path, {"x": DRAW.normal(size=60), "label": label})).text


def test_a_test_file_beside_a_train_file_is_taken(tmp_path: Path) -> None:
    """x-train.parquet is tested on x-test.parquet where that has the same columns."""
    columns = {"x": DRAW.normal(size=60), "label": LABELS}
    test = _write(tmp_path, columns, "x-test.parquet")
    loaded = _load(describe(_write(tmp_path, columns, "x-train.parquet")).text, tmp_path)
    assert loaded.stream.source.values["test_path"] == str(test)
    assert "repeat" in loaded.stream.source.values
    assert loaded.stream.source.values["rate"] is None


def test_many_columns_raise_the_limit(tmp_path: Path) -> None:
    """More columns than a batch may have by default raise the limit."""
    columns = {f"x{n}": DRAW.normal(size=60) for n in range(80)} | {"label": LABELS}
    loaded = _load(describe(_write(tmp_path, columns)).text, tmp_path)
    assert loaded.stream.limits.columns >= 82
    assert _play(loaded)[0].shape == (30, 80)


def test_a_large_file_is_played_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file too large to hold gets order: given."""
    path = _write(tmp_path, {"x": DRAW.normal(size=60), "label": LABELS})
    monkeypatch.setattr(described, "open_rows", lambda *args, **more: files.open_rows(*args, **more, held_bytes=1))
    assert _load(describe(path).text, tmp_path).stream.source.values["order"] == "given"


@pytest.mark.parametrize(
    ("name", "label", "student", "shape"),
    [
        ("banking77-train", "label", "mlp", (4096,)),
        ("omniglot-small", "label", "convnet", (28, 28)),
        ("fsdd", "label", "mlp", (4836,)),
    ],
)
def test_real_files(name: str, label: str, student: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Text, drawings and sound of real data sets are described and played."""
    path = DATA / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is absent; STREAMKD_DATA names the folder")
    loaded = _load(describe(path).text, tmp_path)
    assert (_records(loaded).label, loaded.student.name) == (label, student)
    assert _play(loaded, 100)[0].shape == (100, *shape)
