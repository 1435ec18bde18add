"""A plugin to begin with: an installable package whose one kind works, with its test and its README.

    streamkd plugins new NAME --kind teacher ─► NAME/{pyproject.toml, README.md, name.py, tests/test_name.py}

The kind is a module of ``streamkd.scaffold.kinds``, in which the name ``example`` becomes the author's.
"""

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from streamkd.errors import ConfigError

if TYPE_CHECKING:
    from streamkd.hookspecs import Group

Scaffolded = Literal["teacher", "loss", "gate", "student", "source", "detector", "observer", "rows"]
KINDS: tuple[Scaffolded, ...] = get_args(Scaffolded)
GROUPS: "dict[Scaffolded, Group]" = {
    "teacher": "teachers",
    "loss": "losses",
    "gate": "gates",
    "student": "students",
    "source": "sources",
    "detector": "detectors",
    "observer": "observers",
    "rows": "rows",
}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
USES: dict[Scaffolded, str] = {
    "teacher": "teachers: [ema, {name}]",
    "loss": "losses: [match-gate, {name}]",
    "gate": "gate: {name}",
    "student": "student: {name}",
    "source": "stream: {{source: {name}}}",
    "detector": "detectors: [{name}]",
    "observer": "observers: [{name}]",
    "rows": "rows: [{name}]",
}


def write(name: str, kind: Scaffolded, folder: Path) -> list[Path]:
    """Write the package into ``folder / name``; the files, in the order in which to read them.

    Raises:
        ConfigError: the name is none that a package and a configuration can have, or the folder is there already.
    """
    if not NAME.fullmatch(name):
        needed = f"needed small letters, digits and single hyphens, beginning with a letter, got {name!r}"
        raise ConfigError(needed, where="NAME", fix="call it my-teacher, say")
    place = folder / name
    if place.exists():
        raise ConfigError(f"{place} is there already", where="NAME", fix="take another name, or --into another folder")
    found = {place / file: text for file, text in files(name, kind).items()}
    for path, text in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return list(found)


def use(name: str, kind: Scaffolded) -> str:
    """How a configuration names it."""
    return USES[kind].format(name=name)


def files(name: str, kind: Scaffolded) -> dict[str, str]:
    """The texts of the package by their paths within it."""
    module = name.replace("-", "_")
    told = {"name": name, "module": module, "kind": kind, "group": GROUPS[kind], "use": use(name, kind)}
    return {
        f"{module}.py": _renamed((resources.files(__package__) / "kinds" / f"{kind}.py").read_text("utf-8"), name),
        f"tests/test_{module}.py": _TEST.format(**told),
        "README.md": _README.format(**told),
        "pyproject.toml": _PYPROJECT.format(**told),
    }


def _renamed(text: str, name: str) -> str:
    classed = "".join(part.capitalize() for part in name.split("-"))
    return re.sub(r"\bExample", classed, re.sub(r"\bexample\b", name, text))


_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "0.1.0"
description = "A {kind} for streamkd"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["streamkd"]

[project.entry-points.streamkd]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
include = ["{module}.py"]

[tool.pytest.ini_options]
addopts = "-p streamkd.pytest_plugin"  # the fixtures streamkd_run and streamkd_serve
"""

_TEST = '''\
"""The contract, and a whole stream."""

import {module}
from streamkd.testing import check


def test_it_keeps_the_contract():
    """All that streamkd asks of a {kind}; what is broken is named, with the way to mend it."""
    [kind] = {module}.streamkd_{group}()
    check("{group}", kind)


def test_a_learner_takes_it(streamkd_run):
    """Named in a configuration it goes through a small stream, and the student learns."""
    report = streamkd_run("{use}")
    assert report["throughput"]["records"] > 0
    assert report["student"]["accuracy"]["prequential"] > 0.5
'''

_README = """\
# {name}

A {kind} for streamkd. What it does stands in `{module}.py`; change that.

    pip install -e .
    pytest
    streamkd plugins check {name}

Then a configuration may say

```yaml
{use}
```

`streamkd.api` has all that a plugin may import, `streamkd.testing` the checks of the contract. In tests `streamkd_run`
takes a small stream through a configuration, and `streamkd_serve` starts a server.
"""
