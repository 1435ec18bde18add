"""The commands. Each is a few lines that read arguments, call a room, and print; nothing heavy is imported before
a command runs, so ``--help`` answers at once.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from streamkd import __version__
from streamkd.errors import StreamkdError

CONFIG = click.argument("config", required=False, type=click.Path(path_type=Path, dir_okay=False))
SET = click.option("--set", "overrides", multiple=True, metavar="a.b=c", help="Override a key of the configuration.")
STATE = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), default=Path("state"), show_default=True,
    help="The state directory.",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
TOKEN = click.option("--token", envvar="STREAMKD_TOKEN", help="Bearer token; or set STREAMKD_TOKEN.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="streamkd")
def cli() -> None:
    """A continual learner that lives on a data stream.

    `streamkd serve` without arguments learns from an embedded stream and answers on http://127.0.0.1:8470.
    """


@cli.command()
@CONFIG
@STATE
@SET
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=int, help="HTTP port (default 8470); 0 picks free ones, the Flight port's too.")
@click.option("--flight-port", type=int, help="Arrow Flight port; 0 picks a free one (default 8815).")
@click.option("--insecure", is_flag=True, help="Allow a bind beyond loopback without TLS and tokens.")
def serve(config: Path | None, state: Path, overrides: tuple[str, ...], **serving: Any) -> None:
    """Learn from a live stream and answer predictions while learning. Without CONFIG: the embedded stream."""
    given = {"host": "host", "port": "port", "flight_port": "flight_port"}
    if serving["port"] == 0 and serving["flight_port"] is None:
        serving["flight_port"] = 0
    more = [f"serve.{key}={serving[name]}" for name, key in given.items() if serving[name] is not None]
    more += ["serve.insecure=true"] if serving["insecure"] else []
    from streamkd import config as configuration
    from streamkd.plugins import Registry
    from streamkd.serve import supervisor

    _log_to_stderr()
    tree = configuration.load(config, [*overrides, *more], Registry.load())
    sys.exit(supervisor.serve(tree, state))


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--label", help="The column that holds the label.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it (default FILE's stem).")
@click.option("--force", is_flag=True, help="Overwrite.")
def init(file: Path, label: str | None, out: Path | None, force: bool) -> None:
    """Look at a Parquet, Arrow or CSV FILE of your own and write a commented configuration for it."""
    from streamkd.streams import describe

    target = out or Path(f"{file.stem}.yaml")
    if target.exists() and not force:
        raise StreamkdError("is there already", where=str(target), fix="name another with --out, or --force")
    target.write_text(describe.describe(file, label), "utf-8")
    click.echo(f"wrote {target}\nnext: streamkd serve {target} --state {target.stem}-state")


@cli.command()
@CONFIG
@SET
@click.option(
    "--report", "out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to fill."
)
@click.option("--seeds", default="0", show_default=True, help="Comma-separated; the stream is run once for each.")
def run(config: Path | None, overrides: tuple[str, ...], out: Path, seeds: str) -> None:
    """Consume a finite stream once per seed and write report.json and report.html."""
    numbers = _integers(seeds)
    from streamkd import config as configuration
    from streamkd import run as runs
    from streamkd.plugins import Registry

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    with _bar("records", None) as advance:
        seen = [0, 0]

        def progress(done: int, total: int | None) -> None:
            if done < seen[1]:
                seen[:] = [seen[0] + 1, 0]
            seen[1] = done
            advance(seen[0] * (total or 0) + done, (total or 0) * len(numbers))

        report = runs.run(tree, registry, out, numbers, progress)
    accuracy = report["served"]["accuracy"]["final_average"]
    forgetting = report["served"]["forgetting"]["average"]
    click.echo(f"served model: final average accuracy {_show(accuracy)}, forgetting {_show(forgetting)}")
    click.echo(f"wrote {out / 'report.json'} and {out / 'report.html'}")


@cli.command("meta-train")
@CONFIG
@SET
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to fill.")
@click.option("--episodes", type=int, default=60, show_default=True, help="Episodes of the gate; 0 learns none.")
@click.option(
    "--student-start", type=click.Choice(["none", "maml", "metasgd"]), default="metasgd", show_default=True,
    help="Learn where the student begins; metasgd: beside its rates by layer.",
)  # fmt: skip
@click.option(
    "--rates", is_flag=True, help="Keep metasgd's rates: quicker first records, a lower end of long tasks."
)  # fmt: skip
@click.option("--start-episodes", type=int, default=500, show_default=True, help="Episodes of the student's start.")
@click.option("--second-order", is_flag=True, help="Second derivatives for the start; slow.")
@click.option(
    "--gate-optimizer", type=click.Choice(["adam", "learned"]), default="adam", show_default=True,
    help="What moves the gate on the stream; learned: a small recurrent net, learned here.",
)  # fmt: skip
@click.option("--tasks", type=int, default=2, show_default=True, help="Known tasks in a row in each episode.")
@click.option("--ways", type=int, default=10, show_default=True, help="Labels of a task, at most.")
@click.option("--records", type=int, default=100, show_default=True, help="Records of a task, about.")
@click.option("--horizon", type=int, default=5, show_default=True, help="Inner steps of the gate's outer loss.")
def meta_train(config: Path | None, overrides: tuple[str, ...], out: Path, second_order: bool, **options: Any) -> None:
    """Learn over the known tasks of a recorded stream where another stream begins: `--set meta=DIR` takes it."""
    from streamkd import config as configuration
    from streamkd import meta_training
    from streamkd.plugins import Registry

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    phase = meta_training.phase_of({**options, "first_order": not second_order})
    with _bar("episodes", None) as advance:
        made = meta_training.meta_train(tree, registry, out, phase, advance)
    for what in ("start_losses", "gate_losses", "gate_accuracy"):
        if (ends := made.trained_on[what]) is not None:
            first, last = _show(ends["first"]), _show(ends["last"])
            click.echo(f"{what.replace('_', ' ')}: {first} in the first fifth, {last} in the last")
    click.echo(f"wrote {out}\nnext: streamkd run CONFIG --set meta={out} --report DIR")


@cli.command()
@click.argument("source")
@click.option("--to", "url", required=True, help="grpc://HOST:PORT (Arrow Flight) or http://HOST:PORT.")
@click.option("--stream", default="main", show_default=True)
@click.option("--rate", type=float, help="Records per second; default as fast as they are taken.")
@click.option("--limit", type=int, help="Send so many records at most.")
@click.option("--batch", default=500, show_default=True, help="Records per batch.")
@click.option("--columns", help="Send these columns only, renamed: theirs=ours,...")
@click.option("--producer", help="Name for deduplication: the same batches again under the same name count once.")
@click.option("--ca", type=click.Path(path_type=Path), help="PEM file of the authorities to trust.")
@click.option("--certificate", type=click.Path(path_type=Path), help="PEM file of a client certificate.")
@click.option("--key", type=click.Path(path_type=Path), help="PEM file of its key.")
@TOKEN
def push(source: str, url: str, **options: Any) -> None:
    """Send SOURCE (a data set's name, a file, or a stream definition) as live records."""
    from streamkd.producer import outgoing
    from streamkd.producer import push as pushing

    opened = outgoing.open_outgoing(source, _pairs(options["columns"]), options["limit"], options["batch"])
    with _bar("records", opened.total) as advance:
        done = 0

        def on_ack(ack: pushing.Ack) -> None:
            nonlocal done
            done += ack.records
            advance(done, opened.total)

        summary = pushing.push(
            opened.batches,
            url,
            stream=options["stream"],
            producer=options["producer"],
            token=options["token"],
            rate=options["rate"],
            on_ack=on_ack,
            tls=pushing.ClientTls(options["ca"], options["certificate"], options["key"]),
        )
    click.echo(
        f"{summary.sent} records sent, {summary.accepted} accepted, {summary.rejected} rejected, "
        f"{summary.duplicates} duplicates, {summary.seconds:.1f} s"
    )


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--to", "url", required=True, help="http://HOST:PORT of a running server.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Parquet, Arrow or JSON lines; default stdout."
)
@TOKEN
def predict(file: Path, url: str, out: Path | None, token: str | None) -> None:
    """Predictions for the records of a FILE."""
    from streamkd.serve import client

    with _bar("records", None) as advance:
        rows = client.predict_file(file, url, token=token, progress=advance)
    click.echo(client.write(rows, out))


@cli.command()
@CONFIG
@SET
@click.option("--show", is_flag=True, help="Print the complete configuration.")
def check(config: Path | None, overrides: tuple[str, ...], show: bool) -> None:
    """Validate a configuration."""
    import yaml

    from streamkd import config as configuration
    from streamkd.plugins import Registry
    from streamkd.wiring import schema_of

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    schema = schema_of(tree, registry)
    if show:
        click.echo(yaml.safe_dump(configuration.dump(tree), sort_keys=False).rstrip())
    else:
        inputs = ", ".join(f"{c.name} {c.kind} {list(c.shape)} {c.dtype}" for c in schema.inputs)
        click.echo(f"{config or 'embedded'}: fine\n  inputs: {inputs}\n  label: {schema.label} ({schema.label_type})")


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@JSON
def inspect(directory: Path, as_json: bool) -> None:
    """A state directory in words."""
    from streamkd import inspection

    found = inspection.inspect(directory)
    click.echo(json.dumps(found) if as_json else inspection.in_words(found))


@cli.group()
def plugins() -> None:
    """What is installed, and whether it is healthy."""


@plugins.command("list")
@JSON
def plugins_list(as_json: bool) -> None:
    """Every entry point with what it brings, or why it is broken."""
    from streamkd.plugins import Registry

    rows = [
        {"name": s.name, "distribution": f"{s.distribution} {s.version}", "kinds": list(s.kinds), "error": s.error}
        for s in Registry.load().report()
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    head = ("name", "distribution", "brings")
    _table(head, [(r["name"], r["distribution"], r["error"] or ", ".join(r["kinds"])) for r in rows])


@cli.group()
def teachers() -> None:
    """The pool of a state directory, and teachers trained from recorded data."""


@teachers.command("list")
@STATE
@JSON
def teachers_list(state: Path, as_json: bool) -> None:
    """The teachers of the newest checkpoint, with their held-out worth."""
    from streamkd import inspection

    rows = inspection.inspect(state)["teachers"]
    if as_json:
        click.echo(json.dumps(rows))
        return
    _table(
        ("name", "worth", "accuracy", "age in tasks", "bytes"),
        [tuple(_show(row[k]) for k in ("name", "worth", "accuracy", "age", "bytes")) for row in rows],
    )


@teachers.command("train")
@CONFIG
@SET
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Each teacher gets a folder in it."
)
@click.option("--student", "kinds", multiple=True, help="Kind of student; may be repeated (default CONFIG's student).")
@click.option(
    "--tasks", type=click.Choice(["all", "each"]), default="all", show_default=True, help="One of all, or one a task."
)
@click.option("--columns", help="Input columns that they read: a,b,... (default the student's).")
@click.option("--epochs", default=100, show_default=True, type=click.IntRange(1), help="At most so many.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Records a step.")
def teachers_train(config: Path | None, overrides: tuple[str, ...], columns: str | None, **options: Any) -> None:
    """Train teachers on CONFIG's recorded data, each a folder that the teacher `checkpoint` takes."""
    from streamkd import config as configuration
    from streamkd import pretraining
    from streamkd.plugins import Registry

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    names = columns.split(",") if columns else ()
    with _bar("epochs", None) as advance:
        done = pretraining.train(tree, registry, columns=names, progress=advance, **options)
    head = ("teacher", "records", "classes", "epochs", "held-out accuracy", "path")
    _table(head, [(t.name, t.records, t.classes, t.epochs, _show(t.accuracy), t.path) for t in done])
    click.echo(f"use: teachers: [..., {{name: checkpoint, id: {done[0].name}, path: {done[0].path.resolve()}}}]")


@cli.group()
def models() -> None:
    """The published versions of a state directory; works beside a running server."""


@models.command("list")
@STATE
@JSON
def models_list(state: Path, as_json: bool) -> None:
    """The versions that are kept; the served one is marked."""
    with _versions(state) as versions:
        served = versions.served()
        rows = [
            {
                "version": v.version,
                "records": v.records,
                "kind": v.kind,
                "source_version": v.source_version,
                "published": v.created,
                "pinned": v.pinned,
                "served": bool(served and served.version == v.version),
            }
            for v in versions.list()
        ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        row["served"] = "pinned" if row["pinned"] else "yes" if row["served"] else ""
    columns = ("version", "records", "kind", "source_version", "served")
    _table(columns, [tuple("" if r[c] is None else r[c] for c in columns) for r in rows])


@models.command("rollback")
@click.argument("version", type=int)
@STATE
def models_rollback(version: int, state: Path) -> None:
    """Serve an old VERSION under a new number, pinned until `models unpin`."""
    with _versions(state) as versions:
        click.echo(f"version {versions.rollback(version)} serves what version {version} was; it is pinned")


@models.command("unpin")
@STATE
def models_unpin(state: Path) -> None:
    """Serve the newest version again."""
    with _versions(state) as versions:
        versions.unpin()
        served = versions.served()
    click.echo(f"version {served.version} is served" if served else "nothing is published yet")


@cli.group()
def tokens() -> None:
    """Bearer tokens of a server."""


@tokens.command("add")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, required=True, help="predict, ingest, label or admin; may be repeated."
)
def tokens_add(file: Path, name: str, scopes: tuple[str, ...]) -> None:
    """Add a token to FILE (hashed) and print it, once."""
    from streamkd.streams import tokens as tokening

    click.echo(tokening.create(file, name, scopes))


@cli.group()
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

    with _bar("records", None) as advance:
        result = speed.measure(records, replay, progress=advance)
    _figures(result, out)


@bench.command("learning")
@FIGURES
@click.option("--seeds", default=5, show_default=True, help="So many, from 0 on.")
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
def bench_learning(out: Path | None, seeds: int, only: tuple[str, ...], baselines: str | None, **how: Any) -> None:
    """Accuracy and forgetting beside Avalanche's strategies, other gates, and training that sees no order."""
    from streamkd.bench import learning, plots
    from streamkd.bench.streams import available

    others = [] if baselines == "none" else baselines.split(",") if baselines else list(learning.METHODS[1:])
    place = {"work": how["work"], "jobs": how["jobs"]}
    with _bar("runs", None) as advance:
        if how["choose"]:
            result = learning.choose(only or available(), others, progress=advance, **place)
        else:
            methods = [learning.METHODS[0], *others]
            result = learning.measure(only or available(), methods, range(seeds), progress=advance, **place)
    if out:
        _write(result, out)
    if how["choose"]:
        _table(("method", "chosen"), [(name, json.dumps(best)) for name, best in result["chosen"].items()])
        return
    _table(*learning.table(result["rows"]))
    if how["plots"]:
        plots.write(result["rows"], how["plots"])


@bench.command("gate")
@FIGURES
@click.option("--table", "document", type=click.Path(path_type=Path, dir_okay=False), help="Write Markdown into this.")
@click.option("--seeds", default=5, show_default=True, help="So many, from 0 on.")
@click.option("--only", multiple=True, metavar="SCENARIO", help="This scenario; may be repeated. Default all.")
@click.option("--policies", "named", help="Comma-separated. Default all.")
@click.option("--stream", default="split-mnist-5k", show_default=True, help="The stream of every scenario.")
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), default=Path("out/gate"), show_default=True,
    help="Keeps each run's result; what is there is not run again.",
)  # fmt: skip
@click.option("--jobs", default=1, show_default=True, help="Runs at the same time, a process each.")
@click.option("--timing/--no-timing", default=True, show_default=True, help="Time the gate too, alone, at the end.")
def bench_gate(out: Path | None, document: Path | None, seeds: int, only: tuple[str, ...], **how: Any) -> None:
    """The default gate beside fixed weights and other gates, in pools where a gate has something to decide."""
    from streamkd.bench import documents, gate, policies, scenarios

    named = how["named"].split(",") if how["named"] else policies.POLICIES
    place = {name: how[name] for name in ("work", "stream", "jobs")}
    with _bar("runs", None) as advance:
        result = gate.measure(only or scenarios.NAMES, named, range(seeds), progress=advance, **place)
    if how["timing"]:
        with _bar("turns", None) as advance:
            result = gate.timed(result, advance)
    if out:
        _write(result, out)
    if document:
        documents.write(document, gate.markdown(result))
    for side in gate.SIDES:
        _table(*gate.table(result["rows"], side))
    if how["timing"]:
        costs = [(name, _show(value)) for name, value in result["figures"].items() if name.startswith("gate.")]
        _table(("figure", "value"), costs)


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

    with _bar("runs", None) as advance:
        chosen = variants.split(",") if variants else tuple(meta.VARIANTS)
        result = meta.measure(_integers(seeds), work, file=file, variants=chosen, progress=advance)
    _figures(result, out)


def _figures(result: dict[str, Any], out: Path | None) -> None:
    """Write a suite's result where that is asked for, and print its figures."""
    if out:
        _write(result, out)
    _table(("figure", "value"), [(name, _show(value)) for name, value in result["figures"].items()])


def _write(result: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1), "utf-8")


@contextmanager
def _versions(state: Path) -> Iterator[Any]:
    from streamkd.state.directory import StateDirectory
    from streamkd.state.publish import Versions

    versions = Versions(StateDirectory(state))
    try:
        yield versions
    finally:
        versions.close()


@contextmanager
def _bar(label: str, total: int | None) -> Iterator[Any]:
    """A progress bar on a terminal, plain lines elsewhere; yields ``advance(done, total)``."""
    if sys.stderr.isatty():
        with click.progressbar(length=total or 1, label=label, file=sys.stderr, show_pos=True) as bar:

            def advance(done: int, of: int | None = None) -> None:
                bar.length = of or total or max(done, 1)
                bar.update(max(done - bar.pos, 0))

            yield advance
        return
    said = [0]

    def lines(done: int, of: int | None = None) -> None:
        whole = of or total
        if whole and done * 10 // whole > said[0]:
            said[0] = done * 10 // whole
            click.echo(f"{label}: {done} of {whole}", err=True)

    yield lines


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    cells = [head, *[tuple(str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _show(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _pairs(text: str | None) -> dict[str, str] | None:
    """``theirs=ours,...`` as a mapping."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(theirs and equals and ours for theirs, equals, ours in pairs):
        raise click.BadParameter(f"needed theirs=ours,..., got {text!r}", param_hint="--columns")
    return {theirs: ours for theirs, _, ours in pairs}


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"needed numbers with commas between, got {text!r}", param_hint="--seeds") from None


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each batch that passes through


def main() -> None:
    """The entry point: our errors are said in words, with the exit code that they carry."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as fault:
        fault.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except StreamkdError as fault:
        click.echo(f"error: {fault}", err=True)
        sys.exit(fault.exit_code)
    except BrokenPipeError:
        sys.exit(1)
