"""Commands about teachers: ``teachers list``, ``teachers train``."""

import json
from pathlib import Path
from typing import Any

import click

from streamkd.cli.options import CONFIG, FOLDER, JSON, SET, STATE
from streamkd.cli.terminal import bar, show, table


@click.group()
def teachers() -> None:
    """The pool of a state directory, and teachers trained from recorded data."""


@teachers.command("list")
@STATE
@JSON
def teachers_list(state: Path, as_json: bool) -> None:
    """The teachers of the newest checkpoint, with what the pool would lose without each."""
    from streamkd import inspection

    rows = inspection.learned(state)["teachers"]
    if as_json:
        click.echo(json.dumps(rows))
        return
    table(
        ("name", "marginal gain", "accuracy", "age in tasks", "bytes"),
        [tuple(show(row[k]) for k in ("name", "marginal_gain", "accuracy", "age", "bytes")) for row in rows],
    )


@teachers.command("train")
@CONFIG
@SET
@click.option("--out", type=FOLDER, required=True, help="Each teacher gets a folder in it.")
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
    from streamkd.plugins import Registry
    from streamkd.pretraining import teachers as pretraining

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    names = columns.split(",") if columns else ()
    with bar("epochs", None) as advance:
        done = pretraining.train(tree, registry, columns=names, progress=advance, **options)
    head = ("teacher", "records", "classes", "epochs", "held-out accuracy", "path")
    table(head, [(t.name, t.records, t.classes, t.epochs, show(t.accuracy), t.path) for t in done])
    if done[0].left_out:
        click.echo(f"{done[0].left_out:,} more records are damaged or have no label: they taught nobody")
    click.echo(f"use: teachers: [..., {{name: checkpoint, id: {done[0].name}, path: {done[0].path.resolve()}}}]")
