"""The benchmarks of ``streamkd bench``: speed, ingest, memory, learning, frontier, ablation, gate, drift, meta."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from streamkd.cli.options import FILE, FOLDER, integers
from streamkd.cli.terminal import bar, show, table

Option = Callable[[Any], Any]


@click.group()
def bench() -> None:
    """Side by side with others on the same records; figures as JSON."""


FIGURES = click.option("--json", "out", type=FILE, help="Write the figures here.")
TABLE = click.option("--table", "document", type=FILE, help="Write Markdown into this.")
SEEDS = click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="So many, from 0 on.")
JOBS = click.option("--jobs", default=1, show_default=True, help="Runs at the same time, a process each.")


def _only(what: str, default: str) -> Option:
    said = f"This {what}; may be repeated. Default all{default}."
    return click.option("--only", multiple=True, metavar=what.upper(), help=said)


def _work(name: str) -> Option:
    said = "Keeps each run's result; what is there is not run again."
    return click.option("--work", type=FOLDER, default=Path("out", name), show_default=True, help=said)


def _plots(what: str) -> Option:
    return click.option("--plots", type=FOLDER, help=f"Folder for an SVG of each {what}.")


def _listed(text: str | None) -> list[str] | None:
    """``a,b`` as names."""
    return text.split(",") if text else None


@bench.command("speed")
@FIGURES
@click.option("--records", default=30_000, show_default=True, help="Records of the stream.")
@click.option("--replay", default=10, show_default=True, help="Replayed records a step, on every side.")
def bench_speed(out: Path | None, records: int, replay: int) -> None:
    """Records per second beside a bare PyTorch loop and Avalanche's own online replay."""
    from streamkd.bench import speed

    with bar("records", None) as advance:
        result = speed.measure(records, replay, progress=advance)
    _write(result, out)
    _figures(result)


@bench.command("ingest")
@FIGURES
@click.option("--servers", metavar="HOST:PORT,...", help="Kafka brokers; without them Flight alone is measured.")
@click.option("--megabytes", type=click.IntRange(1), default=16, show_default=True, help="Of each case.")
def bench_ingest(out: Path | None, servers: str | None, megabytes: int) -> None:
    """Arrow Flight to acknowledgements, beside a bare server that writes the same; topics of Kafka into the log,
    beside a bare consumer that only deserialises, and one that writes as well.

    The topics have to be there, and empty: streamkd-bench-arrow.784, streamkd-bench-arrow.8, streamkd-bench-json.8.
    """
    from streamkd.bench import ingest

    with bar("cases", None) as advance:
        result = ingest.measure(servers, megabytes, progress=advance)
    _write(result, out)
    _figures(result)


@bench.command("memory")
@FIGURES
@click.option(
    "--size", "sizes", type=click.IntRange(1), multiple=True, help="Records; may be repeated. Default 500 to 100,000."
)
@click.option(
    "--bytes", "bounds", type=click.IntRange(1), multiple=True, help="A memory of so many bytes; may be repeated."
)
def bench_memory(out: Path | None, sizes: tuple[int, ...], bounds: tuple[int, ...]) -> None:
    """What a step and a checkpoint cost with memories of several sizes."""
    from streamkd.bench import capacity

    chosen = [{"size": size} for size in sizes] + [{"bytes": bound} for bound in bounds]
    with bar("memories", None) as advance:
        result = capacity.measure(chosen or [{"size": size} for size in capacity.SIZES], progress=advance)
    _write(result, out)
    _figures(result)


@bench.command("learning")
@FIGURES
@TABLE
@SEEDS
@_only("stream", " whose data is here")
@click.option("--baselines", help="Comma-separated, beside our learner; `none` for it alone. Default all.")
@_work("learning")
@JOBS
@_plots("stream")
@click.option("--choose", is_flag=True, help="Search the baselines' settings instead, on other seeds and records.")
def bench_learning(seeds: int, only: tuple[str, ...], baselines: str | None, choose: bool, **how: Any) -> None:
    """Accuracy and forgetting beside Avalanche's strategies, other gates, and training that sees no order."""
    from streamkd.bench import learning
    from streamkd.bench.streams import available

    others = [] if baselines == "none" else _listed(baselines) or list(learning.METHODS[1:])
    place = {"work": how["work"], "jobs": how["jobs"]}
    with bar("runs", None) as advance:
        if choose:
            result = learning.choose(only or available(), others, progress=advance, **place)
        else:
            methods = [learning.METHODS[0], *others]
            result = learning.measure(only or available(), methods, range(seeds), progress=advance, **place)
    if choose:
        _write(result, how["out"])
        table(("method", "chosen"), [(name, json.dumps(best)) for name, best in result["chosen"].items()])
        return
    _keep(learning, result, learning.by_stream, how)
    for what in (learning.ACCURACY, learning.FORGETTING):
        table(*learning.table(result["rows"], what))


@bench.command("frontier")
@FIGURES
@TABLE
@SEEDS
@_only("stream", " whose data is here")
@_work("frontier")
@JOBS
@_plots("stream")
def bench_frontier(seeds: int, only: tuple[str, ...], **how: Any) -> None:
    """Accuracy over its price, seconds and bytes: ours at several gears beside plain loops of replay methods."""
    from streamkd.bench import documents, frontier, scatter
    from streamkd.bench.streams import available

    place = {"work": how["work"], "jobs": how["jobs"]}
    with bar("runs", None) as advance:
        result = frontier.measure(only or available(), range(seeds), progress=advance, **place)
    _write(result, how["out"])
    if how["document"]:
        documents.write(how["document"], frontier.markdown(result))
    if how["plots"]:
        scatter.write(frontier.points(result["rows"]), how["plots"])
    for found in frontier.tables(result["rows"]).values():
        table(*found)


@bench.command("distil")
@FIGURES
@TABLE
@SEEDS
@_only("stream", " of three")
@click.option("--steps", default=3_000, show_default=True, type=click.IntRange(1), help="Of each distillation.")
@_work("distil")
@JOBS
@_plots("stream")
def bench_distil(seeds: int, only: tuple[str, ...], **how: Any) -> None:
    """Students of several sizes, distilled from what is served, beside the same learned on the stream."""
    from streamkd.bench import distil, documents, scatter

    place = {name: how[name] for name in ("work", "steps", "jobs")}
    with bar("runs", None) as advance:
        result = distil.measure(only, range(seeds), progress=advance, **place)
    _write(result, how["out"])
    if how["document"]:
        documents.write(how["document"], distil.markdown(result))
    if how["plots"]:
        scatter.write(distil.points(result["rows"]), how["plots"], ("KB of a student",))
    table(*distil.table(result["rows"]))


@bench.command("ablation")
@FIGURES
@TABLE
@SEEDS
@_only("stream", "")
@click.option("--variants", help="Comma-separated. Default all.")
@click.option("--limit", default=10_000, show_default=True, help="At most so many records of a stream that changes.")
@_work("ablation")
@JOBS
@click.option("--timing/--no-timing", default=True, show_default=True, help="Prices too, alone, at the end.")
def bench_ablation(seeds: int, only: tuple[str, ...], variants: str | None, timing: bool, **how: Any) -> None:
    """What each mechanism gives and costs: the defaults beside the same without it."""
    from streamkd.bench import ablation, documents

    place = {name: how[name] for name in ("work", "limit", "jobs")}
    with bar("runs", None) as advance:
        result = ablation.measure(only, range(seeds), names=_listed(variants) or (), progress=advance, **place)
    if timing:
        with bar("prices", None) as advance:
            result = ablation.priced(result, advance)
    _write(result, how["out"])
    if how["document"]:
        documents.write(how["document"], ablation.markdown(result))
    table(*ablation.table(result))


@bench.command("gate")
@FIGURES
@TABLE
@SEEDS
@_only("scenario", "")
@click.option("--policies", "named", help="Comma-separated. Default all.")
@click.option("--stream", default="split-mnist-5k", show_default=True, help="The stream of every scenario.")
@_work("gate")
@JOBS
@_plots("scenario")
@click.option("--timing/--no-timing", default=True, show_default=True, help="Time the gate too, alone, at the end.")
def bench_gate(seeds: int, only: tuple[str, ...], named: str | None, timing: bool, **how: Any) -> None:
    """The default gate beside fixed weights and other gates, in pools where a gate has something to decide."""
    from streamkd.bench import gate, policies, scenarios

    place = {name: how[name] for name in ("work", "stream", "jobs")}
    names = _listed(named) or policies.POLICIES
    with bar("runs", None) as advance:
        result = gate.measure(only or scenarios.NAMES, names, range(seeds), progress=advance, **place)
    if timing:
        with bar("turns", None) as advance:
            result = gate.timed(result, advance)
    _keep(gate, result, gate.panels, how)
    for side in gate.SIDES:
        table(*gate.table(result["rows"], side))
    if timing:
        _figures(result, "gate.")


@bench.command("drift")
@FIGURES
@TABLE
@SEEDS
@_only("stream", " that are here")
@click.option("--methods", help="Comma-separated, `streamkd` for our learner. Default it and every peer.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Folder of electricity.parquet, ..."
)
@click.option("--peers", "python", metavar="PYTHON", help="A Python that has River or CapyMOA. Default: no peers.")
@click.option("--limit", type=click.IntRange(1), help="At most so many records of each stream.")
@click.option(
    "--gears",
    "geared",
    is_flag=True,
    help="Ours with a rehearsal, in batches of 40 and 160, and the average alone too.",
)
@_work("drift")
@JOBS
@_plots("stream")
def bench_drift(seeds: int, only: tuple[str, ...], methods: str | None, **how: Any) -> None:
    """Tables whose world changes, record by record, beside stream learners of River and CapyMOA."""
    from streamkd.bench import drift, drifting, scatter

    place = {name: how[name] for name in ("work", "data", "python", "limit", "geared", "jobs")}
    with bar("runs", None) as advance:
        streams = only or drifting.available(how["data"])
        result = drift.measure(streams, range(seeds), methods=_listed(methods), progress=advance, **place)
    _keep(drift, result, drift.panels, how, "prequential accuracy")
    if how["plots"]:
        scatter.write(drift.points(result["rows"]), how["plots"])
    for measure in drift.MEASURES:
        table(*drift.table(result["rows"], measure))


@bench.command("meta")
@FIGURES
@click.option("--seeds", default="0,1,2,3,4", show_default=True, help="Comma-separated: splits of the alphabets.")
@click.option("--data", "file", type=FILE, help="omniglot-small.parquet.")
@click.option("--variants", help="Comma-separated; default all.")
@_work("meta")
def bench_meta(out: Path | None, seeds: str, file: Path | None, variants: str | None, work: Path) -> None:
    """Records that a new Omniglot alphabet takes with phase 2, over those without."""
    from streamkd.bench import meta

    with bar("runs", None) as advance:
        chosen = _listed(variants) or tuple(meta.VARIANTS)
        result = meta.measure(integers(seeds), work, file=file, variants=chosen, progress=advance)
    _write(result, out)
    _figures(result)


def _keep(
    suite: ModuleType,
    result: dict[str, Any],
    panels: Callable[..., Any],
    how: dict[str, Any],
    measure: str = "final average accuracy",
) -> None:
    """A suite's result as the files that are asked for: figures, tables in a document, a plot of each panel."""
    from streamkd.bench import documents, plots

    _write(result, how["out"])
    if how["document"]:
        documents.write(how["document"], suite.markdown(result))
    if how["plots"]:
        plots.write(panels(result["rows"]), how["plots"], measure)


def _write(result: dict[str, Any], out: Path | None) -> None:
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1), "utf-8")


def _figures(result: dict[str, Any], prefix: str = "") -> None:
    figures = result["figures"].items()
    table(("figure", "value"), [(name, show(value)) for name, value in figures if name.startswith(prefix)])
