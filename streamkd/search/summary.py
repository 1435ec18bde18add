"""A search in words, for ``streamkd inspect``, the end of ``streamkd tune`` and the top of its report.

Outcome ─► about (plain values) | in_words (lines) | sentence (what is taken, and why)
"""

from collections.abc import Mapping
from typing import Any

from streamkd.search import best, coordinates
from streamkd.search.best import Verdict
from streamkd.search.ledger import TrialRecord
from streamkd.search.outcome import Outcome


def about(outcome: Outcome, driver: int | None = None) -> dict[str, Any]:
    """The search as plain values; ``driver`` is the process that drives it now."""
    verdict = outcome.verdict
    default = next((one for one in outcome.trials if one.number == 0), None)
    return {
        "search": outcome.header.get("name"),
        "objectives": outcome.objectives,
        "seeds": list(outcome.seeds),
        "counted": counted(outcome),
        "trials": len(outcome.trials),
        "states": outcome.states,
        "driver": driver,
        "records": outcome.records,
        "records_of_whole_trials": outcome.whole,
        "validation": outcome.header.get("validation"),
        "verdict": sentence(outcome),
        "best": None if verdict is None else _trial(verdict.taken),
        "default": None if default is None else _trial(default),
        "highest": None if verdict is None else verdict.highest.number,
        "lead": None if verdict is None else verdict.lead,
        "leads": [] if verdict is None else list(verdict.leads),
        "lead_standard_error": None if verdict is None else verdict.error,
        "front": [_trial(one) for one in outcome.front],
        "importance": outcome.importance.shares,
        "importance_method": outcome.importance.method,
        "importance_by_chance": outcome.importance.chance,
        "failed": [{"trial": one.number, "reason": one.reason} for one in outcome.failures],
        "skipped": [{"file": one.name, "reason": one.reason} for one in outcome.skipped],
        "settings": outcome.header.get("settings"),
        "command": outcome.header.get("command"),
    }


def in_words(outcome: Outcome) -> str:
    """A few lines for a person."""
    return told(about(outcome))


def told(found: Mapping[str, Any]) -> str:
    """What ``about`` found, in lines."""
    share = 100 * found["records"] / (found["records_of_whole_trials"] or 1)
    seeds, names = len(found["seeds"]), " and ".join(found["objectives"])
    over = f"{seeds} seed{'s' * (seeds != 1)}"
    lines = [
        f"search {found['search']}: {found['counted']}",
        f"{found['records']:,} records over {over}, {share:.0f} % of what whole trials would see",
        *judged_by(found["validation"]),
        *_under_way(found),
        found["verdict"],
        *_values(found),
    ]
    on_front = ", ".join(str(one["trial"]) for one in found["front"])
    lines += [f"front of {names}: trials {on_front}"] if on_front else []
    lines += [*_important(found)]
    lines += [f"trial {one['trial']} failed: {one['reason'] or 'no reason is known'}" for one in found["failed"]]
    lines += [f"trials/{one['file']} is left out: it {one['reason']}" for one in found["skipped"]]
    return "\n".join(lines)


def judged_by(validation: Mapping[str, int] | None) -> list[str]:
    """How many validation records a trial is measured by; nothing of a search that did not note it."""
    if not validation:
        return []
    return [f"measured on {validation['records']:,} of {validation['given']:,} validation records"]


def _under_way(found: Mapping[str, Any]) -> list[str]:
    """Whether it runs now, and what a search that was stopped has left."""
    states = found["states"]
    if found["driver"] is not None:
        return [f"process {found['driver']} drives it: {states.get('running', 0)} running now"]
    left = sum(states.get(state, 0) for state in ("waiting", "running", "lost"))
    if not left:
        return []
    begun = f"{left} trial{'s were' if left > 1 else ' was'} under way when it was stopped"
    return [f"{begun}; the same command with --resume goes on"]


def _values(found: Mapping[str, Any]) -> list[str]:
    """What is taken, beside what stands in the configuration where that is another."""
    if found["best"] is None:
        return []
    values, default = found["best"]["values"], (found["default"] or {"values": {}})["values"]
    wide = max(map(len, values), default=0)
    lines = [f"  {path.ljust(wide)}  {coordinates.said(value)}" for path, value in values.items()]
    moved = [path in default and default[path] != value for path, value in values.items()]
    column = max(map(len, lines), default=0)
    return [
        f"{line.ljust(column)}  (was {coordinates.said(default[path])})" if differs else line
        for line, path, differs in zip(lines, values, moved, strict=True)
    ]


def _important(found: Mapping[str, Any]) -> list[str]:
    """The parameters that decide more than one would by chance."""
    known = {path: share for path, share in found["importance"].items() if share is not None}
    if not known:
        return []
    least = found["importance_by_chance"] or 0.0
    leading = [f"{path} {share:.2f}" for path, share in known.items() if share > least][:5]
    said = ", ".join(leading) or "no parameter stands out from chance in so few trials"
    return [f"importance ({found['importance_method']}): {said}"]


def counted(outcome: Outcome) -> str:
    """The trials by state."""
    states = ", ".join(f"{count} {state}" for state, count in outcome.states.items())
    number = len(outcome.trials)
    return f"{number} trial{'s' * (number != 1)} ({states})" if states else "no trial yet"


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
    compared = (
        f"its lead over the configuration as it stands is {lead}"
        if lead
        else ("the configuration as it stands gave nothing to compare it with")
    )
    return f"Trial {highest.number} is taken with {name} {figure:.4f}: {compared}.{_doubt(verdict)}"


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
        f" With {best.FEWEST} seeds or more a standard error would decide; {seeds} none, and chance alone leads on "
        "every seed often enough: search with more --seeds, or compare both with `streamkd run --seeds 0,1,2,3,4`."
    )


def _trial(one: TrialRecord) -> dict[str, Any]:
    objectives = one.readings[-1]["objectives"] if one.readings else {}
    return {"trial": one.number, "objectives": objectives, "values": dict(one.latest)}
