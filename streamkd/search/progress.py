"""How far a search is, what it has found so far, and how long it will take: plain figures of a ``Standing``.

Seconds left are those of the trials that are to come, each as long as one was on average, and of those that run, shared
among as many as run at once. Called by ``streamkd.search.live`` and ``streamkd.search.metrics``.
"""

from streamkd.search.driver import Standing
from streamkd.search.ledger import DONE, TrialRecord


def best(standing: Standing, name: str | None = None) -> TrialRecord | None:
    """The finished trial with the best figure, by the leading objective or by the one that is named."""
    name = name or next(iter(standing.directions))
    sign = 1.0 if standing.directions[name] == "max" else -1.0
    known = [
        (sign * value, -one.number, one)
        for one in standing.trials
        if one.state == "finished" and (value := one.objective(name)) is not None
    ]
    return max(known, default=(0.0, 0, None), key=lambda each: each[:2])[2]


def share(standing: Standing) -> float:
    """0 to 1: trials that are over, and those that run by their records."""
    done = sum(1.0 for one in standing.trials if one.state in DONE)
    under_way = sum(one.records / max(standing.total, 1) for one in standing.trials if one.state == "running")
    return min((done + under_way) / standing.settings.trials, 1.0)


def seconds_left(standing: Standing) -> float | None:
    """An estimate; ``None`` where no trial runs, and while none is over and none has been read."""
    running = [one for one in standing.trials if one.state == "running"]
    if not running:
        return None
    to_come = standing.settings.trials - sum(one.state in DONE for one in standing.trials) - len(running)
    each = _seconds_each(standing)
    work = each and max(to_come, 0) * each + sum(max(each - one.seconds, 0.1 * each) for one in running)
    return _within_budget(standing, work and work / len(running))


def clock(seconds: float) -> str:
    """``1:05``, or ``2:01:05`` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _seconds_each(standing: Standing) -> float | None:
    """Of a trial that is over, on average; before one is, of a whole one at the pace of those that run."""
    over = [one.seconds for one in standing.trials if one.state in DONE and one.seconds]
    if not over:
        over = [one.seconds * standing.total / one.records for one in standing.trials if one.records and one.seconds]
    return sum(over) / len(over) if over else None


def _within_budget(standing: Standing, left: float | None) -> float | None:
    budget = standing.settings.time_budget_seconds
    if budget is None:
        return left
    rest = max(budget - standing.seconds, 0.0)
    return rest if left is None else min(left, rest)
