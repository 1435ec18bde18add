"""Images of digits paired with spoken ones, by class: what `streams/digits-heard.yaml` reads.

    python plugins/streamkd-crossmodal/pairs.py fsdd.parquet data

``fsdd.parquet`` has the recordings (``pcm`` int16, ``label``, ``speaker``) of the Free Spoken Digit Dataset; the images
are scikit-learn's. Two speakers are kept apart, for a teacher that was trained before: ``spoken.parquet``. No recording
is used twice among the training records.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamkd.streams.replay import datasets

APART = 2  # speakers


def main(recordings: Path, folder: Path) -> None:
    """Write ``heard-train.parquet``, ``heard-test.parquet`` and ``spoken.parquet``."""
    folder.mkdir(parents=True, exist_ok=True)
    spoken, images = pq.read_table(recordings), datasets.load("digits")
    names = sorted(set(spoken["speaker"].to_pylist()))
    apart = pa.array([name in names[:APART] for name in spoken["speaker"].to_pylist()])
    pq.write_table(_heard(spoken.filter(apart)), folder / "spoken.parquet")
    rest = _heard(spoken.take(np.flatnonzero(~apart.to_numpy(zero_copy_only=False))))
    for part, table in (("train", images.train), ("test", images.test)):
        labels = table["label"].to_numpy()
        rows = matched(labels, rest["label"].to_numpy(), np.random.default_rng(len(labels)))
        pq.write_table(
            table.select(["image", "label"]).append_column("sound", rest["sound"].take(rows)),
            folder / f"heard-{part}.parquet",
        )


def matched(wanted: Sequence[int], given: Sequence[int], draw: np.random.Generator) -> np.ndarray:
    """For each label the place of a recording of it, each once as long as there are any."""
    orders = {label: draw.permutation(np.flatnonzero(np.asarray(given) == label)) for label in np.unique(wanted)}
    found, used = np.zeros(len(wanted), np.int64), dict.fromkeys(orders, 0)
    for row, label in enumerate(wanted):
        found[row] = orders[label][used[label] % len(orders[label])]
        used[label] += 1
    return found


def _heard(spoken: pa.Table) -> pa.Table:
    return pa.table({"sound": spoken["pcm"], "label": spoken["label"].cast(pa.int64())})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
