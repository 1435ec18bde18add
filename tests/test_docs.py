"""The documents say what is: the map lists every module, the README's first lines are the two commands."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from streamkd.cli import cli
from streamkd.config import from_tree
from streamkd.plugins import Registry

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
README = (ROOT / "README.md").read_text()


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


def test_the_readme_names_every_command() -> None:
    """Each command of the program stands in the README's table."""
    missing = [name for name in cli.commands if f"`streamkd {name}" not in README and f"streamkd {name} " not in README]
    assert missing == []


def test_python_in_the_readme_parses() -> None:
    """Blocks of Python are Python, and the Flight client is the one that tests/endtoend runs against a server."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert (ROOT / "tests/endtoend/bare_flight.py").read_text() in blocks
    for block in blocks:
        ast.parse(block)


def test_yaml_in_the_readme_is_part_of_a_configuration() -> None:
    """Blocks of YAML are taken as they stand, beside a stream."""
    for block in re.findall(r"```yaml\n(.*?)```", README, re.S):
        stream = {"source": {"name": "replay", "dataset": "digits"}}
        from_tree({"stream": stream, **yaml.safe_load(block)}, Registry.load())


def test_links_lead_somewhere() -> None:
    """Relative links of the documents name files that exist."""
    for document in (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *ROOT.glob("*/README.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_make_help_lists_the_targets() -> None:
    """`make help` is the list of what can be made."""
    said = subprocess.check_output(["make", "-s", "help"], cwd=ROOT, text=True)
    listed = {line.split()[0] for line in said.splitlines()}
    assert {"setup", "serve", "test", "test-fast", "check", "bench", "soak"} <= listed


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "constraints.txt", ".ci/run"])
def test_what_any_project_has_is_there(name: str) -> None:
    """The root holds licence, changes, pins and the CI's script."""
    assert (ROOT / name).stat().st_size > 0
