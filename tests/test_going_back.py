"""A learner that is rolled back, over a bad stretch or past it: the bits of one that had never seen it."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import toys
from baselines import REGISTRY

from streamkd import config as configuration
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.records import RecordSchema
from streamkd.state import rollback
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.state.environment import environment
from streamkd.state.rollback import roll_back
from streamkd.streams.log.log import Log
from streamkd.streams.skips import Skip
from streamkd.wiring import open_source, schema_of

from .endtoend.conftest import records

RECORDS = 250
TREE: dict[str, Any] = {
    "stream": {
        "source": {"name": "http"},
        "records": {"inputs": [{"name": "x", "shape": [8]}], "task": "task"},
        "batch": {"size": 10},
    },
    "student": {"name": "mlp", "hidden": [8]},
    "memory": {"size": 60, "replay": 20},
    "teachers": toys.TEACHERS,
    "device": "cpu",
}
CONFIG = configuration.from_tree(TREE, REGISTRY)
SCHEMA: RecordSchema = schema_of(CONFIG, REGISTRY)


def filled(path: Path, *parts: pa.RecordBatch, cut: tuple[int, int] = (130, 133)) -> StateDirectory:
    """A directory with a log of these records and one cut by the clock."""
    directory = StateDirectory(path)
    directory.create()
    with closing(Log(directory.log, SCHEMA)) as log:
        for part in parts:
            log.append(part)
        log.put_cut(*cut)
    return directory


def learned(directory: StateDirectory, skips: Sequence[Skip] = (), until: int = RECORDS) -> list[str]:
    """Learn on from the newest checkpoint, with one every four steps: hashes of all that was learned."""
    source, log = open_source(CONFIG, REGISTRY, SCHEMA, directory.log)
    with directory.lock(), closing(CheckpointStore(directory, 2, history_bytes=1 << 30)) as store:
        with closing(directory.connect()) as connection:
            skips = [*skips, *rollback.skips(connection)]
        one = Learner(CONFIG, REGISTRY, source, SCHEMA, journal=log, skips=skips)
        if (found := store.latest()) is not None:
            one.restore(found.tree, found.info.offsets, CONFIG)
        while one.offsets["main/0"] < until and one.advance():
            if one.steps % 4 == 0:
                config, place = configuration.dump(CONFIG), {"offsets": one.offsets, "records": one.records}
                store.save(one.state(), **place, config=config, environment=environment())  # type: ignore[arg-type]
    assert log is not None
    log.close()
    step = one.step
    parts = (one.student, step.pool.average.student, step.gate)  # type: ignore[union-attr]
    memory = step.memory.replayed
    return [*(weights_sha256(part.state_dict()) for part in parts), weights_sha256({"x": memory.x, "y": memory.y})]


@pytest.fixture(scope="module")
def whole() -> pa.RecordBatch:
    return records(RECORDS)


def test_without_a_skip_it_ends_where_it_would_have_ended(tmp_path: Path, whole: pa.RecordBatch) -> None:
    """Twice back, and over the same records again by the log and its journal: the bits of a run without rollback."""
    straight, back = filled(tmp_path / "straight", whole), filled(tmp_path / "back", whole)
    wanted = learned(straight)
    assert learned(back) == wanted
    for before in (230, 163):
        done = roll_back(back, before)
        assert done.checkpoint is not None
        assert 0 < done.checkpoint.offsets["main/0"] <= before
        assert learned(back) == wanted


@pytest.mark.parametrize(("start", "stop"), [(125, 190), pytest.param(131, 132, marks=pytest.mark.soak)])
def test_past_a_stretch_it_is_as_if_that_had_never_come(
    tmp_path: Path, whole: pa.RecordBatch, start: int, stop: int
) -> None:
    """Learned, noticed, gone back and skipped, with a stop on the way: the bits of a learner that knew it from the
    beginning, and of one whose log has never had these records.
    """
    back, knew = filled(tmp_path / "back", whole), filled(tmp_path / "knew", whole)
    seen = learned(back)
    roll_back(back, start, stop)
    learned(back, until=start + 1)
    wanted = learned(back)
    assert wanted != seen
    assert learned(knew, [Skip("main/0", start, stop)]) == wanted
    never = filled(tmp_path / "never", whole.slice(0, start), whole.slice(stop), cut=(start - start % 10, start))
    assert learned(never) == wanted
