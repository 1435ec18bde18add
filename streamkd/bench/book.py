"""The run book of a benchmark: what each run gave, kept in a file as soon as it is there.

    tasks by key ─► those that the file lacks ─► here, or in so many processes ─► a line each ─► all rows, as asked

A killed benchmark goes on where it was; two tasks of one key are one run.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from streamkd.errors import ConfigError
from streamkd.state.environment import environment

Row = dict[str, Any]
Progress = Callable[[int, int], None]
"""Told (runs that are there, runs in all)."""
Task = TypeVar("Task")


def key_of(*what: Any) -> str:
    """A name for a run, made of all that decides it, as plain JSON values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def result(suite: str, rows: Sequence[Row], **found: Any) -> dict[str, Any]:
    """What a benchmark found, as its file of figures has it: from which runs, and on what machine."""
    return {"schema": 1, "suite": suite, **found, "rows": rows, "environment": environment()}


def require_known(what: str, asked: Sequence[str], known: Collection[str], where: str) -> None:
    """Every name that is asked for is one of ``known``.

    Raises:
        ConfigError: one is not; it names those that there are.
    """
    for name in asked:
        if name not in known:
            raise ConfigError(f"there is no {what} {name!r}", where=where, fix=f"one of {', '.join(known)}")


def run_all(
    tasks: Sequence[tuple[str, Task]], run_one: Callable[[Task], Row], file: Path, jobs: int, progress: Progress
) -> list[Row]:
    """The row of each (key, task), in their order; new ones are appended to ``file`` one by one.

    ``run_one`` is a function of a module, so that other processes find it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = _read(file)
    asked = dict(tasks)
    missing = {key: task for key, task in asked.items() if key not in kept}
    progress(len(asked) - len(missing), len(asked))
    with file.open("a", encoding="utf-8") as book:
        for count, (key, row) in enumerate(_run(missing, run_one, jobs), len(asked) - len(missing) + 1):
            kept[key] = row
            book.write(json.dumps({"key": key, "row": row}) + "\n")
            book.flush()
            progress(count, len(asked))
    return [kept[key] for key, _ in tasks]


def _run(missing: dict[str, Task], run_one: Callable[[Task], Row], jobs: int) -> Iterator[tuple[str, Row]]:
    """Here, one after another; or in so many processes, in the order in which they end."""
    if jobs == 1:
        yield from ((key, run_one(task)) for key, task in missing.items())
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        begun = {pool.submit(run_one, task): key for key, task in missing.items()}
        yield from ((begun[future], future.result()) for future in as_completed(begun))


def _read(file: Path) -> dict[str, Row]:
    """What was kept; a line that a kill cut off is left out."""
    kept: dict[str, Row] = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        kept[entry["key"]] = entry["row"]
    return kept
