"""The benchmarks: ``bench speed``, ``learning``, ``gate``, ``drift``, ``meta``."""

import json
from pathlib import Path
from typing import Any

import click

from streamkd.cli.options import integers
from streamkd.cli.terminal import bar, show, table


@click.group()
def bench() -> None:
    """Side by side with others on the same records; figures as JSON."""


FIGURES = click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")


@bench.command("speed")
@FIGURES
@click.option("--records", default=30_000, show_default=True, help="Records of the stream.")
@click.option("--replay", default=10, show_default=True, help="Replayed records a step, on every side.")
def bench_speed(out: Path | None, records: int, replay: int) -> None:
    """Records per second beside a bare PyTorch loop and Avalanche's own online replay."""
    from streamkd.bench import speed

    with bar("records", None) as advance:
        result = speed.measure(records, replay, progress=advance)
    _figures(result, out)


@bench.command("learning")
@FIGURES
@click.option("--table", "document", type=click.Path(path_type=Path, dir_okay=False), help="Write Markdown into this.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="So many, from 0 on.")
@click.option(
    "--only", multiple=True, metavar="STREAM", help="This stream; may be repeated. Default all whose data is here."
)
@click.option("--baselines", help="Comma-separated, beside our learner; `none` for it alone. Default all.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/learning"),
    show_default=True,
    help="Keeps each run's result; what is there is not run again.",
)
@click.option("--jobs", default=1, show_default=True, help="Runs at the same time, a process each.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder for an SVG of each stream.")
@click.option("--choose", is_flag=True, help="Search the baselines' settings instead, on other seeds and records.")
def bench_learning(
    out: Path | None, document: Path | None, seeds: int, only: tuple[str, ...], baselines: str | None, **how: Any
) -> None:
    """Accuracy and forgetting beside Avalanche's strategies, other gates, and training that sees no order."""
    from streamkd.bench import documents, learning, plots
    from streamkd.bench.streams import available

    others = [] if baselines == "none" else baselines.split(",") if baselines else list(learning.METHODS[1:])
    place = {"work": how["work"], "jobs": how["jobs"]}
    with bar("runs", None) as advance:
        if how["choose"]:
            result = learning.choose(only or available(), others, progress=advance, **place)
        else:
            methods = [learning.METHODS[0], *others]
            result = learning.measure(only or available(), methods, range(seeds), progress=advance, **place)
    if out:
        _write(result, out)
    if how["choose"]:
        table(("method", "chosen"), [(name, json.dumps(best)) for name, best in result["chosen"].items()])
        return
    if document:
        documents.write(document, learning.markdown(result))
    for what in (learning.ACCURACY, learning.FORGETTING):
        table(*learning.table(result["rows"], what))
    if how["plots"]:
        plots.write(learning.panels(result["rows"]), how["plots"])


@bench.command("gate")
@FIGURES
@click.option("--table", "document", type=click.Path(path_type=Path, dir_okay=False), help="Write Markdown into this.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="So many, from 0 on.")
@click.option("--only", multiple=True, metavar="SCENARIO", help="This scenario; may be repeated. Default all.")
@click.option("--policies", "named", help="Comma-separated. Default all.")
@click.option("--stream", default="split-mnist-5k", show_default=True, help="The stream of every scenario.")
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), default=Path("out/gate"), show_default=True,
    help="Keeps each run's result; what is there is not run again.",
)  # fmt: skip
@click.option("--jobs", default=1, show_default=True, help="Runs at the same time, a process each.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder for an SVG of each scenario.")
@click.option("--timing/--no-timing", default=True, show_default=True, help="Time the gate too, alone, at the end.")
def bench_gate(out: Path | None, document: Path | None, seeds: int, only: tuple[str, ...], **how: Any) -> None:
    """The default gate beside fixed weights and other gates, in pools where a gate has something to decide."""
    from streamkd.bench import documents, gate, plots, policies, scenarios

    named = how["named"].split(",") if how["named"] else policies.POLICIES
    place = {name: how[name] for name in ("work", "stream", "jobs")}
    with bar("runs", None) as advance:
        result = gate.measure(only or scenarios.NAMES, named, range(seeds), progress=advance, **place)
    if how["timing"]:
        with bar("turns", None) as advance:
            result = gate.timed(result, advance)
    if out:
        _write(result, out)
    if document:
        documents.write(document, gate.markdown(result))
    if how["plots"]:
        plots.write(gate.panels(result["rows"]), how["plots"])
    for side in gate.SIDES:
        table(*gate.table(result["rows"], side))
    if how["timing"]:
        costs = [(name, show(value)) for name, value in result["figures"].items() if name.startswith("gate.")]
        table(("figure", "value"), costs)


@bench.command("drift")
@FIGURES
@click.option("--table", "document", type=click.Path(path_type=Path, dir_okay=False), help="Write Markdown into this.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="So many, from 0 on.")
@click.option(
    "--only", multiple=True, metavar="STREAM", help="This stream; may be repeated. Default all that are here."
)
@click.option("--methods", help="Comma-separated, `streamkd` for our learner. Default it and every peer.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Folder of electricity.parquet, ..."
)
@click.option("--peers", "python", metavar="PYTHON", help="A Python that has River or CapyMOA. Default: no peers.")
@click.option("--limit", type=click.IntRange(1), help="At most so many records of each stream.")
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), default=Path("out/drift"), show_default=True,
    help="Keeps each run's result; what is there is not run again.",
)  # fmt: skip
@click.option("--jobs", default=1, show_default=True, help="Runs at the same time, a process each.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder for an SVG of each stream.")
def bench_drift(
    out: Path | None, document: Path | None, seeds: int, only: tuple[str, ...], methods: str | None, **how: Any
) -> None:
    """Tables whose world changes, record by record, beside stream learners of River and CapyMOA."""
    from streamkd.bench import documents, drift, drifting, plots

    place = {name: how[name] for name in ("work", "data", "python", "limit", "jobs")}
    named = methods.split(",") if methods else None
    with bar("runs", None) as advance:
        streams = only or drifting.available(how["data"])
        result = drift.measure(streams, range(seeds), methods=named, progress=advance, **place)
    if out:
        _write(result, out)
    if document:
        documents.write(document, drift.markdown(result))
    if how["plots"]:
        plots.write(drift.panels(result["rows"]), how["plots"], "prequential accuracy")
    for measure in drift.MEASURES:
        table(*drift.table(result["rows"], measure))


@bench.command("meta")
@FIGURES
@click.option("--seeds", default="0,1,2,3,4", show_default=True, help="Comma-separated: splits of the alphabets.")
@click.option("--data", "file", type=click.Path(path_type=Path, dir_okay=False), help="omniglot-small.parquet.")
@click.option("--variants", help="Comma-separated; default all.")
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), default=Path("out/meta"), show_default=True,
    help="Keeps each run's result; what is there is not run again.",
)  # fmt: skip
def bench_meta(out: Path | None, seeds: str, file: Path | None, variants: str | None, work: Path) -> None:
    """Records that a new Omniglot alphabet takes with phase 2, over those without."""
    from streamkd.bench import meta

    with bar("runs", None) as advance:
        chosen = variants.split(",") if variants else tuple(meta.VARIANTS)
        result = meta.measure(integers(seeds), work, file=file, variants=chosen, progress=advance)
    _figures(result, out)


def _figures(result: dict[str, Any], out: Path | None) -> None:
    """Write a suite's result where that is asked for, and print its figures."""
    if out:
        _write(result, out)
    table(("figure", "value"), [(name, show(value)) for name, value in result["figures"].items()])


def _write(result: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1), "utf-8")
