"""Students of other sizes, distilled from what a state directory serves."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from streamkd.choices import Choice
from streamkd.cli import cli
from streamkd.errors import ConfigError, StateError
from streamkd.export import smaller
from streamkd.export.evidence import memory_of
from streamkd.export.published import load
from streamkd.plugins import Registry
from streamkd.teachers.teacher import module_bytes

REGISTRY = Registry.load()
pytestmark = pytest.mark.filterwarnings("ignore")  # Avalanche warns of itself


@pytest.fixture(scope="module")
def distilled(state: Path, tmp_path_factory: pytest.TempPathFactory) -> smaller.Distilled:
    """A student that is said and one that is cut to a size."""
    out = tmp_path_factory.mktemp("smaller")
    wanted = [{"name": "mlp", "hidden": [48]}]
    return smaller.distil(state, out, students=wanted, sizes=[4_000], steps=300, registry=REGISTRY)


def test_a_student_answers_as_what_it_was_distilled_from(state: Path, distilled: smaller.Distilled) -> None:
    """On held-out records, which neither has learned; what is told of it is what it does."""
    small, large = distilled.students
    assert small.bytes < large.bytes < distilled.bytes
    assert large.agreement >= 0.85
    version, student = load(state, REGISTRY), load(large.path, REGISTRY)
    memory = memory_of(state, version)
    assert memory is not None
    assert student.labels == version.labels
    held = torch.from_numpy(memory.held)
    same = student(held).argmax(1) == version(held).argmax(1)
    assert float(same.float().mean()) == pytest.approx(large.agreement)


def test_it_is_a_version_like_any_other(distilled: smaller.Distilled) -> None:
    """Its bytes are its weights'; it says what it was distilled from."""
    one = distilled.students[0]
    about = json.loads((one.path / "model.json").read_text())
    assert about["distilled"]["version"] == distilled.version
    assert module_bytes(load(one.path, REGISTRY)) == one.bytes


def test_the_same_seed_makes_the_same_student(state: Path, tmp_path: Path) -> None:
    """Bit for bit."""
    weights = [
        load(smaller.distil(state, tmp_path / str(n), sizes=[4_000], steps=20).students[0].path, REGISTRY).state_dict()
        for n in range(2)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("limit", [2_000, 30_000, 400_000])
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_the_widest_that_fits_is_taken(state: Path, kind: str, limit: int) -> None:
    """Within the bytes; with each width by one wider it would not be."""
    version, choice = load(state, REGISTRY), Choice.model_validate({"name": kind})
    found = smaller.fitting(choice, limit, version, REGISTRY)
    assert (
        smaller.size_of(found, version, REGISTRY) == module_bytes(smaller.fresh(found, 0, version, REGISTRY)) <= limit
    )
    wider = {
        name: [w + 1 for w in value] if isinstance(value, list) else value + 1 for name, value in found.values.items()
    }
    assert smaller.size_of(Choice.model_validate({"name": kind, **wider}), version, REGISTRY) > limit


def test_what_cannot_be_is_said(state: Path, tmp_path: Path, distilled: smaller.Distilled) -> None:
    """A size below the least, an option that there is not, a folder that is there, a state without a version."""
    with pytest.raises(ConfigError, match="bytes at least"):
        smaller.distil(state, tmp_path, sizes=[10])
    with pytest.raises(ConfigError, match="width"):
        smaller.distil(state, tmp_path, students=[{"name": "mlp", "width": 3}])
    with pytest.raises(StateError, match="there already"):
        smaller.distil(state, distilled.students[1].path.parent, students=[{"name": "mlp", "hidden": [48]}])
    with pytest.raises(StateError, match="no state directory"):
        smaller.distil(tmp_path, tmp_path / "out")


def test_the_command_writes_students_and_figures(state: Path, tmp_path: Path) -> None:
    """Sizes as people write them; what is no student, or no size, is refused as such."""
    out = tmp_path / "out"
    asked = ["distil", "--state", str(state), "--out", str(out)]
    done = CliRunner().invoke(cli, [*asked, "--bytes", "4KB", "--steps", "5"])
    assert done.exit_code == 0, done.output
    told = json.loads((out / "distil.json").read_text())
    assert len(told["students"]) == 1
    assert "held-out records" in done.output
    for wrong in (["--to", "[1]"], ["--bytes", "many"]):
        assert CliRunner().invoke(cli, [*asked, *wrong]).exit_code == 2
