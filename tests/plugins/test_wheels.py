"""Our distributions as a user gets them: wheels, installed into a fresh environment, found by streamkd."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

VISION = {
    "vision-students": ["students/vision-features"],
    "vision-teachers": ["teachers/torchvision"],
    "vision-losses": ["losses/attention-transfer"],
}
BASELINES = {
    "confidence": ["gates/confidence"],
    "shared": ["gates/scalar", "gates/per-class"],
    "hedge": ["gates/hedge"],
    "learned-optimizer": ["optimizers/learned"],
    "readings": ["losses/match-gate-literal", "losses/match-gate-mixture"],
    "divergences": ["losses/kd", "losses/decoupled-kd"],
    "features": ["losses/feature", "losses/attention"],
    "relational": ["losses/relational"],
}
TEXT = {
    "text-students": ["students/text-encoder", "students/text-ngrams"],
    "text-rows": ["rows/text-joined"],
    "text-teachers": ["teachers/text-classifier"],
}
BRINGS = {
    "streamkd-baselines": BASELINES,
    "streamkd-crossmodal": {"crossmodal-students": ["students/sound"]},
    "streamkd-mlflow": {"mlflow": ["observers/mlflow"]},
    "streamkd-text": TEXT,
    "streamkd-vision": VISION,
}
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", BRINGS)]


def test_the_wheel_holds_the_package_and_nothing_else(name: str, wheels: dict[str, Path]) -> None:
    """Tests and other files of the checkout stay out of site-packages."""
    package = name.replace("-", "_")
    names = zipfile.ZipFile(wheels[name]).namelist()
    assert f"{package}/py.typed" in names
    assert {top for each in names if not (top := each.split("/")[0]).endswith(".dist-info")} == {package}


def test_a_fresh_environment_lists_its_kinds(name: str, python: Path, tmp_path: Path) -> None:
    """After the installation `streamkd plugins list` has all, under the distribution's name, from the wheel."""
    command = [python, "-m", "streamkd", "plugins", "list", "--json"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=True).stdout
    brought = {row["name"]: row for row in json.loads(said) if row["distribution"] == f"{name} 0.1.0"}
    assert {entry: row["kinds"] for entry, row in brought.items()} == BRINGS[name]
    assert not any(row["error"] for row in brought.values())


def test_what_is_found_is_the_installed_package(name: str, python: Path, tmp_path: Path) -> None:
    """The environment imports the wheel's files, not those of the checkout."""
    package = name.replace("-", "_")
    command = [python, "-c", f"import {package}; print({package}.__file__)"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout
    assert Path(said.strip()).is_relative_to(python.parents[1])
