"""Commands about what is kept on disk: ``inspect``, ``models``."""

import json
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import click

from streamkd.cli.options import JSON, STATE
from streamkd.cli.terminal import table


@click.command()
@click.argument("directory")
@JSON
def inspect(directory: str, as_json: bool) -> None:
    """A state directory, or a search (also in a bucket), in words."""
    from streamkd import inspection

    found = inspection.inspect(directory)
    click.echo(json.dumps(found) if as_json else inspection.in_words(found))


@click.group()
def models() -> None:
    """The published versions of a state directory; works beside a running server."""


@models.command("list")
@STATE
@JSON
def models_list(state: Path, as_json: bool) -> None:
    """The versions that are kept; the served one is marked."""
    with _versions(state) as versions:
        served, newest = versions.served(), versions.newest()
        rows = [
            {
                "version": v.version,
                "records": v.records,
                "kind": v.kind,
                "source_version": v.source_version,
                "published": v.created,
                "pinned": v.pinned,
                "served": bool(served and served.version == v.version),
                "newest": bool(newest and newest.version == v.version),
            }
            for v in versions.list()
        ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        row["served"] = "pinned" if row["pinned"] else "yes" if row["served"] else ""
    columns = ("version", "records", "kind", "source_version", "served")
    table(columns, [tuple("" if r[c] is None else r[c] for c in columns) for r in rows])
    if served and newest and served.pinned:
        click.echo(f"version {served.version} is pinned; `streamkd models unpin` serves version {newest.version}")


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
    """Serve the newest learned version again."""
    with _versions(state) as versions:
        versions.unpin()
        served = versions.served()
    click.echo(f"version {served.version} is served" if served else "nothing is published yet")


def _versions(state: Path) -> AbstractContextManager[Any]:
    from streamkd.state.directory import StateDirectory
    from streamkd.state.versions import VersionStore

    return closing(VersionStore(StateDirectory(state)))
