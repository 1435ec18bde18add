"""The wheel and the sdist: built as a release would be, without network, and looked into."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from streamkd import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STEM = f"streamkd-{__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl")


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(wheel.read(f"{STEM}.dist-info/METADATA").decode())


def files_of(*folders: str) -> set[str]:
    """Every file that git has, or would take, in these folders."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: only git knows which files there should be")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    names = subprocess.check_output(listed, cwd=ROOT, text=True, timeout=60).split("\n")
    return {name for name in names if name and (ROOT / name).exists()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Each of the package's files, its pages and py.typed among them; no test, no document."""
    inside = {name for name in wheel.namelist() if not name.startswith(f"{STEM}.dist-info/")}
    assert inside == files_of("streamkd")
    assert "streamkd/py.typed" in inside


def test_the_sdist_holds_its_tests_and_nothing_stray(built: Path) -> None:
    """What git has, but for the hosted checks; what git ignores is not in it."""
    with tarfile.open(built / f"{STEM}.tar.gz") as sdist:
        inside = {name.removeprefix(f"{STEM}/") for name in sdist.getnames()} - {"PKG-INFO"}
    outside = {name for name in files_of() if name.startswith(".") and name != ".gitignore"}
    assert inside == files_of() - outside
    assert "tests/test_package.py" in inside


def test_its_metadata_say_what_it_is(metadata: Message) -> None:
    """Version, license, the README as its page, and that it is typed."""
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert sorted(metadata.get_all("Provides-Extra", [])) == [
        "all",
        "datasets",
        "export",
        "kafka",
        "meta",
        "nats",
        "onnx",
        "protobuf",
        "tune",
    ]


def test_its_entry_points_are_those_of_the_project(wheel: zipfile.ZipFile) -> None:
    """The command, and every built-in kind under the group that plugins use."""
    text = wheel.read(f"{STEM}.dist-info/entry_points.txt").decode()
    for name, target in {**PROJECT["scripts"], **PROJECT["entry-points"]["streamkd"]}.items():
        assert f"{name} = {target}\n" in text


def test_requirements_are_all_that_the_project_names() -> None:
    """`make setup` installs the core and every extra: requirements*.txt and pyproject.toml name the same packages."""

    def name_of(line: str) -> str:
        return line.split(";")[0].split("[")[0].split("=")[0].split(">")[0].split(" ")[0].strip().lower()

    extras = [
        needed for extra, listed in PROJECT["optional-dependencies"].items() if extra != "all" for needed in listed
    ]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = {name_of(line) for line in lines if line and not line.startswith("#")}
    assert wanted == {name_of(needed) for needed in (*PROJECT["dependencies"], *extras)}
    pinned = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name.replace("-", "_") for name in wanted} <= {name.replace("-", "_") for name in pinned}
