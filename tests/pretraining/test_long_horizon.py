"""The gate, meta-trained by whole passes: kept by generation, gone on with, and begun from."""

import math
from pathlib import Path

import pytest
import torch
from baselines import REGISTRY
from click.testing import CliRunner

from streamkd import config as configuration
from streamkd import wiring
from streamkd.cli import cli
from streamkd.errors import StateError
from streamkd.gates.prior import NAMES, GatePrior, moved
from streamkd.meta import artefact
from streamkd.pretraining.long_horizon import (
    GENERATIONS,
    LAST_LAYERS,
    LongHorizon,
    Pass,
    gate_of,
    meta_train,
    processes,
    size_of,
)

TINY = LongHorizon(generations=2, pairs=2, least=40, most=60)


def _files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (GENERATIONS, artefact.DOCUMENT, artefact.TENSORS)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations of two pairs on streams of fifty records."""
    out = tmp_path_factory.mktemp("learned")
    meta_train(out, TINY)
    return out


def test_it_names_what_it_was_trained_on(learned: Path) -> None:
    """A prior within its bounds that has moved, for the default gate, and the numbers of its streams."""
    found = artefact.read(learned)
    assert GatePrior.model_validate(found.gate_prior) != GatePrior()
    assert found.trained_on["family"]["streams"] == [10_000, 10_003]
    assert found.learned_for == {"gate": [{"name": "per-sample"}]}


def test_killed_and_gone_on_it_ends_in_the_same_file(learned: Path, tmp_path: Path) -> None:
    """After a generation, with half a line of the next one in the file: that one is run again, the first is not."""
    meta_train(tmp_path, TINY.model_copy(update={"generations": 1}))
    with (tmp_path / GENERATIONS).open("a") as book:
        book.write('{"plan": {"pairs"')
    asked: list[Pass] = []

    def each(judge, passes):  # type: ignore[no-untyped-def]
        asked.extend(passes)
        return map(judge, passes)

    meta_train(tmp_path, TINY, each=each)
    assert [one.stream for one in asked] == [10_002, 10_002, 10_003, 10_003]
    assert _files(tmp_path) == _files(learned)


def test_generations_of_another_plan_are_refused(learned: Path, tmp_path: Path) -> None:
    """In words, with both plans."""
    (tmp_path / GENERATIONS).write_bytes((learned / GENERATIONS).read_bytes())
    with pytest.raises(StateError, match=r"another plan, .*'sigma': 0.3.* needed .*'sigma': 0.1"):
        meta_train(tmp_path, TINY.model_copy(update={"sigma": 0.1}))


def test_a_stream_begins_from_the_prior(learned: Path) -> None:
    """The step's gate has the numbers of the file; without it those that were set by hand."""
    for meta in (learned, None):
        tree = {"stream": {"source": {"name": "replay", "dataset": "digits"}}, "device": "cpu"}
        config = configuration.from_tree({**tree, **({"meta": str(meta)} if meta else {})}, REGISTRY)
        schema = wiring.schema_of(config, REGISTRY)
        begun = wiring.artefact_of(config, schema)
        step, _ = wiring.step_of(config, REGISTRY, schema, [0, 1], torch.device("cpu"), begun)
        wanted = artefact.read(meta).gate_prior if meta else GatePrior().model_dump()
        assert step.gate.options.model_dump(include=set(NAMES)) == wanted


def test_the_networks_last_layers_are_learned_where_that_is_asked_for() -> None:
    """Beside the prior: at offsets of 0 the gate begins as it does without, at others its last layers are theirs."""
    count = size_of(TINY.model_copy(update={"networks": True}))
    assert count == size_of(TINY) + 2 * (16 + 1)
    still, other = gate_of([0.0] * count), gate_of([0.0] * len(NAMES) + [1.0] * (count - len(NAMES)))
    assert still.gate_prior == moved(GatePrior(), [0.0] * len(NAMES)).model_dump()
    for name in LAST_LAYERS:
        assert not still.gate_weights[name].any()
        assert (other.gate_weights[name] == 0.5).all()


def test_passes_run_in_other_processes_too() -> None:
    """In the order in which they were asked for."""
    with processes(2) as each:
        assert list(each(math.sqrt, [4.0, 9.0, 16.0])) == [2.0, 3.0, 4.0]


def test_the_command(learned: Path, tmp_path: Path) -> None:
    """`streamkd meta-train --gate` writes the same file, and says what is next; it has no stream to be named."""
    args = ["meta-train", "--gate", "--generations", "2", "--pairs", "2", "--least", "40", "--most", "60"]
    done = CliRunner().invoke(cli, [*args, "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"--set meta={tmp_path}" in done.output
    assert _files(tmp_path) == _files(learned)
    again = CliRunner().invoke(cli, [*args, "--out", str(tmp_path)])
    assert again.exit_code != 0
    refused = CliRunner().invoke(cli, [*args, "--out", str(tmp_path / "other"), "some.yaml"])
    assert refused.exit_code == 2
    assert "its streams are drawn" in refused.output
