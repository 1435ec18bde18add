"""streamkd-vision as a user gets it: a wheel, installed into a fresh environment, found by streamkd."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Tests and other files of the checkout stay out of site-packages."""
    names = zipfile.ZipFile(wheel).namelist()
    assert "streamkd_vision/teacher.py" in names
    assert {top for name in names if not (top := name.split("/")[0]).endswith(".dist-info")} == {"streamkd_vision"}


@pytest.mark.slow
def test_a_fresh_environment_lists_both_kinds(python: Path, tmp_path: Path) -> None:
    """After the installation `streamkd plugins list` has both kinds, under the distribution's name, from the wheel."""
    command = [python, "-m", "streamkd", "plugins", "list", "--json"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=True).stdout
    brought = {row["name"]: row for row in json.loads(said) if row["distribution"] == "streamkd-vision 0.1.0"}
    assert {name: row["kinds"] for name, row in brought.items()} == {
        "vision-teachers": ["teachers/torchvision"],
        "vision-losses": ["losses/attention-transfer"],
    }
    assert not any(row["error"] for row in brought.values())


@pytest.mark.slow
def test_what_is_found_is_the_installed_package(python: Path, tmp_path: Path) -> None:
    """The environment imports the wheel's files, not those of the checkout."""
    command = [python, "-c", "import streamkd_vision; print(streamkd_vision.__file__)"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout
    assert Path(said.strip()).is_relative_to(python.parents[1])
