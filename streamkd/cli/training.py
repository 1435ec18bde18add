"""Commands that train on recorded data: ``run``, ``meta-train``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from streamkd.cli.options import CONFIG, FOLDER, SET, folder, integers
from streamkd.cli.terminal import bar, show


@click.command()
@CONFIG
@SET
@click.option("--report", "out", type=FOLDER, required=True, help="Folder to fill.")
@click.option("--seeds", default="0", show_default=True, help="Comma-separated; the stream is run once for each.")
def run(config: Path | None, overrides: tuple[str, ...], out: Path, seeds: str) -> None:
    """Consume a finite stream once per seed and write report.json and report.html."""
    numbers = integers(seeds)
    from streamkd import config as configuration
    from streamkd import run as runs
    from streamkd.evaluate.measures import told
    from streamkd.evaluate.page import tested
    from streamkd.plugins import Registry

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    with bar("records", None) as advance:
        seen = [0, 0]

        def progress(done: int, total: int | None) -> None:
            if done < seen[1]:
                seen[:] = [seen[0] + 1, 0]
            seen[1] = done
            advance(seen[0] * (total or 0) + done, (total or 0) * len(numbers))

        report = runs.run(tree, registry, folder(out), numbers, progress)
    click.echo(f"served model: {_ends(report)}")
    click.echo(f"on arrival: {told(report['served']['measures']['arrival'])}")
    refused = [f"{n:,} records were refused and not learned" for n in [report["stream"]["refused"]] if n]
    click.echo("; ".join([*tested(report), *refused]))
    click.echo(f"wrote {out / 'report.json'} and {out / 'report.html'}")


def _ends(report: Mapping[str, Any]) -> str:
    """What the served model had on arriving records, and ends with on test records."""
    accuracy, forgetting = report["served"]["accuracy"], report["served"]["forgetting"]["average"]
    arriving = f"on arriving records {show(accuracy['prequential'])}"
    if not report["tests"]["given"]:
        return arriving
    return f"final average accuracy {show(accuracy['final_average'])}, forgetting {show(forgetting)}, {arriving}"


@click.command("meta-train")
@CONFIG
@SET
@click.option("--out", type=FOLDER, required=True, help="Folder to fill.")
@click.option("--episodes", type=int, default=60, show_default=True, help="Episodes of the gate; 0 learns none.")
@click.option(
    "--student-start", type=click.Choice(["none", "maml", "metasgd"]), default="metasgd", show_default=True,
    help="Learn where the student begins; metasgd: the episodes' rates are learned beside it.",
)  # fmt: skip
@click.option("--start-episodes", type=int, default=500, show_default=True, help="Episodes of the student's start.")
@click.option(
    "--turned/--upright", default=True, show_default=True,
    help="Classes of images, turned by quarter-turns, are further classes for the start.",
)  # fmt: skip
@click.option("--shift", type=int, default=1, show_default=True, help="Pixels by which the start's images move.")
@click.option("--second-order", is_flag=True, help="Second derivatives for the start; slow.")
@click.option("--tasks", type=int, default=2, show_default=True, help="Known tasks in a row in each episode.")
@click.option("--ways", type=int, default=10, show_default=True, help="Labels of a task, at most.")
@click.option("--records", type=int, default=100, show_default=True, help="Records of a task, about.")
@click.option("--horizon", type=int, default=5, show_default=True, help="Inner steps of the gate's outer loss.")
@click.option(
    "--gate", is_flag=True,
    help="Learn the default gate's prior instead, by whole passes over short streams that are drawn.",
)  # fmt: skip
@click.option("--generations", type=int, default=150, show_default=True, help="With --gate: steps of its evolution.")
@click.option("--pairs", type=int, default=12, show_default=True, help="With --gate: streams of a generation.")
@click.option("--least", type=int, default=500, show_default=True, help="With --gate: records of a stream, at least.")
@click.option("--most", type=int, default=2000, show_default=True, help="With --gate: records of a stream, at most.")
@click.option("--sigma", type=float, default=0.3, show_default=True, help="With --gate: how far gates are tried.")
@click.option("--networks", is_flag=True, help="With --gate: its networks' last layers beside the prior.")
@click.option("--seed", type=int, default=0, show_default=True, help="With --gate: of the streams and the evolution.")
@click.option("--jobs", type=int, default=1, show_default=True, help="With --gate: passes at once, a process each.")
@click.option("--address", help="With --gate: passes on this Ray cluster; `local`: on a Ray of this machine.")
@click.pass_context
def meta_train(context: click.Context, out: Path, gate: bool, **options: Any) -> None:
    """Learn over the known tasks of a recorded stream where another stream begins: `--set meta=DIR` takes it."""
    from streamkd.errors import StateError
    from streamkd.meta import artefact

    if (out / artefact.DOCUMENT).exists():
        # a state that began from it would not start again beside another one
        raise StateError("an artefact is there already", where=str(out), fix="name another --out, or remove it")
    _refuse_the_others(context, gate)
    mine = {name: value for name, value in options.items() if (name in OF_THE_GATE) == gate}
    (_learn_gate if gate else _learn_start)(out, **mine)


OF_THE_GATE = ("generations", "pairs", "least", "most", "sigma", "networks", "seed", "jobs", "address")


def _refuse_the_others(context: click.Context, gate: bool) -> None:
    """What belongs to the other kind of meta-training was not asked for."""
    for name in context.params:
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in ("out", "gate") and (name in OF_THE_GATE) != gate and context.params[name]:
            said = "belongs to --gate" if not gate else "does not belong to --gate: its streams are drawn"
            raise click.UsageError(f"{name} {said}", context)


def _learn_gate(out: Path, jobs: int, address: str | None, **options: Any) -> None:
    from streamkd.pretraining import long_horizon
    from streamkd.tune import cluster

    plan = long_horizon.plan_of(options)
    with (
        cluster.mapped(address) if address else long_horizon.processes(jobs) as each,
        bar("generations", None) as advance,
    ):
        made = long_horizon.meta_train(folder(out), plan, each=each, progress=advance)
    for name, value in made.gate_prior.items():
        click.echo(f"{name}: {show(value)}")
    click.echo(f"wrote {out}\nnext: streamkd run CONFIG --set meta={out} --report DIR")


def _learn_start(
    out: Path, config: Path | None, overrides: tuple[str, ...], second_order: bool, **options: Any
) -> None:
    from streamkd import config as configuration
    from streamkd.plugins import Registry
    from streamkd.pretraining import gate as meta_training

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    phase = meta_training.phase_of({**options, "first_order": not second_order})
    with bar("episodes", None) as advance:
        made = meta_training.meta_train(tree, registry, out, phase, advance)
    for what in ("start_losses", "gate_losses", "gate_accuracy"):
        if (ends := made.trained_on[what]) is not None:
            first, last = show(ends["first"]), show(ends["last"])
            click.echo(f"{what.replace('_', ' ')}: {first} in the first fifth, {last} in the last")
    click.echo(f"wrote {out}\nnext: streamkd run CONFIG --set meta={out} --report DIR")
