"""A search in words, for ``streamkd inspect``, the end of ``streamkd tune`` and the top of its report.

Outcome ─► about (plain values) | in_words (lines) | sentence (what is taken, and why)
"""

from collections.abc import Mapping
from typing import Any

from streamkd.search.ledger import TrialRecord
from streamkd.search.outcome import Outcome


def about(outcome: Outcome) -> dict[str, Any]:
    """The search as plain values."""
    verdict = outcome.verdict
    return {
        "search": outcome.header.get("name"),
        "objectives": outcome.objectives,
        "seeds": list(outcome.seeds),
        "counted": counted(outcome),
        "trials": len(outcome.trials),
        "states": outcome.states,
        "records": outcome.records,
        "records_of_whole_trials": outcome.whole,
        "verdict": sentence(outcome),
        "best": None if verdict is None else _trial(verdict.taken),
        "highest": None if verdict is None else verdict.highest.number,
        "lead": None if verdict is None else verdict.lead,
        "lead_standard_error": None if verdict is None else verdict.error,
        "front": [_trial(one) for one in outcome.front],
        "importance": outcome.importance.shares,
        "importance_method": outcome.importance.method,
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
    lines = [
        f"search {found['search']}: {found['counted']}",
        f"{found['records']} records over {seeds} seeds, {share:.0f} % of what whole trials would see",
        found["verdict"],
    ]
    lines += [f"  {path}: {value}" for path, value in (found["best"] or {"values": {}})["values"].items()]
    on_front = ", ".join(str(one["trial"]) for one in found["front"])
    lines += [f"front of {names}: trials {on_front}"] if on_front else []
    leading = [f"{path} {share:.2f}" for path, share in found["importance"].items() if share][:5]
    lines += [f"importance ({found['importance_method']}): {', '.join(leading)}"] if leading else []
    lines += [f"trial {one['trial']} failed: {one['reason'] or 'no reason is known'}" for one in found["failed"]]
    lines += [f"trials/{one['file']} is left out: it {one['reason']}" for one in found["skipped"]]
    return "\n".join(lines)


def counted(outcome: Outcome) -> str:
    """The trials by state."""
    states = ", ".join(f"{count} {state}" for state, count in outcome.states.items())
    return f"{len(outcome.trials)} trials ({states})" if states else "no trial yet"


def sentence(outcome: Outcome) -> str:
    """Which trial is taken, and how it stands to the configuration as it is."""
    verdict, name = outcome.verdict, outcome.leading
    if verdict is None:
        return "No trial has finished: nothing can be taken yet."
    highest, lead = verdict.highest, ""
    if verdict.lead is not None:
        lead = f"{verdict.lead:+.4f} ± {verdict.error or 0.0:.4f} over the seeds, at {verdict.records} records"
    if verdict.kept:
        return (
            f"The configuration is kept as it stands: trial {highest.number} was higher in {name}, but its lead "
            f"({lead}) is not beyond its standard error."
        )
    figure = highest.objective(name) or 0.0
    if highest.number == 0:
        return f"The configuration is kept as it stands: none was better in {name} ({figure:.4f})."
    compared = (
        f"its lead over the configuration as it stands is {lead}"
        if lead
        else ("the configuration as it stands gave nothing to compare it with")
    )
    return f"Trial {highest.number} is taken with {name} {figure:.4f}: {compared}."


def _trial(one: TrialRecord) -> dict[str, Any]:
    objectives = one.readings[-1]["objectives"] if one.readings else {}
    return {"trial": one.number, "objectives": objectives, "values": dict(one.latest)}
