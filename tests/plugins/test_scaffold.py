"""What `streamkd plugins new` writes: of every kind built, installed, tested by its own tests, and served."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from streamkd.errors import ConfigError
from streamkd.scaffold import package
from streamkd.scaffold.package import KINDS

from .conftest import OFFLINE, run

PLUGINS = ("-p", "no:cacheprovider", "-p", "streamkd.pytest_plugin")
NAMES = {kind: f"my-own-{kind}" for kind in KINDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a package of every kind."""
    place = tmp_path_factory.mktemp("scaffold")
    for kind, name in NAMES.items():
        package.write(name, kind, place)
    return place


@pytest.fixture(scope="module")
def python(folder: Path) -> Path:
    """The interpreter of a fresh environment in which they are installed, beside the packages of this one."""
    place = folder / "environment"
    venv.create(place, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    (packages / "running.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    wheels = [sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder / "wheels"]
    run(*wheels, *(folder / name for name in NAMES.values()))
    interpreter = place / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", *OFFLINE, *(folder / "wheels").iterdir())
    return interpreter


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_kind_passes_its_own_tests(python: Path, folder: Path) -> None:
    """As written: the contract, and a stream under a configuration that names it."""
    tests = [folder / name / "tests" for name in NAMES.values()]
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "--import-mode=importlib", *PLUGINS, *tests],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=220,
    )
    assert f"{2 * len(KINDS)} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_installed_is_checked(python: Path, folder: Path) -> None:
    """`plugins check` holds it to its contract, and says how long that took."""
    command = [python, "-m", "streamkd", "plugins", "check", NAMES["gate"], "--json"]
    [row] = json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110).stdout)
    assert (row["kind"], row["name"], row["verdict"]) == ("gate", NAMES["gate"], "keeps its contract")
    assert row["seconds"] > 0
    assert not row["fault"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_its_teacher_learns_in_a_running_server(python: Path, folder: Path) -> None:
    """By the fixture for authors: a test that asks a server which teachers it has."""
    (folder / "test_served.py").write_text(
        "import json, time, urllib.request\n\n\n"
        "def test_the_server_has_it(streamkd_serve):\n"
        f"    url = streamkd_serve('teachers: [ema, {NAMES['teacher']}]')\n"
        "    said = json.load(urllib.request.urlopen(url + '/v1/status'))\n"
        f"    assert '{NAMES['teacher']}' in [teacher['name'] for teacher in said['teachers']]\n"
    )
    command = [python, "-m", "pytest", "-q", *PLUGINS, folder / "test_served.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=160)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_example_is_left(kind: package.Scaffolded) -> None:
    """Every name is the author's, lines are short, and what a configuration says is YAML."""
    found = package.files("acme-things", kind)
    assert set(found) == {"acme_things.py", "tests/test_acme_things.py", "README.md", "pyproject.toml"}
    for text in found.values():
        assert "xample" not in text
        assert max(map(len, text.splitlines())) <= 120
    assert "acme-things" in str(yaml.safe_load(package.use("acme-things", kind)))
    assert len(found["acme_things.py"].splitlines()) < 80


@pytest.mark.parametrize("name", ["My-Teacher", "my_teacher", "-x", "x--y", "", "../x"])
def test_a_name_that_no_package_can_have_is_refused(name: str, tmp_path: Path) -> None:
    """With one that would do; nothing is written."""
    with pytest.raises(ConfigError, match="needed small letters") as caught:
        package.write(name, "gate", tmp_path)
    assert "my-teacher" in str(caught.value.fix)
    assert not [*tmp_path.iterdir()]


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    """A second one of the name is refused, with a way out."""
    package.write("mine", "gate", tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        package.write("mine", "loss", tmp_path)
