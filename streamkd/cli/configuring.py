"""Commands about configurations and what is installed: ``init``, ``check``, ``plugins``."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from streamkd.cli.options import CONFIG, EXISTING, FILE, FOLDER, JSON, SET
from streamkd.cli.terminal import table
from streamkd.errors import PluginError, StreamkdError
from streamkd.logs import some
from streamkd.scaffold.package import KINDS, Scaffolded


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


@plugins.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it brings.")
@click.option("--into", type=FOLDER, default=Path(), help="Folder in which it gets one of its own. Default: this one.")
def plugins_new(name: str, kind: Scaffolded, into: Path) -> None:
    """Write an installable package NAME whose one kind works: change what it does."""
    from streamkd.scaffold import package

    for path in package.write(name, kind, into):
        click.echo(str(path))
    place = into / name
    click.echo(f"\n  pip install -e {place} && pytest {place}\n  then, in a configuration:  {package.use(name, kind)}")


@plugins.command("check")
@click.argument("distribution", required=False)
@JSON
def plugins_check(distribution: str | None, as_json: bool) -> None:
    """Hold what is installed to its contracts: every plugin, or those of a DISTRIBUTION."""
    from streamkd.testing.installed import checked

    rows = checked(distribution)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
    elif rows:
        head = ("kind", "name", "distribution", "s", "verdict")
        table(head, [(row.kind, row.name, row.distribution, f"{row.seconds:.1f}", row.verdict) for row in rows])
    else:
        click.echo("no plugins are installed")
    if faults := [row.fault for row in rows if row.fault]:
        raise PluginError("\n".join(faults), where="plugins", fix="mend it, or uninstall it")
