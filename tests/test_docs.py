"""The documents say what is: short where they should be, every link leads on, every block of code is run or checked."""

import ast
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml
from pydantic import BaseModel

from streamkd.choices import Choice
from streamkd.cli import cli
from streamkd.config import Config, from_tree
from streamkd.plugins import Registry

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
README = (ROOT / "README.md").read_text()
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "results", "streams", "plugins", "deploy")
    for page in (ROOT.glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
)
# who runs the Python of a page
RUN = {
    "README.md": "tests/test_docs.py",
    "docs/how-to/a-gate-in-plain-pytorch.md": "tests/pretraining/test_plain.py",
    "docs/how-to/export.md": "tests/export/test_artefact.py",
    "docs/how-to/push-records.md": "tests/producer/test_push.py",
    "docs/tune.md": "tests/tune/test_study.py",
    "docs/tutorials/first-plugin.md": "tests/test_plugins.py",
    "docs/tutorials/first-stream.md": "tests/endtoend/test_tutorial.py",
    "docs/tutorials/from-avalanche.md": "tests/avalanche/test_plugin.py",
    "plugins/README.md": "tests/test_plugins.py",
    "plugins/streamkd-vision/README.md": "plugins/streamkd-vision/tests/test_readme.py",
}
# who takes the YAML of a page that is no part of a configuration, or of one with a plugin
TAKEN = {
    "plugins/streamkd-baselines/README.md": "plugins/streamkd-baselines/tests/test_readme.py",
    "deploy/README.md": "tests/test_deploy.py",
    "docs/tune.md": "tests/tune/space/test_space.py",
    "docs/tutorials/first-plugin.md": "tests/test_plugins.py",
    "plugins/streamkd-river/README.md": "plugins/streamkd-river/tests/test_readme.py",
    "plugins/streamkd-crossmodal/README.md": "plugins/streamkd-crossmodal/tests/test_readme.py",
    "plugins/streamkd-mlflow/README.md": "plugins/streamkd-mlflow/tests/test_readme.py",
    "plugins/streamkd-text/README.md": "plugins/streamkd-text/tests/test_readme.py",
    "plugins/streamkd-vision/README.md": "plugins/streamkd-vision/tests/test_readme.py",
}


# who runs the `curl` of a page
CURLED = {
    "README.md": "tests/endtoend/test_embedded.py",
    "deploy/README.md": "tests/endtoend/test_embedded.py",
    "docs/how-to/late-labels.md": "tests/endtoend/test_how_to.py",
    "docs/how-to/push-records.md": "tests/endtoend/test_how_to.py",
    "docs/tutorials/first-stream.md": "tests/endtoend/test_tutorial.py",
}

STREAM = {"source": {"name": "replay", "dataset": "digits"}}
WRITTEN = [page for page in PAGES if page not in ("CHANGELOG.md", "docs/hardening.md")]
# what has dots and is no key: names in code and in answers, figures of a benchmark, files
OTHERS = ("accuracy", "average", "body", "evidence", "lesson", "repeats", "strategy", "streamkd", "teach")
FIGURES = ("adaptation_seconds", "overhead_ratio")
SUFFIXES = ("log", "html", "json", "onnx", "parquet", "py", "service", "sqlite", "toml", "txt", "yaml", "yml")


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text(page), re.S | re.M)
    return found


def anchors(page: str) -> set[str]:
    """What the headings of a page can be reached by."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text(page), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_module_map_lists_every_module_and_package() -> None:
    """Each child of streamkd/ has its row in ARCHITECTURE.md, and each row a child."""
    children = {p.name for p in (ROOT / "streamkd").iterdir() if p.suffix == ".py" and not p.name.startswith("__")}
    children |= {f"{p.parent.name}/" for p in (ROOT / "streamkd").glob("*/__init__.py")}
    rows = "\n".join(line for line in ARCHITECTURE.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`([a-z_]+(?:\.py|/))`", "\n".join(line.split("|")[1] for line in rows.splitlines())))
    assert named == children


def test_the_readme_begins_with_the_two_commands() -> None:
    """`make serve` and `make test` are its first lines of code."""
    code = [line for line in README.splitlines() if line.startswith("    ")]
    assert [line.split("#")[0].strip() for line in code[:2]] == ["make serve", "make test"]


def test_the_readme_and_the_map_stay_short() -> None:
    """At most 120 lines to begin with, and 10 KB to find one's way; the picture has 150 KB at most."""
    assert len(README.splitlines()) <= 120
    assert len(ARCHITECTURE.encode()) <= 10_000
    assert 10_000 < (ROOT / "docs" / "page.png").stat().st_size <= 150_000


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Relative links and pictures name files that exist, and anchors headings of theirs."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text(page)):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), target


def test_every_page_can_be_reached() -> None:
    """From the README, by links, whatever is in docs/."""
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page not in PAGES:
            continue
        reached.add(page)
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text(page)):
            waiting.append(((ROOT / page).parent / target).resolve().relative_to(ROOT).as_posix())
    assert [page for page in PAGES if page.startswith("docs/") and page not in reached] == []


def test_python_is_run() -> None:
    """Every page with Python is read by the test that runs it, and every block parses."""
    assert {page for page in PAGES if blocks(page, "python")} == set(RUN)
    for page, test in RUN.items():
        assert re.search(rf"{Path(page).name}|README", (ROOT / test).read_text("utf-8")), page
        for block in blocks(page, "python"):
            ast.parse(block)


def test_curl_is_run() -> None:
    """Every page that calls it is read by a test that runs it."""
    assert {page for page in PAGES if re.search(r"^    curl ", text(page), re.M)} == set(CURLED)
    for page, test in CURLED.items():
        assert f'"{page}"' in (ROOT / test).read_text("utf-8")


def test_the_readmes_python_runs() -> None:
    """Its names are there."""
    for block in blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), {})


def test_the_flight_client_is_the_one_that_is_tried() -> None:
    """tests/endtoend runs it against a server."""
    assert (ROOT / "tests/endtoend/bare_flight.py").read_text() in blocks("docs/how-to/push-records.md", "python")


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TAKEN and blocks(page, "yaml")])
def test_yaml_is_part_of_a_configuration(page: str) -> None:
    """Blocks of YAML are taken as they stand, beside a stream where they have none."""
    for block in blocks(page, "yaml"):
        from_tree({"stream": STREAM, **yaml.safe_load(block)}, Registry.load())


@pytest.mark.parametrize("page", [page for page in WRITTEN if not page.startswith("plugins/")])
def test_keys_that_a_page_names_are_there(page: str) -> None:
    """What stands in a line of text as `memory.replay` or `pool: {limit: 8}` is taken by the configuration."""
    words = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text(page), flags=re.S | re.M))
    for word in words:
        if re.fullmatch(r"[a-z_]+: \{[^A-Z]+\}", word) and "..." not in word:
            from_tree({"stream": STREAM, **yaml.safe_load(word)}, Registry.load())
        dotted = re.match(r"([a-z_]+(?:\.[a-z_]+)+)(?=$|=|: )", word)
        if dotted and dotted[1].split(".")[0] not in OTHERS and dotted[1].split(".")[-1] not in FIGURES + SUFFIXES:
            assert _is_key(Config, dotted[1].split(".")), word


def _is_key(node: Any, names: list[str]) -> bool:
    """Whether a path leads into the tree; behind a choice come a plugin's own options."""
    models = [each for each in (node, *get_args(node)) if isinstance(each, type) and issubclass(each, BaseModel)]
    if not names or not models:
        return not names
    fields = models[0].model_fields
    if names[0] not in fields:
        return issubclass(models[0], Choice)
    return _is_key(fields[names[0]].annotation, names[1:])


@pytest.mark.parametrize("page", WRITTEN)
def test_files_that_a_page_names_are_there(page: str) -> None:
    """Paths of this repository, as `tests/oracles.py`; a decision's, as long as it is in force."""
    named = re.findall(
        r"`((?:streamkd|tests|deploy|streams|plugins|results|docs)/[a-z0-9_./-]*)(?:::\w+)?`", text(page)
    )
    if not page.startswith("docs/decisions/0") or "\nIn force." in text(page):
        assert [path for path in named if not (ROOT / path).exists()] == []


def test_other_yaml_has_a_test() -> None:
    """Pages whose YAML is something else are read by the test that takes it."""
    for page, test in TAKEN.items():
        assert blocks(page, "yaml"), page
        assert re.search(rf"{Path(page).name}|README|DEPLOY", (ROOT / test).read_text("utf-8")), page


def shown(page: str) -> list[list[str]]:
    """The words of every ``streamkd`` command in a page's indented code."""
    joined = text(page).replace("\\\n", " ")
    lines = re.findall(r"^    (?:\S*/)?streamkd ((?!\[)[^\n]*)$", joined, re.M)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", [page for page in PAGES if shown(page)])
def test_commands_are_there(page: str) -> None:
    """Every command that a page shows is one, with options that it has."""
    for words in shown(page):
        command: click.Command = cli
        rest = iter(words)
        while isinstance(command, click.Group):
            name = next(rest)
            assert name in command.commands, words
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        assert {word for word in rest if word.startswith("--")} <= known, words


def test_the_decisions_are_listed() -> None:
    """Numbers go up by one, the index has each page with its title, and each in force names what it decides."""
    assert [page.name[:4] for page in DECISIONS] == [f"{number:04}" for number in range(1, len(DECISIONS) + 1)]
    index = text("docs/decisions/README.md")
    for page in DECISIONS:
        title = re.match(rf"# {page.name[:4]}\. (.+)\n", page.read_text("utf-8"))
        assert title, page.name
        assert f"| [{page.name[:4]}]({page.name}) | {title[1]} |" in index
        assert re.search(r"\nIn force\. Decides: `streamkd/|\nReplaced", page.read_text("utf-8")), page.name


def test_make_help_lists_the_targets() -> None:
    """`make help` is the list of what can be made."""
    said = subprocess.check_output(["make", "-s", "help"], cwd=ROOT, text=True)
    listed = {line.split()[0] for line in said.splitlines()}
    assert {"setup", "serve", "test", "test-fast", "check", "bench", "soak"} <= listed


def test_the_hooks_before_a_commit_are_targets() -> None:
    """`.pre-commit-config.yaml` has local hooks alone, each a target of the Makefile."""
    [repository] = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert re.search(rf"^{hook['entry'].split()[-1]}:", text("Makefile"), re.M)


def test_the_hosted_workflow_runs_what_is_claimed() -> None:
    """On the Python that the package asks for it runs `.ci/run`, which ends with `make test`."""
    [job] = yaml.safe_load(text(".github/workflows/ci.yaml"))["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert "python3.11-venv" in job["steps"][0]["run"]
    assert text(".ci/run").strip().endswith("make test")


@pytest.mark.parametrize(
    "name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "constraints.txt", ".ci/run"]
)
def test_what_any_project_has_is_there(name: str) -> None:
    """The root holds licence, changes, how to take part, pins and the CI's script."""
    assert (ROOT / name).stat().st_size > 0
