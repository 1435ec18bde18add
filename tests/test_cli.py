"""The commands as a person runs them; in this process, where nothing is said about a process of its own."""

import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamkd.cli import main

ROOT = Path(__file__).parent.parent


def streamkd(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command through the entry point; what it says, and its exit code."""
    from streamkd.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["streamkd", *arguments])
        patch.chdir(cwd or Path.cwd())
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def test_help_answers_at_once() -> None:
    """`--help` takes less than 0.3 s: the best of five, for a busy machine."""
    script = Path(sys.executable).with_name("streamkd")
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=20)
        seconds.append(time.perf_counter() - begun)
    assert "serve" in done.stdout
    assert min(seconds) < 0.3


def test_importing_the_commands_imports_nothing_heavy() -> None:
    """Neither torch, nor Arrow, nor Avalanche is there before a command runs."""
    code = (
        "import sys, streamkd.cli; print([m for m in ('torch','pyarrow','avalanche','pydantic') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_check_says_what_it_found() -> None:
    """`check` without a file looks at the embedded stream, in a process of its own too."""
    done = subprocess.run([sys.executable, "-m", "streamkd", "check"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert "image tensor [8, 8] uint8" in done.stdout


def test_a_wrong_configuration_is_exit_code_2(tmp_path: Path) -> None:
    """A misspelt key is refused with file, line, path and the nearest key, without a traceback."""
    file = tmp_path / "wrong.yaml"
    file.write_text("stream: {source: {name: replay, dataset: digits}}\nmemory:\n  sise: 3\n")
    command = [sys.executable, "-m", "streamkd", "check", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert f"{file}:3: memory.sise" in done.stderr
    assert "did you mean 'size'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapt.engine=maml", "plain SGD alone, got Adam"),
        ("teachers=[{name: checkpoint, path: nowhere}]", "there is no such model"),
        ("share={teacher: mm}", "'mm' is neither a teacher nor a model's path"),
        ("gate={name: fixed, teachers: {emma: 1}, others: 0}", "there is no teacher 'emma'"),
    ],
)
def test_check_builds_what_is_named(override: str, message: str) -> None:
    """What `run` and `serve` would refuse at once, `check` does not call fine."""
    done = streamkd("check", "--set", override)
    assert done.returncode != 0
    assert message in done.stderr
    assert "fine" not in done.stdout


def test_check_warns_of_a_gate_that_cannot_adapt(caplog: pytest.LogCaptureFixture) -> None:
    """Without held-out records there is no outer loss, unless it is the next batch's."""
    streamkd("check", "--set", "memory.holdout_ratio=0")
    assert "holdout_ratio is 0" in caplog.text
    caplog.clear()
    streamkd("check", "--set", "memory.holdout_ratio=0", "--set", "adapt.engine=prequential")
    assert "holdout_ratio" not in caplog.text


def test_plugins_list_names_every_built_in() -> None:
    """All groups are there, as JSON for programs."""
    rows = json.loads(streamkd("plugins", "list", "--json").stdout)
    kinds = {kind for row in rows for kind in row["kinds"]}
    assert {"students/mlp", "teachers/ema", "losses/match-gate", "gates/per-sample", "sources/flight"} <= kinds


def test_init_writes_a_configuration_that_check_takes(tmp_path: Path) -> None:
    """A file of the user's own becomes a configuration; a second `init` does not overwrite it."""
    (tmp_path / "flowers.csv").write_text("a,b,species\n" + "".join(f"{i},{i % 7},{'xy'[i % 2]}\n" for i in range(50)))
    made = streamkd("init", "flowers.csv", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "Left out of the inputs: 'a' looks like an id: it counts from 0 to 49" in made.stdout
    assert streamkd("check", "flowers.yaml", cwd=tmp_path).returncode == 0
    again = streamkd("init", "flowers.csv", cwd=tmp_path)
    assert again.returncode == 1
    assert "--force" in again.stderr


def test_check_looks_at_the_file(tmp_path: Path) -> None:
    """A file of one class, for which `run` would report 100 %, is not called fine; with `accept` it is."""
    (tmp_path / "one.csv").write_text("x,label\n" + "".join(f"{i % 7},1\n" for i in range(50)))
    file = tmp_path / "one.csv"
    source = f"stream={{source: {{name: replay, path: {file}, rate: 5}}, records: {{inputs: [{{name: x}}]}}}}"
    refused = streamkd("check", "--set", source)
    assert (refused.returncode, "all 50 records have the label 1" in refused.stderr) == (1, True)
    assert streamkd("check", "--set", source, "--set", "stream.source.accept=[one-label]").returncode == 0


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [(("--out", "none/it.yaml"), 1, "cannot be written"), (("--accept", "all"), 2, "there are: header, many-labels")],
)
def test_init_refuses_in_words(
    more: tuple[str, ...], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is not there and a doubt that does not exist are said without a traceback."""
    (tmp_path / "it.csv").write_text("x,label\n" + "".join(f"0.{i},{i % 3}\n" for i in range(50)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["streamkd", "init", "it.csv", *more])
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, said in stderr.getvalue()) == (code, True)


def test_inspect_of_no_state_directory_is_said(tmp_path: Path) -> None:
    """A folder that is none is an error in words."""
    done = streamkd("inspect", str(tmp_path))
    assert done.returncode == 1
    assert "is no state directory" in done.stderr


@pytest.mark.parametrize("arguments", [("run", "--report"), ("push",), ("serve", "--port", "many")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    """click's own usage errors keep their code."""
    assert streamkd(*arguments).returncode == 2


def test_init_into_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """In words, with the path; not as a traceback."""
    (tmp_path / "flowers.csv").write_text("a,b,species\n" + "".join(f"{i},{i % 7},{'xy'[i % 2]}\n" for i in range(50)))
    done = streamkd("init", "flowers.csv", "--out", "nowhere/my.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: nowhere/my.yaml: cannot be written: No such file or directory" in done.stderr


def test_models_say_what_is_pinned_and_what_unpin_serves(tmp_path: Path) -> None:
    """`models list` names the pinned version and the newest one; `models unpin` serves that."""
    from click.testing import CliRunner

    from streamkd.cli import cli
    from streamkd.state.directory import StateDirectory
    from streamkd.state.versions import VersionStore

    directory = StateDirectory(tmp_path)
    with directory.lock():
        versions = VersionStore(directory)
        for records in (10, 20):
            versions.publish(lambda folder: (folder / "model.json").write_text("{}") and None, records=records)
        versions.close()

    def models(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["models", *arguments, "--state", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.output

    models("rollback", "1")
    assert "version 3 is pinned; `streamkd models unpin` serves version 2" in models("list")
    listed = json.loads(models("list", "--json"))
    assert [(v["version"], v["pinned"], v["served"], v["newest"]) for v in listed] == [
        (1, False, False, False),
        (2, False, False, True),
        (3, True, True, False),
    ]
    assert models("unpin") == "version 2 is served\n"


def test_models_go_back_and_say_what_is_gone(tmp_path: Path) -> None:
    """`models rollback --before` names what is gone on from, what is skipped and what is withdrawn."""
    from click.testing import CliRunner

    from streamkd.cli import cli
    from streamkd.state.checkpoint import CheckpointStore
    from streamkd.state.directory import StateDirectory
    from streamkd.state.versions import VersionStore

    directory = StateDirectory(tmp_path)
    with directory.lock():
        checkpoints, versions = CheckpointStore(directory), VersionStore(directory)
        for records in (10, 20):
            seen = {"records": records, "offsets": {"digits/0": records}}
            checkpoints.save({}, **seen, config={}, environment={})  # type: ignore[arg-type]
            versions.publish(lambda folder: (folder / "model.json").write_text("{}") and None, **seen)  # type: ignore[arg-type]
        checkpoints.close()
        versions.close()

    def models(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["models", *arguments, "--state", str(tmp_path)])
        return done.exit_code, done.output

    assert "20       digits/0 20  learned" in models("list")[1]
    assert models("rollback", "1", "--before", "15")[0] == models("rollback", "--skip-to", "15")[0] == 2
    assert models("rollback", "--before", "15", "--skip-to", "18") == (
        0,
        "the next start learns on from checkpoint 1 (digits/0 10; 10 records learned)\n"
        "never learned: 3 records, 15 to 17\n"
        "1 newer checkpoints are dropped; versions withdrawn: 2\n",
    )
