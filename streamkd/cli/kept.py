"""Commands about what is kept on disk: ``inspect``, ``migrate``, ``models``, ``dlq``."""

import json
from collections import Counter
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import click

from streamkd.cli.options import FILE, FOLDER, JSON, SET, STATE, TOKEN
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


@click.command()
@click.argument("state", type=FOLDER)
@click.argument("config", type=FILE)
@SET
@click.option("--fill", "fills", multiple=True, metavar="COLUMN=VALUE", help="What records so far had in a new column.")
def migrate(state: Path, config: Path, overrides: tuple[str, ...], fills: tuple[str, ...]) -> None:
    """Let the learner of STATE go on under CONFIG, which has input columns more, or wider numbers.

    The server is stopped. A new column with `missing: fill` needs no --fill: records so far have a gap there.
    """
    told = dict(fill.partition("=")[::2] for fill in fills)
    from streamkd import config as configuration
    from streamkd.migration import migrate as go_on
    from streamkd.plugins import Registry

    registry = Registry.load()
    done = go_on(state, configuration.load(config, overrides, registry), registry, told)
    changed = {"new": done.news.added, "wider": done.news.wider}
    click.echo("; ".join(f"{what}: {', '.join(names)}" for what, names in changed.items() if names))
    click.echo(f"{done.batches} batches of the log are written anew; {done.records} records stay learned")
    click.echo("the student answers as before" + (f", to within {done.apart:.1g} of a logit" if done.apart else ""))
    if done.anew:
        click.echo(f"began anew, and learned what is remembered: {', '.join(done.anew)}")


@click.group()
def models() -> None:
    """The published versions of a state directory; beside a running server, but for `rollback --before`."""


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
                "offsets": dict(v.offsets),
                "positions": dict(v.positions),
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
        row["seen_before"] = ", ".join(f"{p} {o}" for p, o in (row["offsets"] | row["positions"]).items())
    columns = ("version", "records", "seen_before", "kind", "source_version", "served")
    table(columns, [tuple("" if r[c] is None else r[c] for c in columns) for r in rows])
    if served and newest and served.pinned:
        click.echo(f"version {served.version} is pinned; `streamkd models unpin` serves version {newest.version}")


@models.command("rollback")
@click.argument("version", type=int, required=False)
@click.option("--before", type=click.IntRange(0), metavar="OFFSET", help="The first record that should not be seen.")
@click.option("--skip-to", type=click.IntRange(1), metavar="OFFSET", help="Never learn those up to this one.")
@STATE
def models_rollback(version: int | None, before: int | None, skip_to: int | None, state: Path) -> None:
    """Serve an old VERSION under a new number, pinned until `models unpin`; it goes on learning.

    With --before, and the server stopped, what is learned goes back: to the newest state that is kept and has not seen
    the record at OFFSET. The next start learns on from there, with --skip-to without the records from OFFSET up to that
    one. Versions that had seen them are withdrawn.
    """
    if (version is None) == (before is None) or (before is None and skip_to is not None):
        raise click.UsageError("needed VERSION, or --before with or without --skip-to")
    if version is None:
        _go_back(state, before or 0, skip_to)
        return
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


def _go_back(state: Path, before: int, skip_to: int | None) -> None:
    from streamkd.state.directory import StateDirectory
    from streamkd.state.rollback import roll_back

    done = roll_back(StateDirectory(state), before, skip_to)
    at = "the beginning, record 0"
    if done.checkpoint is not None:
        offsets = ", ".join(f"{partition} {offset}" for partition, offset in done.checkpoint.offsets.items())
        at = f"checkpoint {done.checkpoint.id} ({offsets}; {done.checkpoint.records} records learned)"
    click.echo(f"the next start learns on from {at}")
    if done.skip is not None:
        click.echo(
            f"never learned: {done.skip.stop - done.skip.start} records, {done.skip.start} to {done.skip.stop - 1}"
        )
    withdrawn = ", ".join(map(str, done.withdrawn)) or "none"
    click.echo(f"{len(done.dropped)} newer checkpoints are dropped; versions withdrawn: {withdrawn}")


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
