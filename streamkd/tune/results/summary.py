"""A search in words, for ``streamkd inspect``, the end of ``streamkd tune`` and the top of its report.

Outcome ─► about (plain values) ─► told (lines); sentence (what is taken, and why)
"""

from collections.abc import Mapping
from typing import Any

from streamkd.tune.record import TrialRecord
from streamkd.tune.results.outcome import Outcome
from streamkd.tune.results.verdict import FEWEST, Verdict


def about(outcome: Outcome, driver: int | None = None) -> dict[str, Any]:
    """The search as plain values; ``driver`` is the process that drives it now."""
    verdict, default = outcome.verdict, outcome.default
    return {
        "search": outcome.header["name"],
        "objectives": outcome.objectives,
        "seeds": list(outcome.seeds),
        "trials": len(outcome.trials),
        "states": outcome.states,
        "driver": driver,
        "records": outcome.records,
        "records_of_whole_trials": outcome.whole,
        "validation": outcome.header["validation"],
        "verdict": sentence(outcome),
        "best": None if verdict is None else _trial(verdict.taken),
        "default": None if default is None else _trial(default),
        "highest": None if verdict is None else verdict.highest.number,
        "lead": None if verdict is None else verdict.lead,
        "leads": [] if verdict is None else list(verdict.leads),
        "lead_standard_error": None if verdict is None else verdict.error,
        "front": [_trial(one) for one in outcome.front],
        "importance": outcome.importances,
        "failed": [{"trial": one.number, "reason": one.reason} for one in outcome.failures],
        "settings": outcome.header["settings"],
        "command": outcome.header["command"],
    }


def told(found: Mapping[str, Any]) -> str:
    """What ``about`` found, in lines for a person."""
    share = 100 * found["records"] / (found["records_of_whole_trials"] or 1)
    seeds, names = len(found["seeds"]), " and ".join(found["objectives"])
    over = f"{seeds} seed{'s' * (seeds != 1)}"
    lines = [
        f"search {found['search']}: {counted(found['states'])}",
        f"{found['records']:,} records over {over}, {share:.0f} % of what whole trials would see",
        judged_by(found["validation"]),
        *_under_way(found),
        found["verdict"],
        *_values(found),
    ]
    if found["front"]:
        lines.append(f"front of {names}: trials {', '.join(str(one['trial']) for one in found['front'])}")
    if leading := [f"{path} {share:.2f}" for path, share in [*found["importance"].items()][:5]]:
        lines.append(f"importance: {', '.join(leading)}")
    return "\n".join([*lines, *(f"trial {one['trial']} failed: {one['reason']}" for one in found["failed"])])


def judged_by(validation: Mapping[str, int]) -> str:
    """How many validation records a trial is measured by."""
    return f"measured on {validation['records']:,} of {validation['given']:,} validation records"


def _under_way(found: Mapping[str, Any]) -> list[str]:
    """Whether it runs now, and what a search that was stopped has left."""
    states = found["states"]
    if found["driver"] is not None:
        return [f"process {found['driver']} drives it: {states.get('running', 0)} running now"]
    left = states.get("waiting", 0) + states.get("running", 0)
    begun = f"{left} trial{'s were' if left > 1 else ' was'} under way when it was stopped"
    return [f"{begun}; the same command with --resume goes on"] if left else []


def _values(found: Mapping[str, Any]) -> list[str]:
    """What is taken, beside what stands in the configuration where that is another."""
    if found["best"] is None:
        return []
    values, default = found["best"]["values"], (found["default"] or {"values": {}})["values"]
    wide = max(map(len, values), default=0)
    lines = {path: f"  {path.ljust(wide)}  {said(value)}" for path, value in values.items()}
    column = max(map(len, lines.values()), default=0)
    moved = {path for path in values if path in default and default[path] != values[path]}
    return [
        f"{line.ljust(column)}  (was {said(default[path])})" if path in moved else line for path, line in lines.items()
    ]


def counted(states: Mapping[str, int]) -> str:
    """The trials by state."""
    number = sum(states.values())
    words = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"{number} trial{'s' * (number != 1)} ({words})" if states else "no trial yet"


def sentence(outcome: Outcome) -> str:
    """Which trial is taken, and how it stands to the configuration as it is."""
    verdict, name = outcome.verdict, outcome.leading
    if verdict is None:
        return "No trial has finished: nothing can be taken yet."
    highest, lead = verdict.highest, lead_of(verdict)
    if verdict.kept:
        few = "is not one on every seed" if verdict.error is None else "is not beyond its standard error"
        return (
            f"The configuration is kept as it stands: trial {highest.number} was higher in {name}, but its lead "
            f"({lead}) {few}.{_doubt(verdict)}"
        )
    figure = highest.objective(name) or 0.0
    if highest.number == 0:
        return f"The configuration is kept as it stands: none was better in {name} ({figure:.4f})."
    known, unknown = f"its lead over the configuration as it stands is {lead}", "nothing could be compared with it"
    return f"Trial {highest.number} is taken with {name} {figure:.4f}: {known if lead else unknown}.{_doubt(verdict)}"


def lead_of(verdict: Verdict) -> str:
    """The lead of the highest trial over trial 0 in words, "" where they could not be compared."""
    if verdict.lead is None:
        return ""
    seeds = len(verdict.leads)
    if verdict.error is not None:
        how = f" ± {verdict.error:.4f}, the standard error of {seeds} seeds,"
    else:
        how = f", by seed {' and '.join(f'{lead:+.4f}' for lead in verdict.leads)}," if seeds > 1 else " on one seed,"
    return f"{verdict.lead:+.4f}{how} at {verdict.records:,} records"


def _doubt(verdict: Verdict) -> str:
    """What so few seeds cannot say."""
    if verdict.lead is None or verdict.error is not None:
        return ""
    seeds = "two seeds have" if len(verdict.leads) > 1 else "one seed has"
    return (
        f" With {FEWEST} seeds or more a standard error would decide; {seeds} none, and chance alone leads on "
        "every seed often enough: search with more --seeds, or compare both with `streamkd run --seeds 0,1,2,3,4`."
    )


def _trial(one: TrialRecord) -> dict[str, Any]:
    objectives = one.readings[-1]["objectives"] if one.readings else {}
    return {"trial": one.number, "objectives": objectives, "values": dict(one.values)}


def said(value: Any) -> str:
    """A value as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)
