"""Arguments and options that several commands take, and the reading of their values."""

from pathlib import Path

import click

CONFIG = click.argument("config", required=False, type=click.Path(path_type=Path, dir_okay=False))
SET = click.option("--set", "overrides", multiple=True, metavar="a.b=c", help="Override a key of the configuration.")
STATE = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), default=Path("state"), show_default=True,
    help="The state directory.",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
TOKEN = click.option("--token", envvar="STREAMKD_TOKEN", help="Bearer token; or set STREAMKD_TOKEN.")


def pairs(text: str | None) -> dict[str, str] | None:
    """``theirs=ours,...`` as a mapping."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(theirs and equals and ours for theirs, equals, ours in pairs):
        raise click.BadParameter(f"needed theirs=ours,..., got {text!r}", param_hint="--columns")
    return {theirs: ours for theirs, _, ours in pairs}


def integers(text: str) -> list[int]:
    """``0,1,2`` as numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"needed numbers with commas between, got {text!r}", param_hint="--seeds") from None
