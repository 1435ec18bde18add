"""Every file in streams/ is a valid configuration, plays, and has its row in the table."""

import re
from pathlib import Path

import pytest

from streamkd import config
from streamkd.plugins import Registry
from streamkd.streams.replay import datasets
from streamkd.streams.replay import source as replay

FOLDER = Path(__file__).parents[2] / "streams"
FILES = sorted(FOLDER.glob("*.yaml"))


def _row(name: str) -> list[str]:
    row = re.search(rf"^\| `{re.escape(name)}` \|(.*)\|$", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    assert row, f"streams/README.md has no row for {name}"
    return [cell.strip() for cell in row[1].split("|")]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_tree_is_valid(path: Path) -> None:
    """Without any plugin loaded, the tree of each definition is valid and bears its file's name."""
    assert config.load(path).name == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_plugins_and_their_options_are_valid(path: Path, registry: Registry) -> None:
    """Every plugin that a definition names exists and takes its options."""
    config.load(path, registry=registry)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_plays_what_the_table_says(path: Path) -> None:
    """A replayed definition has the records, tasks and classes of its row in the table."""
    stream = config.load(path).stream
    source = stream.source
    said_records, said_tasks, said_classes = _row(path.stem)[1:4]
    if source.name != "replay":
        assert (said_records, said_tasks) == ("as pushed", "as pushed")
        return
    options = replay.ReplayOptions.model_validate(source.values)
    if options.dataset == "fashion-mnist" and not datasets.DEBIAN.exists():
        pytest.skip("Fashion-MNIST is absent: apt-get install dataset-fashion-mnist")
    if options.path is not None and not options.path.exists():
        pytest.skip(f"{options.path} is absent; streams/README.md says what it holds")
    schema = replay.describe(options) or stream.records
    assert schema is not None
    one_round = replay.Replay(options.model_copy(update={"repeat": False, "rate": None, "seed": 0}), schema)
    records = one_round.end(replay.PARTITION)
    assert said_records in (f"{records:,}", f"{records:,} a round")
    tests = one_round.tests()
    assert said_tasks == str(len(tests))
    classes = {label for test in tests.values() for label in test.column("label").to_pylist()}
    assert said_classes == str(len(classes))


def test_the_embedded_stream_is_the_one_that_serve_plays() -> None:
    """streams/embedded.yaml is what `streamkd serve` without arguments uses."""
    assert config.load(FOLDER / "embedded.yaml") == config.load(None)


def test_the_live_schema_is_the_datasets_own() -> None:
    """The schema written out for the pushed stream equals that of the dataset, the task apart."""
    records = config.load(FOLDER / "fashion-mnist-live.yaml").stream.records
    assert records == datasets.describe("fashion-mnist").model_copy(update={"task": None})
