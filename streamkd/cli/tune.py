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

from streamkd.cli.options import CONFIG, FILE, SET, integers

if TYPE_CHECKING:
    from streamkd.tune.settings import Settings

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Measure(click.ParamType):
    """A number with a unit; ``number`` is what comes of it: seconds may be broken, bytes are whole."""

    def __init__(self, name: str, number: type[int] | type[float], units: dict[str, int], example: str) -> None:
        self.name, self._number, self._units, self._example = name, number, units, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number in seconds, or bytes."""
        found = re.fullmatch(rf"(\d+(?:\.\d+)?)([{''.join(self._units)}]?)", str(value).lower())
        if not found or float(found[1]) <= 0:
            self.fail(f"needed a number such as {self._example}, got {value!r}", param, ctx)
        return self._number(float(found[1]) * self._units.get(found[2], 1))


ABOVE_0 = click.FloatRange(0, min_open=True)
OBJECTIVES = "accuracy, final-accuracy, forgetting, records-to-90, latency or student-accuracy; twice for a front"
TIME = Measure("TIME", float, UNITS, "90s, 10m or 2h")
BYTES = Measure("BYTES", int, SIZES, "500m or 2g")


@click.command()
@CONFIG
@SET
@click.option("--space", "space_file", type=FILE, help="YAML; see docs/tune.md.")
@click.option("--out", metavar="DIR", help="The search directory (default tune/NAME).")
@click.option("--resume", is_flag=True, help="Go on with the search that is there; what is over is kept.")
@click.option("--trials", type=click.IntRange(1), help="Trial 0 is CONFIG as it stands (default 16).")
@click.option("--time-budget", "time_budget_seconds", type=TIME, help="End after so long: 90s, 10m, 2h.")
@click.option(
    "--seeds", metavar="N,N,...", help="Of each trial, 100 and up: the others are reports' (default 100,101)."
)
@click.option("--objective", "objectives", metavar="NAME", multiple=True, help=f"{OBJECTIVES} (default accuracy).")
@click.option("--scheduler", type=click.Choice(["asha", "none"]), help="Ends low trials early (default asha).")
@click.option("--search", "sampler", type=click.Choice(["optuna", "random", "grid"]), help="Proposes (default optuna).")
@click.option("--concurrency", type=click.IntRange(1), help="Trials at once (default as many as fit).")
@click.option("--cpus-per-trial", metavar="N", type=ABOVE_0, help="Also torch threads (default 1).")
@click.option(
    "--gpus-per-trial", metavar="N", type=click.FloatRange(0), help="With --address; 0.25: four on a GPU (default 0)."
)
@click.option("--memory-per-trial", "memory_bytes", type=BYTES, help="A trial that takes more fails: 500m, 2g.")
@click.option("--hang-seconds", metavar="N", type=ABOVE_0, help="A trial that learns nothing so long fails (300).")
@click.option("--address", metavar="HOST:PORT", help="Ray Tune runs the trials there; or auto, local.")
@click.option("--metrics-port", metavar="PORT", type=click.IntRange(0, 65535), help="Metrics on loopback; 0 picks one.")
def tune(
    config: Path | None,
    overrides: tuple[str, ...],
    space_file: Path | None,
    out: str | None,
    resume: bool,
    metrics_port: int | None,
    **given: Any,
) -> None:
    """Search the rates that suit CONFIG's recorded stream, and write best.yaml and a report.

    Ctrl-C and `--time-budget` keep what has finished; the same command with `--resume` goes on.
    """
    from streamkd import config as configuration
    from streamkd import extras
    from streamkd.plugins import Registry

    extras.need("optuna", "streamkd tune")
    from streamkd.tune import search
    from streamkd.tune.results import summary
    from streamkd.tune.space import file

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    place = out or f"tune/{tree.name}"
    settings = _settings(given, place if resume else None)
    space = file.load(space_file, tree, registry)
    click.echo(_begun(tree.name, settings, len(space.parameters), place), err=True)
    try:
        with _watches(metrics_port) as watches:
            outcome = search.tune(
                tree, registry, space, settings, place, resume=resume, command=_command(), watches=watches
            )
    except KeyboardInterrupt:
        click.echo(_stopped(place), err=True)
        sys.exit(130)
    click.echo(summary.told(summary.about(outcome)))
    click.echo(_wrote(place, outcome.decision is not None))


def _begun(name: str, settings: "Settings", parameters: int, place: str) -> str:
    """What is going to happen; reading the stream takes a while."""
    most = "up to " if settings.sampler == "grid" else ""  # the grid may have fewer points
    return (
        f"{name}: {most}{settings.trials} trials over {parameters} parameters, by {' and '.join(settings.objectives)} "
        f"on seeds {', '.join(map(str, settings.seeds))}; results in {place}"
    )


def _stopped(place: str) -> str:
    from streamkd.tune import study

    if not study.exists(place):
        return "stopped before the first trial; nothing is kept"
    return f"stopped; what is over is kept in {place}, and the same command with --resume goes on"


def _wrote(place: str, taken: bool) -> str:
    """The files, and what to do with them."""
    if not taken:
        return f"wrote {place}/report.html; no trial has finished, so there is no best.yaml: go on with --resume"
    best = f"{place}/best.yaml"
    return f"wrote {best} and {place}/report.html\nnext: streamkd run {shlex.quote(best)} --report DIR"


def _settings(given: dict[str, Any], resumed: str | None) -> "Settings":
    """What was asked for; the rest as the search that is resumed has it, or by default."""
    from dataclasses import replace

    from streamkd.errors import StateError
    from streamkd.tune import study
    from streamkd.tune.settings import Settings

    asked = {name: value for name, value in given.items() if value not in (None, ())}
    if "seeds" in asked:
        asked["seeds"] = tuple(integers(asked["seeds"]))
    if resumed is None:
        return Settings(**asked)
    if not study.exists(resumed):
        raise StateError("there is no search to go on with", where=resumed, fix="leave --resume out to begin one")
    before = Settings.from_json(study.Study.open(resumed).header["settings"])
    return replace(before, **{"time_budget_seconds": None, **asked})


@contextmanager
def _watches(metrics_port: int | None) -> Iterator[list[Any]]:
    """The progress, and the metrics where they are asked for; SIGTERM ends the search as Ctrl-C does."""
    from streamkd import telemetry
    from streamkd.tune.metrics import Metrics
    from streamkd.tune.progress import Progress

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Progress(sys.stderr)
    watches: list[Any] = [progress]
    try:
        with ExitStack() as stack:
            if metrics_port is not None:
                exposition = telemetry.Exposition()
                port = stack.enter_context(telemetry.served(exposition, metrics_port))
                click.echo(f"metrics on http://127.0.0.1:{port}/metrics", err=True)
                watches.append(Metrics(exposition))
            yield watches
    finally:
        progress.close()
        signal.signal(signal.SIGTERM, before)


def _command() -> str:
    return shlex.join(["streamkd", *sys.argv[1:]])
