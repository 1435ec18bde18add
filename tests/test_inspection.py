"""A state directory in words: what it says is what the checkpoint holds."""

from pathlib import Path

from streamkd import config as configuration
from streamkd import inspection
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.state.environment import environment
from streamkd.teachers.teacher import copy_of
from streamkd.wiring import open_source, schema_of


def test_what_came_again_and_how_it_was_answered_is_said(tmp_path: Path) -> None:
    """Two passes over fifty records: a hundred were taken, and half of them had come before."""
    registry = Registry.load()
    source = {"name": "replay", "dataset": "digits", "per_class": 5, "repeat": 2}
    tree = {"stream": {"source": source}, "student": {"name": "mlp", "hidden": [4]}, "memory": {"size": 20}}
    config = configuration.from_tree({**tree, "device": "cpu"}, registry)
    schema = schema_of(config, registry)
    one = Learner(config, registry, open_source(config, registry, schema)[0], schema)
    while one.advance():
        one.prequential.version.take(copy_of(one.served))
    directory = StateDirectory(tmp_path / "state")
    directory.create()
    with directory.lock():
        CheckpointStore(directory, 1).save(
            one.state(),
            offsets=one.offsets,
            records=one.records,
            config=configuration.dump(config),
            environment=environment(),
            dead_letters=[],
        )
        found = inspection.inspect(directory.path)
    assert found["records_repeated"] == 50
    assert found["measures"]["all"] == one.prequential.version.measures.figures(one.labels.labels)["all"]
    assert "served on arrival: accuracy 0." in inspection.in_words(found)
    assert "100 records trained in 10 steps, 50 of them had come before;" in inspection.in_words(found)
