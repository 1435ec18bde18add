"""What commands put on a terminal: a progress bar, a table, a figure, the log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from streamkd import logs


@contextmanager
def bar(label: str, total: int | None) -> Iterator[Any]:
    """A progress bar on a terminal, plain lines elsewhere; yields ``advance(done, total)``."""
    if sys.stderr.isatty():
        with click.progressbar(length=total or 1, label=label, file=sys.stderr, show_pos=True) as shown:

            def advance(done: int, of: int | None = None) -> None:
                shown.length = of or total or max(done, 1)
                shown.update(max(done - shown.pos, 0))

            yield advance
        return
    said = [0]

    def lines(done: int, of: int | None = None) -> None:
        whole = of or total
        if whole and done * 10 // whole > said[0]:
            said[0] = done * 10 // whole
            click.echo(f"{label}: {done} of {whole}", err=True)

    yield lines


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Columns as wide as they need be, on stdout."""
    cells = [head, *[tuple(logs.one_line(str(cell)) for cell in row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show(value: Any) -> str:
    """A figure of a table."""
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def log_to_stderr() -> None:
    """The log of a long command."""
    import logging

    logs.to_stderr("%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each batch that passes through
