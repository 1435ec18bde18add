"""The registry: what one broken plugin does to itself, and to nobody else."""

import inspect
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml

from streamkd import config, hookspecs, testing
from streamkd.errors import ConfigError, PluginError
from streamkd.hookspecs import Group, Kind, Options, SourceKind, hookimpl
from streamkd.plugins import PluginStatus, Registry

Install = Callable[..., None]

GOOD = """
from streamkd.api import Kind, hookimpl

@hookimpl
def streamkd_gates():
    yield Kind("{kind}", lambda options: None)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Install]:
    """Puts a distribution with one entry point on the path, as an installer would."""
    before = set(sys.modules)

    def put(distribution: str, source: str, *, entry: str = "", version: str = "1.2") -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source), "utf-8")
        about = tmp_path / f"{module}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", "utf-8")
        (about / "entry_points.txt").write_text(f"[streamkd]\n{entry or module} = {module}\n", "utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield put
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def status(registry: Registry, name: str) -> PluginStatus:
    return next(s for s in registry.report() if s.name == name)


def plugin(**hooks: Callable[[], object]) -> SimpleNamespace:
    """An object with marked hooks."""
    return SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})


def test_a_good_plugin_is_listed_with_what_it_brought(install: Install) -> None:
    """An installed entry point brings its kinds, under its distribution's name and version."""
    install("acme-gates", GOOD.format(kind="steady"))
    registry = Registry.load()
    assert status(registry, "acme_gates") == PluginStatus("acme_gates", "acme-gates", "1.2", ("gates/steady",))
    assert registry.kind("gates", "steady").name == "steady"
    assert registry.origin("gates", "steady") == "acme_gates"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import a_module_that_is_not_there", "a_module_that_is_not_there"),
        ("raise RuntimeError('the licence has run out')", "the licence has run out"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def (", "SyntaxError"),
        ("x = 1", "brings nothing"),
    ],
    ids=["import", "raise", "exit", "syntax", "empty"],
)
def test_a_plugin_that_does_not_load_is_listed_with_its_error(install: Install, source: str, said: str) -> None:
    """Whatever a plugin does when it is imported, the others load and it is listed with its error."""
    install("acme-broken", source)
    install("acme-good", GOOD.format(kind="steady"))
    registry = Registry.load()
    broken = status(registry, "acme_broken")
    assert said in broken.error
    assert "Traceback" in broken.details
    assert broken.kinds == ()
    assert {"steady", "fixed"} <= set(registry.names("gates"))


@pytest.mark.parametrize("group", [*Registry()._kinds])
def test_a_hook_that_raises_is_named(group: str) -> None:
    """A hook that raises, also in the middle of its yielding, is named and brings nothing at all."""

    def raising() -> Iterable[Kind]:
        yield SourceKind("early", lambda options: None)
        raise ValueError("no such disk")

    registry = Registry()
    with pytest.raises(PluginError, match=rf"hook streamkd_{group}: raised ValueError: no such disk"):
        registry.register(plugin(**{f"streamkd_{group}": raising}), "acme")
    assert registry.names(group) == []  # type: ignore[arg-type]


def test_a_misspelt_hook_is_an_error_that_names_the_nearest(install: Install) -> None:
    """A hook that does not exist is refused instead of being silent."""
    install("acme-typo", GOOD.format(kind="steady").replace("streamkd_gates", "streamkd_gate"))
    error = status(Registry.load(), "acme_typo").error
    assert "streamkd_gate'" in error
    assert "did you mean 'streamkd_gates'?" in error


def test_a_hook_without_its_mark_is_an_error(install: Install) -> None:
    """A hook that somebody forgot to mark is refused instead of being silent."""
    install("acme-unmarked", GOOD.format(kind="steady").replace("@hookimpl", ""))
    error = status(Registry.load(), "acme_unmarked").error
    assert "streamkd_gates is not marked" in error


def test_a_hook_with_an_argument_is_an_error() -> None:
    """Hooks take no argument; one that asks for something is refused with the list of hooks."""
    registry = Registry()
    with pytest.raises(PluginError, match="hooks take no argument"):
        registry.register(plugin(streamkd_gates=lambda teachers: ()), "acme")


@pytest.mark.parametrize("other", ["acme-twin", "acme-other"])
def test_a_name_that_is_taken_names_both(install: Install, other: str) -> None:
    """The second plugin that brings a name is off, and the error says who the first is."""
    install("acme-first", GOOD.format(kind="steady"))
    install(other, GOOD.format(kind="steady"), entry="acme_first" if other == "acme-twin" else "")
    errors = [s.error for s in Registry.load().report() if s.error and s.distribution.startswith("acme")]
    assert len(errors) == 1
    assert "gates/steady is brought by both" in errors[0]
    assert "acme-first" in errors[0]
    assert other in errors[0]


def test_two_distributions_may_share_an_entry_points_name(install: Install) -> None:
    """The name of an entry point is no name of a kind: nobody loses anything when two are alike."""
    install("acme-one", GOOD.format(kind="one"), entry="gates")
    install("acme-two", GOOD.format(kind="two"), entry="gates")
    assert {"one", "two", "fixed"} <= set(Registry.load().names("gates"))


def test_a_builtin_cannot_be_taken_over(install: Install) -> None:
    """A plugin that brings a built-in's name is off, the built-in stays."""
    install("aaa-first-by-name", GOOD.format(kind="fixed"))
    registry = Registry.load()
    assert "gates/fixed is brought by both" in status(registry, "aaa_first_by_name").error
    assert registry.origin("gates", "fixed") == "gates"


def test_one_plugin_cannot_bring_a_name_twice() -> None:
    """A name that one plugin yields twice is refused."""
    registry = Registry()
    with pytest.raises(PluginError, match="gates/a is brought twice"):
        registry.register(plugin(streamkd_gates=lambda: [Kind("a", print), Kind("a", print)]), "acme")


class Named(Options):
    """An option that the configuration keeps for itself."""

    id: str = ""


class Gated(Options):
    """Another: the gate of a single loss."""

    gate: str = ""


@pytest.mark.parametrize(
    ("hook", "yielded", "said"),
    [
        ("gates", ["fixed"], "needed streamkd.api.Kind, got 'fixed'"),
        ("gates", [None], "needed streamkd.api.Kind, got None"),
        ("gates", Kind("a", print), "'Kind' object is not iterable"),
        ("sources", [Kind("a", print)], "needed streamkd.api.SourceKind"),
        ("gates", [Kind("", print)], "needed a name"),
        ("gates", [Kind("a", "print")], "needed a callable `make`"),  # type: ignore[arg-type]
        ("gates", [Kind("a", print, dict)], "needed a subclass of streamkd.api.Options"),  # type: ignore[arg-type]
        ("teachers", [Kind("a", print, Named)], "the option 'id' can never be filled"),
        ("losses", [Kind("a", print, Gated)], "the option 'gate' can never be filled"),
    ],
)
def test_what_is_no_kind_is_refused(hook: str, yielded: object, said: str) -> None:
    """A hook yields whole kinds or the plugin is off: the error shows what came instead."""
    with pytest.raises(PluginError) as caught:
        Registry().register(plugin(**{f"streamkd_{hook}": lambda: yielded}), "acme")
    assert said in str(caught.value)
    assert f"hook streamkd_{hook}" in str(caught.value)


def test_a_kind_of_a_newer_hook_is_refused() -> None:
    """What was written for a hook that this streamkd does not have yet is off, with both versions and the way out."""
    newer = Kind("a", print, hook_version=hookspecs.VERSIONS["gates"] + 1)
    with pytest.raises(PluginError, match="written for version 2 of the hook, this streamkd knows up to 1") as caught:
        Registry().register(plugin(streamkd_gates=lambda: [newer]), "acme")
    assert "upgrade streamkd" in caught.value.fix


def test_a_kind_of_an_older_hook_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """What was written for an older version of its hook is taken, and the log says so."""
    registry = Registry()
    registry.register(plugin(streamkd_gates=lambda: [Kind("a", print, hook_version=0)]), "acme")
    assert registry.names("gates") == ["a"]
    assert "plugin acme, hook streamkd_gates, a: it is written for version 0 of the hook, this is 1" in caplog.text


def test_a_refused_plugin_leaves_nothing_behind() -> None:
    """A plugin that was refused can be registered again once it is repaired, under the same name."""
    registry = Registry()
    broken = plugin(streamkd_gates=lambda: [Kind("a", print)], streamkd_losses=lambda: [None])
    with pytest.raises(PluginError):
        registry.register(broken, "acme")
    assert registry.names("gates") == []
    assert registry.register(plugin(streamkd_gates=lambda: [Kind("a", print)]), "acme") == ["gates/a"]


def test_an_unknown_name_is_told_the_nearest_the_known_and_the_broken(install: Install) -> None:
    """Asking for what is not there says what was probably meant, what there is, and which plugins are off."""
    install("acme-broken", "raise RuntimeError('no licence')")
    with pytest.raises(PluginError) as caught:
        Registry.load().kind("losses", "match-gat")
    text = str(caught.value)
    assert "there is no loss 'match-gat'" in text
    assert "did you mean 'match-gate'?" in text
    assert "known losses: " in text
    assert "match-gate" in text.split("known losses: ")[1]
    assert "acme_broken (RuntimeError: no licence)" in text


def test_a_kind_that_a_distribution_of_ours_brings_is_told_what_to_install() -> None:
    """A configuration from when it was built in, or one of another installation, is led to it."""
    for group, name in (("gates", "hedge"), ("losses", "kd")):
        with pytest.raises(PluginError, match="fix: streamkd-baselines brings it: pip install streamkd-baselines"):
            Registry().kind(group, name)  # type: ignore[arg-type]


def test_only_the_named_entry_points_are_imported(install: Install) -> None:
    """A process that needs one source imports no other plugin."""
    install("acme-heavy", GOOD.format(kind="steady"))
    registry = Registry.load(only=["gates"])
    assert [s.name for s in registry.report()] == ["gates"]
    assert "acme_heavy" not in sys.modules


def test_a_configuration_that_names_a_broken_plugin_is_refused(install: Install, tmp_path: Path) -> None:
    """What the configuration names must be there: the error has file, line, path and the plugin's own error."""
    install("acme-broken", "raise RuntimeError('no licence')")
    file = tmp_path / "own.yaml"
    file.write_text("stream:\n  source: {name: replay, dataset: digits}\ngate: {name: acme-gate}\n", "utf-8")
    with pytest.raises(ConfigError) as caught:
        config.load(file, registry=Registry.load())
    assert f"{file}:3: gate.name: there is no gate 'acme-gate'" in str(caught.value)
    assert "plugins that did not load: " in str(caught.value)
    assert "acme_broken (RuntimeError: no licence)" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_configuration_that_names_no_broken_plugin_is_taken(install: Install) -> None:
    """A broken plugin that nobody asked for stops nothing."""
    install("acme-broken", "raise RuntimeError('no licence')")
    assert config.load(None, registry=Registry.load()).student.name == "mlp"


GUIDE = (Path(__file__).parents[1] / "plugins" / "README.md").read_text("utf-8")
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("streamkd_"))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_in_the_guide_with_its_arguments(hook: str) -> None:
    """The author's guide has the hook, the exact call of ``make`` that the specification says, and its check."""
    calls = re.findall(r"``(make\([^`]*\))", inspect.getdoc(getattr(hookspecs, hook)) or "")
    row = re.findall(rf"^\| `{hook}` \| (.*) \| `(\w+)` \|$", GUIDE, re.MULTILINE)
    assert len(row) == 1
    assert re.findall(r"`(make\([^`]*\))", row[0][0]) == calls
    assert callable(getattr(testing, row[0][1]))


def test_the_guide_has_no_hook_that_is_not_there() -> None:
    """Every hook that the guide names is one that is called, and every group has one."""
    others = {"streamkd_vision", "streamkd_run", "streamkd_serve"} | {"streamkd_plugin", "streamkd_teacher"}  # metrics
    assert {*re.findall(r"streamkd_[a-z]+", GUIDE)} - others == set(HOOKS)
    assert {f"streamkd_{group}" for group in get_args(Group)} == set(HOOKS)


def test_the_tutorials_plugin_works_as_written(install: Install) -> None:
    """docs/tutorials/first-plugin.md: it keeps its contract by its own test, and a configuration takes it."""
    page = (Path(__file__).parents[1] / "docs/tutorials/first-plugin.md").read_text("utf-8")
    source, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [project] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert tomllib.loads(project)["project"]["entry-points"]["streamkd"] == {"acme-students": "acme_students"}
    install("acme-students", source)
    own: dict[str, Any] = {}
    exec(test, own)
    own["test_it_keeps_the_contract"]()
    [tree] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    stream = {"source": {"name": "replay", "dataset": "digits"}}
    assert config.from_tree({"stream": stream, **yaml.safe_load(tree)}, Registry.load()).student.name == "residual"


def test_the_guides_plugin_works_as_written(install: Install) -> None:
    """The guide's smallest plugin, installed, is listed and keeps its contract by its own test."""
    source, test = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    install("acme-gates", source)
    assert Registry.load().kind("gates", "confident").summary == "teachers by how sure they are"
    own: dict[str, Any] = {}
    exec(test, own)
    own["test_it_keeps_the_contract"]()
