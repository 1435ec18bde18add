"""Every kind that the distribution brings keeps the contract that streamkd checks."""

import ast
from pathlib import Path

import pytest
import streamkd_baselines
from baselines import MODULES, PROJECT, REGISTRY

from streamkd import testing
from streamkd.api import Group
from streamkd.plugins import BROUGHT

LAYERS = {"student": "body.layer", "teacher": {"ema": "its.layer"}}
OPTIONS = dict.fromkeys(("feature", "attention", "relational"), LAYERS)
GROUPS: tuple[Group, ...] = ("gates", "losses", "optimizers")
KINDS = [(group, name) for group in GROUPS for name in REGISTRY.names(group) if REGISTRY.origin(group, name) in MODULES]
SOURCES = sorted(Path(streamkd_baselines.__file__).parent.glob("*.py"))


@pytest.mark.parametrize(("group", "name"), KINDS, ids=["/".join(kind) for kind in KINDS])
def test_a_kind_keeps_its_contract(group: Group, name: str) -> None:
    """With its defaults, over many layers, pools and batches."""
    testing.check(group, REGISTRY.kind(group, name), OPTIONS.get(name))


def test_streamkd_names_what_it_brings() -> None:
    """Where it is missing, a configuration that names one of its kinds is told what to install; and no other is."""
    named = [(g, n) for g, names in BROUGHT.items() for n, brings in names.items() if brings == PROJECT["name"]]
    assert sorted(named) == sorted(KINDS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_it_is_built_on_the_public_surface_alone(path: Path) -> None:
    """Of streamkd it imports `streamkd.api` and nothing else: the hooks suffice."""
    tree = ast.parse(path.read_text("utf-8"))
    froms = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in froms | plain if name.partition(".")[0] == "streamkd"} <= {"streamkd.api"}


def test_every_module_is_an_entry_point() -> None:
    """None lies there that nothing loads."""
    assert {f"streamkd_baselines.{path.stem}" for path in SOURCES if path.stem != "__init__"} == {*MODULES.values()}
