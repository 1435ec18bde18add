"""Commands about configurations and what is installed: ``init``, ``check``, ``plugins``."""

import json
from pathlib import Path

import click

from streamkd.cli.options import CONFIG, EXISTING, FILE, JSON, SET
from streamkd.cli.terminal import table
from streamkd.errors import StreamkdError
from streamkd.logs import some


@click.command()
@click.argument("file", type=EXISTING)
@click.option("--label", help="The column that holds the label.")
@click.option("--out", type=FILE, help="Where to write it (default FILE's stem).")
@click.option("--force", is_flag=True, help="Overwrite.")
@click.option(
    "--accept", multiple=True, metavar="DOUBT", help="Take what is refused as hardly meant; may be repeated."
)  # fmt: skip
def init(file: Path, label: str | None, out: Path | None, force: bool, accept: tuple[str, ...]) -> None:
    """Look at a Parquet, Arrow, CSV or JSON-lines FILE of your own and write a commented configuration for it."""
    from streamkd.streams.files import describe, doubts

    target = out or Path(f"{file.stem}.yaml")
    if target.exists() and not force:
        raise StreamkdError("is there already", where=str(target), fix="name another with --out, or --force")
    if unknown := set(accept) - set(doubts.DOUBTFUL):
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))}; there are: {', '.join(doubts.DOUBTFUL)}", param_hint="--accept"
        )
    described = describe.describe(file, label, accept)
    try:
        target.write_text(described.text, "utf-8")
    except OSError as fault:
        raise StreamkdError(
            f"cannot be written: {fault.strerror}", where=str(target), fix="name another with --out"
        ) from None
    click.echo("\n".join([f"wrote {target}", *(f"  {note}" for note in described.notes)]))
    click.echo(f"next: streamkd check {target}; streamkd serve {target} --state {target.stem}-state")


@click.command()
@CONFIG
@SET
@click.option("--show", is_flag=True, help="Print the complete configuration.")
@click.option("--sample", "sampled", is_flag=True, help="Read a hundred records, and show one as the student sees it.")
def check(config: Path | None, overrides: tuple[str, ...], show: bool, sampled: bool) -> None:
    """Validate a configuration: every key; every part that it names is built once, on the CPU; files are looked at."""
    import torch
    import yaml

    from streamkd import config as configuration
    from streamkd.plugins import Registry
    from streamkd.serve.http.listen import check_ports
    from streamkd.wiring import rehearse, rehearse_source, sample, schema_of

    registry = Registry.load()
    tree = configuration.load(config, overrides, registry)
    check_ports(tree.serve)
    schema = schema_of(tree, registry)
    rehearse(tree, registry, schema, torch.device("cpu"))
    rehearse_source(tree, registry, schema)
    if show:
        click.echo(yaml.safe_dump(configuration.dump(tree), sort_keys=False).rstrip())
    else:
        inputs = some([f"{c.name} {c.kind} {list(c.shape)} {c.dtype}" for c in schema.inputs], 5)
        click.echo(f"{config or 'embedded'}: fine\n  inputs: {inputs}\n  label: {schema.label} ({schema.label_type})")
    if sampled:
        click.echo("\n".join(sample(tree, registry, schema)))


@click.group()
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
    table(head, [(r["name"], r["distribution"], r["error"] or ", ".join(r["kinds"])) for r in rows])
