"""Commands about what is kept on disk: ``inspect``, ``models``, ``dlq``."""

import json
from collections import Counter
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import click

from streamkd.cli.options import JSON, STATE, TOKEN
from streamkd.cli.terminal import table
from streamkd.errors import RecordError


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


@click.group()
def dlq() -> None:
    """Dead letters: records that were refused, with the reason; works beside a running server."""


NAMES = click.argument("names", nargs=-1)
REASON = click.option("--reason", help="Those alone that were refused for it: wrong_shape, say.")


@dlq.command("list")
@STATE
@REASON
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="So many, the newest.")
@JSON
def dlq_list(state: Path, reason: str | None, limit: int, as_json: bool) -> None:
    """What was refused, when, where it stood, and why."""
    from streamkd import letters

    found = letters.letters(state, reason=reason)
    told = [letter.told() for letter in found[-limit:]]
    if as_json:
        click.echo(json.dumps(told))
        return
    head = ("name", "source", "offset", "reason", "detail")
    table(head, [tuple("" if row[key] is None else str(row[key])[:80] for key in head) for row in told])
    counts = Counter(letter.letter.reason for letter in found)
    click.echo(", ".join(f"{count} {why}" for why, count in counts.most_common()) or "no dead letters")


@dlq.command("show")
@NAMES
@STATE
@REASON
def dlq_show(names: tuple[str, ...], state: Path, reason: str | None) -> None:
    """The records themselves, as JSON lines that can be mended and pushed: those of NAMES, or all."""
    from streamkd import letters

    for line in letters.as_lines(letters.letters(state, names, reason)):
        click.echo(line)


@dlq.command("replay")
@NAMES
@click.option("--to", "url", required=True, help="grpc://HOST:PORT (Arrow Flight) or http://HOST:PORT.")
@click.option("--stream", default="main", show_default=True)
@STATE
@REASON
@TOKEN
def dlq_replay(
    names: tuple[str, ...], url: str, stream: str, state: Path, reason: str | None, token: str | None
) -> None:
    """Send them to a running server again, each once, and let them go; what it still refuses comes back anew."""
    from streamkd import letters
    from streamkd.producer.push import push

    counts = Counter[str]()
    for some, batch in letters.sendings(letters.letters(state, names, reason)):
        try:
            summary = push([batch], url, stream, letters.producer_of(some), token)
        except RecordError as fault:  # of these columns; the others go on
            click.echo(f"{len(some)} are kept, {some[0].name} among them: {fault}", err=True)
            continue
        letters.drop(state, some)
        counts += Counter(sent=summary.sent, accepted=summary.accepted, rejected=summary.rejected)
    click.echo(f"{counts['sent']} records sent, {counts['accepted']} accepted, {counts['rejected']} rejected again")
    if left := len(letters.letters(state, names, reason)) if not names else 0:
        click.echo(f"{left} dead letters are left; `streamkd dlq list` has them")


@dlq.command("drop")
@NAMES
@STATE
@REASON
def dlq_drop(names: tuple[str, ...], state: Path, reason: str | None) -> None:
    """Let those of NAMES go, or with --reason all of that one."""
    if not names and reason is None:
        raise click.UsageError("needed names of dead letters, or --reason")
    from streamkd import letters

    chosen = letters.letters(state, names, reason)
    letters.drop(state, chosen)
    click.echo(f"{len(chosen)} dead letters are gone")
