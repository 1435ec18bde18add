"""Images that cannot be decoded: refused at the door, and no dead end for a learner that finds some in its log."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from streamkd import config as configuration
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.settings import Limits
from streamkd.streams.ingest.admission import admit_batch
from streamkd.streams.log.log import Log
from streamkd.wiring import open_source, schema_of

TREE = {
    "stream": {
        "source": {"name": "flight"},
        "records": {"inputs": [{"name": "image", "kind": "image", "shape": [8, 8]}]},
        "limits": {"bad_in_a_row": 20},
    },
    "student": {"name": "mlp", "hidden": [8]},
    "memory": {"size": 40},
    "device": "cpu",
}


def images(*data: bytes) -> pa.RecordBatch:
    labels = pa.array([index % 2 for index in range(len(data))])
    return pa.record_batch({"image": pa.array(data, pa.binary()), "label": labels})


def picture(seed: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_cannot_be_decoded_is_refused_at_the_door() -> None:
    """A broken image and one of another size are refused with their reason before they are acknowledged."""
    config = configuration.from_tree(TREE)
    assert config.stream.records is not None
    batch = images(picture(0), b"broken", picture(1, side=9), picture(2)[:60])
    sifted = admit_batch(batch, config.stream.records, Limits(), "p")
    assert [(each.row, each.reason) for each in sifted.rejects] == [(1, "decode"), (2, "wrong_shape"), (3, "decode")]
    assert sifted.rows.num_rows == 1


@pytest.mark.parametrize("broken", [5, 100])
def test_the_log_is_no_dead_end(tmp_path: Path, broken: int) -> None:
    """However many broken images were acknowledged, the learner passes them over as dead letters and learns on."""
    registry = Registry.load()
    config = configuration.from_tree(TREE, registry)
    schema = schema_of(config, registry)
    log = Log(tmp_path / "log.sqlite", schema)
    for batch in (images(picture(0), picture(1)), images(*[b"broken"] * broken), images(*map(picture, range(18)))):
        log.append(batch)
    log.close()
    source, journal = open_source(config, registry, schema, tmp_path / "log.sqlite")
    learner = Learner(config, registry, source, schema, journal=journal)
    while learner.offsets["main/0"] < 20 + broken - 10 and learner.advance():
        pass
    assert learner.records >= 10
    assert sum(len(batch.rejects) for batch in learner.dead) == broken
    source.close()
