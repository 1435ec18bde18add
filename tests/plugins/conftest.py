"""A fresh environment with the wheels of our distributions in it."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

DISTRIBUTIONS = ("streamkd-baselines", "streamkd-crossmodal", "streamkd-mlflow", "streamkd-text", "streamkd-vision")
PLUGINS = Path(__file__).parents[2] / "plugins"
OFFLINE = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path) -> str:
    """What a command says; fails with what it complained of."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each plugin's wheel, built as a user would, without network."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = [PLUGINS / name for name in DISTRIBUTIONS]
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, *sources)
    return {name: folder / f"{name.replace('-', '_')}-0.1.0-py3-none-any.whl" for name in DISTRIBUTIONS}


@pytest.fixture(scope="session")
def python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment: this one's packages, and the wheels installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # addsitedir, because streamkd itself may be an editable installation, which is a .pth file too
    for key in ("purelib", "platlib"):
        (packages / f"running-{key}.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path(key)!r})\n")
    interpreter = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", *OFFLINE, *wheels.values())
    return interpreter
