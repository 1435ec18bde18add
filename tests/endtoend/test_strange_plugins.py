"""Plugins that misbehave, as installed distributions: each hurts only itself, unless the configuration names it."""

import json
from pathlib import Path

import pytest

from .conftest import PUSHED, Serve, merged, records, streamkd, until
from .test_push import post

OBSERVERS = """
from streamkd.hookspecs import Kind, Options, hookimpl

class Clumsy:
    def on_step(self, record, loss, accuracy): raise ValueError("step")
    def on_boundary(self, boundary): raise ValueError("boundary")
    def on_checkpoint(self, record, offsets): raise ValueError("checkpoint")
    def on_published(self, version, record): raise ValueError("published")

def only(event):
    return type("Only", (), {event: getattr(Clumsy, event)})

@hookimpl
def streamkd_observers():
    for event in ("on_step", "on_boundary", "on_checkpoint", "on_published"):
        yield Kind("clumsy-" + event[3:], lambda options, event=event: only(event)(), Options, "raises")
    yield Kind("clumsy-start", lambda options: 1 / 0, Options, "raises when it is made")
"""
BROKEN = {
    "raises-on-import": "raise RuntimeError('no such driver')\n",
    "exits-on-import": "raise SystemExit('goodbye')\n",
    "raises-in-hook": (
        "from streamkd.hookspecs import hookimpl\n"
        "@hookimpl\ndef streamkd_losses():\n    raise RuntimeError('no such loss')\n"
    ),
    "misspelt": "from streamkd.hookspecs import hookimpl\n@hookimpl\ndef streamkd_looses():\n    return []\n",
    "takes-a-name": (
        "from streamkd.hookspecs import Kind, hookimpl\n"
        "@hookimpl\ndef streamkd_students():\n    yield Kind('mlp', lambda options, shape, classes: None)\n"
    ),
    "not-there": "",
}


def install(folder: Path, name: str, code: str) -> None:
    """A distribution with one entry point, as pip would leave it."""
    module = name.replace("-", "_")
    if code:
        (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[streamkd]\n{name} = {module}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A place for distributions that is on the path."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def test_broken_plugins_are_listed_and_hurt_nobody(site: Path) -> None:
    """Import errors, exits, raising and misspelt hooks, taken names: each is listed with its reason; the rest works."""
    for name, code in BROKEN.items():
        install(site, name, code)
    listed = streamkd("plugins", "list", "--json", PYTHONPATH=str(site))
    assert listed.returncode == 0, listed.stderr
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    for name, word in {
        "raises-on-import": "no such driver",
        "exits-on-import": "goodbye",
        "raises-in-hook": "no such loss",
        "misspelt": "streamkd_losses",
        "takes-a-name": "mlp",
        "not-there": "not_there",
    }.items():
        assert word in rows[name]["error"], rows[name]
        assert rows[name]["distribution"] == f"{name} 1.0"
    assert rows["students"]["error"] in ("", None)
    assert "students/mlp" in rows["students"]["kinds"]


def test_a_configuration_that_names_a_broken_plugin_is_refused(serve: Serve, site: Path) -> None:
    """The plugin that it needs is broken: the server ends at once, naming the key, the plugin and its error."""
    install(site, "raises-in-hook", BROKEN["raises-in-hook"])
    environment = {"PYTHONPATH": str(site)}
    server = serve(merged(PUSHED, {"losses": [{"name": "wished-for"}]}), listen=False, environment=environment)
    assert server.wait(60) == 2
    for word in ("losses.0", "wished-for", "raises-in-hook", "no such loss"):
        assert word in server.err, server.err
    assert "Traceback" not in server.err


@pytest.mark.soak  # the rehearsal itself has a quick test
def test_a_plugin_that_fails_when_it_is_made_is_fatal(serve: Serve, site: Path) -> None:
    """An observer that cannot be built ends the server at start, in words."""
    install(site, "observers", OBSERVERS)
    server = serve(
        merged(PUSHED, {"observers": [{"name": "clumsy-start"}]}), listen=False, environment={"PYTHONPATH": str(site)}
    )
    assert server.wait(60) != 0
    for word in ("observers.0", "clumsy-start", "ZeroDivisionError"):
        assert word in server.err, server.err


@pytest.mark.soak
def test_an_observer_that_raises_is_off_after_three_strikes(serve: Serve, site: Path) -> None:
    """One that raises in each hook: counted per hook, off after three, and the learner never stops."""
    install(site, "observers", OBSERVERS)
    events = ("step", "boundary", "checkpoint", "published")
    observing = merged(PUSHED, {"observers": [{"name": f"clumsy-{event}"} for event in events]})
    server = serve(observing, environment={"PYTHONPATH": str(site)})
    learner, sent = server.pid("learner"), 0

    def all_off() -> bool:
        nonlocal sent
        sent += post(server, records(100, first=sent), "arrow", f"p{sent}")
        metrics = server.metrics()
        return all(metrics.get(f'streamkd_plugin_enabled{{plugin="clumsy-{event}"}}') == 0 for event in events)

    until(all_off, 60, "every observer off")
    metrics = server.metrics()
    for event in events:
        name = f'streamkd_plugin_errors_total{{hook="on_{event}",plugin="clumsy-{event}"}}'
        assert metrics[name] == 3, metrics
        assert f"observer clumsy-{event} is off" in server.err
    server.trained(sent)
    assert server.pid("learner") == learner
    assert server.stop() == 0
    assert server.inspect()["records_trained"] == sent
