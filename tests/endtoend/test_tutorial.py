"""docs/tutorials/first-stream.md, followed to the letter but for the ports."""

import re
import shlex
from pathlib import Path

import pytest

from .conftest import ROOT, Serve, curled, streamkd, until

NAME = "docs/tutorials/first-stream.md"
PAGE = (ROOT / NAME).read_text("utf-8")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_stream(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is made, every command does what the page says it does, in its order."""
    monkeypatch.chdir(tmp_path)
    [script] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(script, "make_tumours.py", "exec"), {})
    init, check, run, serving, predict, inspect, models = (
        shlex.split(line) for line in re.findall(r"^    streamkd (.*)$", PAGE, re.M)
    )
    _run(init)
    assert "fine" in _run(check)
    found = re.search(r"final average accuracy (\d\.\d+)", _run(run))
    assert found
    assert float(found[1]) > 0.9
    assert Path("out/report.html").exists()

    command, configuration, _, state = serving
    assert command == "serve"
    server = serve(tmp_path / configuration, state=tmp_path / state)
    server.trained(456)
    until(server.ready, 30, "a version")
    assert [answer["records_trained"] for answer in curled(NAME, server, tmp_path)] == [456]
    assert "569 predictions" in _run([server.url if "8470" in word else word for word in predict])
    assert server.stop() == 0
    assert re.findall(r"```text\n(456 .*)\n", PAGE)[0] in _run(inspect)
    assert "served" in _run(models)


def _run(words: list[str]) -> str:
    done = streamkd(*words, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout
