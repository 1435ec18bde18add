"""Arguments and options that several commands take, and the reading of their values."""

import math
import os
from pathlib import Path

import click

from streamkd.errors import StreamkdError

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
EXISTING = click.Path(path_type=Path, exists=True, dir_okay=False)
CONFIG = click.argument("config", required=False, type=FILE)
SET = click.option("--set", "overrides", multiple=True, metavar="a.b=c", help="Override a key of the configuration.")
STATE = click.option("--state", type=FOLDER, default=Path("state"), show_default=True, help="The state directory.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
SEEDS = 1 << 62  # as the configuration takes them
TOKEN = click.option("--token", envvar="STREAMKD_TOKEN", help="Bearer token; or set STREAMKD_TOKEN.")


def finite(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """A number that is one."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"needed a finite number, got {value}")
    return value


def folder(path: Path) -> Path:
    """The folder, there and open to us before hours are computed for it.

    Raises:
        StreamkdError: it cannot be made, or not be written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise StreamkdError(
            f"the folder cannot be made: {fault.strerror}", where=str(path), fix="name another"
        ) from None
    if not os.access(path, os.W_OK):
        raise StreamkdError("the folder cannot be written into", where=str(path), fix="name another")
    return path


def pairs(text: str | None) -> dict[str, str] | None:
    """``theirs=ours,...`` as a mapping."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(theirs and equals and ours for theirs, equals, ours in pairs):
        raise click.BadParameter(f"needed theirs=ours,..., got {text!r}", param_hint="--columns")
    named = {theirs: ours for theirs, _, ours in pairs}
    if len(named) < len(pairs) or len(set(named.values())) < len(pairs):
        raise click.BadParameter(f"needed each name once on either side, got {text!r}", param_hint="--columns")
    return named


def integers(text: str) -> list[int]:
    """``0,1,2`` as the numbers of seeds, each once."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"needed numbers with commas between, got {text!r}", param_hint="--seeds") from None
    if len(set(numbers)) < len(numbers) or min(numbers) < 0 or max(numbers) >= SEEDS:
        raise click.BadParameter(f"needed numbers from 0 to 2^62, each once, got {text!r}", param_hint="--seeds")
    return numbers
