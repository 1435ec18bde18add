"""``tune``: the search for a configuration's rates."""

import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamkd.cli.options import CONFIG, SET, integers

if TYPE_CHECKING:
    from streamkd.search.driver import Engine, Engines
    from streamkd.search.settings import Settings

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Measure(click.ParamType):
    """A number with a unit."""

    def __init__(self, name: str, units: dict[str, int], example: str) -> None:
        self.name, self._units, self._example = name, units, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number in seconds, or bytes."""
        found = re.fullmatch(rf"(\d+(?:\.\d+)?)([{''.join(self._units)}]?)", str(value).lower())
        if not found or float(found[1]) <= 0:
            self.fail(f"needed a number such as {self._example}, got {value!r}", param, ctx)
        return float(found[1]) * self._units.get(found[2], 1)


TIME = Measure("TIME", UNITS, "90s, 10m or 2h")
BYTES = Measure("BYTES", SIZES, "500m or 2g")


@click.command()
@CONFIG
@SET
@click.option("--space", "space_file", type=click.Path(path_type=Path, dir_okay=False), help="YAML; see docs/tune.md.")
@click.option("--out", help="The search directory (default tune/NAME).")
@click.option("--storage", metavar="URI", help="Folder, s3:// or gs:// in which the search directory lies.")
@click.option("--resume", is_flag=True, help="Go on with the search that is there; finished trials are kept.")
@click.option("--trials", type=click.IntRange(1), help="Trial 0 is CONFIG as it stands (default 16).")
@click.option("--time-budget", "time_budget_seconds", type=TIME, help="End after so long: 90s, 10m, 2h.")
@click.option("--seeds", help="Of each trial, 100 and up: those below belong to reports (default 100,101).")
@click.option("--objective", "objectives", multiple=True, help="Twice for a front (default accuracy).")
@click.option("--scheduler", type=click.Choice(["asha", "pbt", "none"]), help="What ends or moves trials on the way.")
@click.option("--search", "sampler", type=click.Choice(["optuna", "random", "grid"]), help="What proposes trials.")
@click.option("--engine", type=click.Choice(["ray", "local"]), help="What runs trials (default ray).")
@click.option("--concurrency", type=click.IntRange(1), help="Trials at once (default as many as fit).")
@click.option("--cpus-per-trial", type=float, help="Also torch threads (default 1).")
@click.option("--gpus-per-trial", type=float, help="0.25: four trials on a GPU (default 0).")
@click.option("--memory-per-trial", "memory_bytes", type=BYTES, help="A trial that takes more fails: 500m, 2g.")
@click.option("--hang-seconds", type=float, help="End a trial that learns nothing for so long (default 300).")
@click.option("--address", help="Of a running Ray cluster: HOST:PORT or auto.")
@click.option("--dashboard", is_flag=True, default=None, help="Start Ray's dashboard, on loopback.")
@click.option("--metrics-port", type=int, help="Prometheus metrics on loopback while it runs; 0 picks a port.")
def tune(
    config: Path | None,
    overrides: tuple[str, ...],
    space_file: Path | None,
    out: str | None,
    storage: str | None,
    resume: bool,
    metrics_port: int | None,
    **given: Any,
) -> None:
    """Search the rates that suit CONFIG's recorded stream, and write best.yaml and a report."""
    from streamkd import config as configuration
    from streamkd.plugins import Registry
    from streamkd.search import driver, spacefile, summary

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    place = _place(out, storage, tree.name)
    settings = _settings(given, place if resume else None)
    space = spacefile.load(space_file, tree, registry)
    with _watches(metrics_port) as watches:
        outcome = driver.tune(
            tree, registry, space, settings, place, _engines(), resume=resume, command=_command(), watches=watches
        )
    click.echo(summary.in_words(outcome))
    if outcome.verdict is not None:
        click.echo(
            f"wrote {place}/best.yaml and {place}/report.html\nnext: streamkd run {place}/best.yaml --report DIR"
        )


def _place(out: str | None, storage: str | None, name: str) -> str:
    within = out or (name if storage else f"tune/{name}")
    return f"{storage.rstrip('/')}/{within}" if storage else within


def _settings(given: dict[str, Any], resumed: str | None) -> "Settings":
    """What was asked for; the rest as the search that is resumed has it, or by default."""
    from dataclasses import replace

    from streamkd.search.ledger import Ledger
    from streamkd.search.settings import Settings

    asked = {name: value for name, value in given.items() if value not in (None, ())}
    if "seeds" in asked:
        asked["seeds"] = tuple(integers(asked["seeds"]))
    before = Settings() if resumed is None else Settings.from_json(Ledger.open(resumed).header["settings"])
    if resumed is not None and "time_budget_seconds" not in asked:
        asked["time_budget_seconds"] = None
    return replace(before, **asked)


def _engines() -> "Engines":
    """By name; each is imported when it is asked for."""

    def local(settings: "Settings") -> "Engine":
        from streamkd.search.local import LocalEngine

        return LocalEngine(settings)

    def ray(settings: "Settings") -> "Engine":
        from streamkd.scale.tune import RayEngine

        return RayEngine(settings)

    return {"ray": ray, "local": local}


@contextmanager
def _watches(metrics_port: int | None) -> Iterator[list[Any]]:
    """The table, and the metrics where they are asked for; SIGTERM ends the search as Ctrl-C does."""
    from streamkd import telemetry
    from streamkd.search.live import Live
    from streamkd.search.metrics import Metrics

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    live = Live(sys.stderr)
    watches: list[Any] = [live]
    try:
        with ExitStack() as stack:
            if metrics_port is not None:
                exposition = telemetry.Exposition()
                port = stack.enter_context(telemetry.served(exposition, metrics_port))
                click.echo(f"metrics on http://127.0.0.1:{port}/metrics", err=True)
                watches.append(Metrics(exposition))
            yield watches
    finally:
        live.close()
        signal.signal(signal.SIGTERM, before)


def _command() -> str:
    return shlex.join(["streamkd", *sys.argv[1:]])
