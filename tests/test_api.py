"""What a plugin may import: the names, that they lead where they say, and that a stranger's plugin needs no others."""

import ast
import copy
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from streamkd import api, testing, wiring
from streamkd import config as configuration
from streamkd.learner import Learner
from streamkd.plugins import Registry

ROOT = Path(__file__).parent.parent
ACME = ROOT / "tests" / "acme"
PLUGINS = [*sorted((ACME / "acme_streamkd").glob("*.py")), *sorted(ROOT.glob("plugins/*/streamkd_*/*.py"))]


def _imports(path: Path) -> Iterator[tuple[str, ast.alias]]:
    """Module and name of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, alias) for alias in node.names)


def test_the_names_are_sorted_and_each_is_there() -> None:
    """`__all__` is in order, holds no name twice, and every name of it can be had, also by `import *`."""
    assert api.__all__ == sorted(set(api.__all__))
    assert set(dir(api)) == set(api.__all__)
    starred: dict[str, object] = {}
    exec("from streamkd.api import *", starred)
    assert set(api.__all__) <= set(starred)


def test_what_a_type_checker_reads_is_what_is_given() -> None:
    """Each name is imported once for the type checker and once when it is asked for: from the same place."""
    read = {a.asname or a.name: (module, a.name) for module, a in _imports(Path(api.__file__))}
    for name in api.__all__:
        module, inside = read[name]
        assert getattr(api, name) is getattr(import_module(module), inside), name


def test_a_source_can_be_written_without_loading_torch() -> None:
    """Names that have nothing to do with tensors bring none: the process that takes records in has no torch."""
    code = (
        "import sys; from streamkd.api import Chunk, Detector, Kind, Observer, Options, RecordSchema, SourceKind\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_name_that_is_not_there_is_an_error() -> None:
    """What belongs to a module of ours is no name of the surface by that."""
    for name in ("Lesson", "Pool", "nothing"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(api, name)


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_plugins_import_the_surface_alone(path: Path) -> None:
    """A stranger's plugin, and those of ours that lie in plugins/, take nothing else of streamkd."""
    ours = {module for module, _ in _imports(path) if module.partition(".")[0] == "streamkd"}
    assert ours <= {"streamkd.api", "streamkd.testing"}


def test_every_name_is_in_the_guide() -> None:
    """plugins/README.md says of each name what it is for."""
    guide = (ROOT / "plugins" / "README.md").read_text("utf-8")
    assert [name for name in api.__all__ if f"`{name}`" not in guide] == []


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry with the stranger's plugin in it."""
    monkeypatch.syspath_prepend(str(ACME))
    registry = Registry()
    for part in ("teacher", "loss", "rows"):
        registry.register(import_module(f"acme_streamkd.{part}"), f"acme-{part}", "acme-streamkd")
    yield registry
    for name in [name for name in sys.modules if name.startswith("acme_streamkd")]:
        del sys.modules[name]


def test_a_strangers_plugin_keeps_its_contracts(acme: Registry) -> None:
    """A teacher, a loss and a source of rows that were written against the surface alone pass the checks."""
    testing.check_teacher(acme.kind("teachers", "centroids"), {"sharpness": 2.0})
    testing.check_loss(acme.kind("losses", "brier"))
    testing.check_rows(acme.kind("rows", "echo"))


def test_a_strangers_rows_are_learned_and_drawn_alike_after_a_restart(acme: Registry) -> None:
    """`rows: [{name: echo}]`: each step has them, and a learner that was stopped ends in the same bits."""
    registry = Registry.load()
    registry.register(import_module("acme_streamkd.rows"), "acme-rows", "acme-streamkd")
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "per_class": 20}
    tree = {
        "stream": {"source": source},
        "student": {"name": "mlp", "hidden": [8]},
        "memory": {"size": 40, "replay": 10},
        "vicinal": {"rows": 4},
        "rows": [{"name": "echo", "rows": 5}, {"name": "echo", "id": "louder", "noise": 1.0}],
    }
    whole, first, second = (_learner(tree, registry) for _ in range(3))
    for one, steps in ((whole, 20), (first, 12)):
        for _ in range(steps):
            assert one.advance()
    second.restore(copy.deepcopy(first.state()), first.offsets, first.config)
    for _ in range(8):
        assert second.advance()
    assert whole.last is not None
    origins = whole.last.plan.origins
    assert (origins["arrived"], origins["replayed"], origins["echo"], origins["louder"]) == (10, 10, 5, 8)
    assert not whole.step.sources.strikes.counts
    pairs = zip(whole.student.parameters(), second.student.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def _learner(tree: dict[str, Any], registry: Registry) -> Learner:
    config = configuration.from_tree(tree, registry)
    schema = wiring.schema_of(config, registry)
    source, _ = wiring.open_source(config, registry, schema)
    return Learner(config, registry, source, schema)
