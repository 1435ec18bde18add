"""A search from its beginning to its files, or on from where it was stopped.

    recordings, header ─► Study ─► Controller ─► runner: this machine's slots, or Ray Tune ─► files

When it ends, in whatever way, trials under way wait to begin again, and the results are written.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import StateConflict, StreamkdError
from streamkd.evaluate.seeds import plain
from streamkd.plugins import Registry
from streamkd.tune import cluster, slot
from streamkd.tune.controller import Controller, Watch
from streamkd.tune.record import DONE
from streamkd.tune.results import files
from streamkd.tune.results.outcome import Outcome
from streamkd.tune.settings import Settings
from streamkd.tune.space.space import Space
from streamkd.tune.study import Study
from streamkd.tune.trials import recording
from streamkd.tune.trials.objective import objective
from streamkd.tune.trials.recording import Recording
from streamkd.tune.trials.trial import Trial
from streamkd.tune.worker import Job, Make

SAME = ("seeds", "objectives", "scheduler", "sampler", "seed")
"""Settings that a resumed search cannot change: its trials would not be comparable, or not be proposed again."""


Runner = Callable[[Controller], None]
"""Runs the trials of a controller until there are no more."""


def tune(
    config: Config,
    registry: Registry,
    space: Space,
    settings: Settings,
    out: Path | str,
    *,
    make: Make = Trial,
    run: Runner | None = None,
    resume: bool = False,
    command: str = "",
    watches: Sequence[Watch] = (),
) -> Outcome:
    """Run a search, or go on with it, and write its results, also when it is interrupted.

    Raises:
        StateConflict: another search is there. StreamkdError: nothing could run, with the reasons. KeyboardInterrupt:
            after the results were written.
    """
    if settings.sampler == "grid":
        space.refuse_endless()
    recordings = {seed: recording.record(config, registry, seed) for seed in settings.seeds}
    header = _header(config, space, settings, recordings, command)
    study = _resumed(out, header) if resume else Study.create(out, header)
    job = Job(config, space, recordings, settings, make)
    with study.driven():
        try:
            run = run or (slot.run if settings.address is None else cluster.run)
            run(Controller(study, job, registry, watches))
        finally:
            outcome = files.write(study, space, config, registry)
    _refuse_nothing(outcome)
    return outcome


def _header(
    config: Config, space: Space, settings: Settings, recordings: Mapping[int, Recording], command: str
) -> dict[str, Any]:
    parts = recordings.values()
    header: dict[str, Any] = plain(
        {
            "name": config.name,
            "config": configuration.dump(config),
            "space": space.to_json(),
            "settings": asdict(settings),
            "objectives": {name: objective(name).direction for name in settings.objectives},
            "seeds": settings.seeds,
            "total": max(one.total for one in parts),
            "validation": {"records": sum(p.validated for p in parts), "given": sum(p.held_out for p in parts)},
            "command": command,
            "directory": str(Path.cwd()),
        }
    )
    return header


def _resumed(out: Path | str, header: Mapping[str, Any]) -> Study:
    """The search that is there, if it is the same."""
    study = Study.open(out)
    before = {**study.header, **{name: study.header["settings"].get(name) for name in SAME}}
    now = {**header, **{name: header["settings"][name] for name in SAME}}
    for what in ("config", "space", "total", *SAME):
        if before.get(what) != now[what]:
            raise StateConflict(
                f"the search was begun with another {what}{_both(before.get(what), now[what])}",
                where=str(out),
                fix="go on with what it was begun with, or begin another with --out",
            )
    return study


def _both(before: Any, now: Any, path: str = "") -> str:
    """The first place where two values differ, and what is there."""
    keys: list[Any] = []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        before, now = {keys[0]: None} | before, {keys[0]: None} | now
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        keys = [at for at, (one, other) in enumerate(zip(before, now, strict=True)) if one != other]
    if keys:
        return _both(before[keys[0]], now[keys[0]], f"{path}.{keys[0]}" if path else str(keys[0]))
    return f": {path or 'it'} was {before!r}, is {now!r}"


def _refuse_nothing(outcome: Outcome) -> None:
    """A search that came to nothing is an error, not an empty table."""
    if any(one.readings for one in outcome.trials):
        return
    counts = Counter(one.reason if one.state in DONE else "stopped before its end" for one in outcome.trials)
    said = "; ".join(f"{count} × {why}" for why, count in list(counts.items())[:3]) or "none was begun"
    raise StreamkdError(
        f"no trial gave a reading: {said}",
        where="streamkd tune",
        fix="run the configuration by itself with `streamkd run`, or give the search more time, memory or workers",
    )
