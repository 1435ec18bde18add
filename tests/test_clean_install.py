"""The wheel in an environment of its own, without compiler, extras or checkout; and a stranger's plugin in it.

``STREAMKD_TEST_TORCH`` is what pip is asked for beside the wheel, a CPU build of torch where there is one to be had.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parent.parent
ACME = ROOT / "tests" / "acme"
NEEDED_BYTES = 12 << 30  # with CUDA's libraries the environment takes 6.2 GB, and its downloads as much
PASSED_ON = re.compile(r"PIP_|SSL_|REQUESTS_|CURL_|(HTTPS?|NO)_PROXY$", re.IGNORECASE)


class Environment:
    """A virtual environment whose PATH has no compiler."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        venv.create(folder / "venv", with_pip=True)
        (folder / "home").mkdir()
        kept = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
        self.variables = {**kept, "HOME": str(folder / "home"), "PATH": str(self.bin), "CC": "", "LANG": "C.UTF-8"}
        self.folder = folder

    def run(self, *words: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        command = [self.bin / words[0], *words[1:]]
        return subprocess.run(
            list(map(str, command)),
            env=self.variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def install(self, *words: str | Path) -> None:
        done = self.run("python", "-m", "pip", "install", "--quiet", *words, timeout=3000)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """With the wheel and what it needs, and no more."""
    folder = tmp_path_factory.mktemp("clean")
    if shutil.disk_usage(folder).free < NEEDED_BYTES:
        pytest.skip(f"less than {NEEDED_BYTES >> 30} GB are free")
    made = Environment(folder)
    asked = made.run("python", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder / "asked", "pluggy")
    if asked.returncode:
        pytest.skip(f"no package index can be reached: {asked.stderr.strip().splitlines()[-1:]}")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist"]
    subprocess.run(list(map(str, build)), cwd=ROOT, check=True, capture_output=True, timeout=120)
    begun = time.monotonic()
    made.install(*os.environ.get("STREAMKD_TEST_TORCH", "").split(), *(folder / "dist").glob("*.whl"))
    megabytes = sum(f.stat().st_size for f in made.bin.parent.rglob("*") if f.is_file() and not f.is_symlink()) >> 20
    print(f"installed in {time.monotonic() - begun:.0f} s, {megabytes} MB")
    yield made
    shutil.rmtree(folder)


def test_nothing_of_an_extra_is_there(environment: Environment) -> None:
    """No extra came along, no compiler was found, and streamkd is the wheel's."""
    code = (
        "import shutil, importlib.util as u, streamkd; from streamkd.extras import EXTRAS; "
        "print([n for n in EXTRAS if u.find_spec(n)], shutil.which('gcc') or shutil.which('cc'), streamkd.__file__)"
    )
    said = environment.run("python", "-c", code).stdout.split(" ", 2)
    assert said[:2] == ["[]", "None"]
    assert Path(said[2].strip()).is_relative_to(environment.bin.parent)


def test_a_stream_is_checked_and_run(environment: Environment) -> None:
    """`check` and `run` do their work, and the report has the accuracy that the checkout gets."""
    shutil.copy(ROOT / "streams" / "digits.yaml", environment.folder)
    checked = environment.run("streamkd", "check", "digits.yaml")
    assert checked.returncode == 0, checked.stderr
    done = environment.run("streamkd", "run", "digits.yaml", "--report", "out")
    assert done.returncode == 0, done.stderr
    accuracy = re.findall(r"final average accuracy ([\d.]+)", done.stdout + done.stderr)
    assert float(accuracy[0]) > 0.9
    assert json.loads((environment.folder / "out" / "report.json").read_text())


def test_the_first_tutorial_can_be_followed(environment: Environment) -> None:
    """docs/tutorials/first-stream.md: its script, `init` and `check` need nothing beside the core."""
    page = (ROOT / "docs/tutorials/first-stream.md").read_text("utf-8")
    [script] = re.findall(r"```python\n(.*?)```", page, re.S)
    (environment.folder / "make_tumours.py").write_text(script)
    for line in re.findall(r"^    ((?:python|streamkd (?:init|check)) .*)$", page, re.M):
        done = environment.run(*line.split())
        assert done.returncode == 0, done.stderr


def test_it_serves(environment: Environment) -> None:
    """`serve` is ready, answers, and ends well when it is told to."""
    log = environment.folder / "serve.log"
    command = [environment.bin / "streamkd", "serve", "--state", "state", "--port", "0", "--flight-port", "0"]
    with log.open("wb") as out:
        server = subprocess.Popen(
            list(map(str, command)), env=environment.variables, cwd=environment.folder, stdout=out, stderr=out
        )
    try:
        begun = time.monotonic()
        while not _ready(log):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() - begun < 120, log.read_text()
            time.sleep(0.1)
        print(f"ready after {time.monotonic() - begun:.1f} s")
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()


def _ready(log: Path) -> bool:
    """Whether the server that writes this log says that it is ready."""
    found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
    if found is None:
        return False
    try:
        with urllib.request.urlopen(f"{found[0]}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("check", "digits.yaml", "--set", "stream.source.dataset=mnist-5k"), "datasets"),
        (("check", "digits.yaml", "--set", "adapt.engine=maml", "--set", "optimizer.name=sgd"), "meta"),
        (("meta-train", "digits.yaml", "--out", "begun"), "meta"),
        (("tune", "digits.yaml"), "tune"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_lacks_an_extra_names_it(environment: Environment, words: tuple[str, ...], extra: str) -> None:
    """The command ends with one error that says what to install, and no trace."""
    shutil.copy(ROOT / "streams" / "digits.yaml", environment.folder)
    done = environment.run("streamkd", *words)
    assert done.returncode == 2, done.stderr
    assert f'fix: pip install "streamkd[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_strangers_plugin_is_at_home_there(environment: Environment) -> None:
    """Built against the wheel: listed, within its contracts, and strictly typed by what the wheel ships."""
    shutil.copytree(ACME, environment.folder / "acme")
    environment.install("./acme", "mypy")
    listed = environment.run("streamkd", "plugins", "list", "--json")
    kinds = {row["name"]: row["kinds"] for row in json.loads(listed.stdout) if row["distribution"].startswith("acme")}
    assert kinds == {"acme-loss": ["losses/brier"], "acme-rows": ["rows/echo"], "acme-teacher": ["teachers/centroids"]}
    code = (
        "from acme_streamkd import loss, teacher; from streamkd.testing import check_loss, check_teacher; "
        "[check_teacher(kind) for kind in teacher.streamkd_teachers()]; "
        "[check_loss(kind) for kind in loss.streamkd_losses()]; print('kept')"
    )
    assert environment.run("python", "-c", code).stdout == "kept\n"
    typed = environment.run("python", "-m", "mypy", "--strict", "acme/acme_streamkd", timeout=1200)
    assert typed.returncode == 0, typed.stdout
