"""What the next trial is given: asked of Optuna, drawn, or the next point of a grid. The only door to Optuna.

    number, trials so far ─► propose ─► values of the space, or ``None``: there is nothing left to try

Nothing is kept between two questions: what is proposed depends on the seed, the number and what the ledger has to
say, so a search that goes on asks as one that was never stopped. Trial 0 is the configuration as it stands and is
never asked for. Called by ``search.driver``, for every engine.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from streamkd.errors import ConfigError
from streamkd.search.domains import Choice, LogUniform, Parameter, Uniform, same
from streamkd.search.ledger import DONE, TrialRecord
from streamkd.search.settings import Settings
from streamkd.search.space import Space, Values

GRID = 20_000
"""Most points of a grid: more than anybody runs, and all are put in order before the first one."""
STARTUP = (4, 10)
"""Optuna draws so many trials at random before it models: a third of all, between these."""


def propose(
    space: Space, settings: Settings, directions: Mapping[str, str], number: int, trials: Sequence[TrialRecord]
) -> Values | None:
    """The values of trial ``number``, from 1 on; ``directions``: "max" or "min" of each objective, in order.

    Raises:
        ConfigError: the grid has more points than anybody runs.
    """
    if not space.parameters:
        return None
    if settings.sampler == "random":
        return space.sample(np.random.default_rng([settings.seed, number]))
    if settings.sampler == "grid":
        return next(islice(_grid(space, settings), number - 1, None), None)
    return _suggested(space, settings, directions, number, trials)


def _grid(space: Space, settings: Settings) -> Iterator[Values]:
    """The finest grid that the trials suffice for; of one that is larger at its coarsest, a part in random order."""
    coarsest = _count(space, 2)
    if coarsest > GRID:
        raise ConfigError(
            f"a grid of two points a dimension has more than {GRID} points",
            where="--search grid",
            fix="give a smaller --space, or use --search optuna",
        )
    asked, points = settings.trials - 1, 2
    while _count(space, points) < _count(space, points + 1) <= asked:
        points += 1
    found = list(islice(space.grid(points), GRID))
    if len(found) <= asked:
        return iter(found)
    return (found[at] for at in np.random.default_rng(settings.seed).permutation(len(found)))


def _count(space: Space, points: int) -> int:
    return sum(1 for _ in islice(space.grid(points), GRID + 1))


def _suggested(
    space: Space, settings: Settings, directions: Mapping[str, str], number: int, trials: Sequence[TrialRecord]
) -> Values:
    """Optuna's tree-structured Parzen estimator, told all other trials anew."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = min(max(settings.trials // 3, STARTUP[0]), STARTUP[1])
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True),
        directions=["maximize" if way == "max" else "minimize" for way in directions.values()],
    )
    study.add_trials([_known(space, directions, one) for one in trials if one.number != number])
    return _asked(space, study.ask())


def _asked(space: Space, trial: Any) -> Values:
    """Each parameter whose condition holds among those before it."""
    values: dict[str, Any] = {}
    for parameter in space.parameters:
        if _active(parameter, values):
            values[parameter.path] = _value(parameter, _suggest(trial, parameter))
    return values


def _suggest(trial: Any, parameter: Parameter) -> Any:
    about = _distribution(parameter)
    if isinstance(parameter.domain, Choice):
        return trial.suggest_categorical(parameter.path, about.choices)
    ask = trial.suggest_int if _step(parameter) else trial.suggest_float
    return ask(parameter.path, about.low, about.high, log=about.log)


def _active(parameter: Parameter, values: Values) -> bool:
    return all(
        path in values and any(same(values[path], one) for one in allowed) for path, allowed in parameter.when.items()
    )


def _known(space: Space, directions: Mapping[str, str], record: TrialRecord) -> Any:
    """A trial of the ledger as Optuna keeps it: finished, pruned at a reading, failed (the worst), or under way."""
    from optuna.trial import TrialState, create_trial

    given = [(one, _place(one, record.values[one.path])) for one in space.parameters if one.path in record.values]
    inside = [(one, place) for one, place in given if place is not None]
    about: dict[str, Any] = {
        "params": {one.path: place for one, place in inside},
        "distributions": {one.path: _distribution(one) for one, _ in inside},
    }
    figures = [value for name in directions if (value := record.objective(name)) is not None]
    if record.state == "finished" and len(figures) == len(directions):
        return create_trial(state=TrialState.COMPLETE, values=figures, **about)
    if record.state in DONE:
        state = _ended(len(directions))
        return create_trial(state=state, intermediate_values=_readings(record, directions), **about)
    return create_trial(state=TrialState.RUNNING, **about)


def _ended(objectives: int) -> Any:
    """Optuna compares pruned trials by their readings; with two objectives it cannot, and leaves them out."""
    from optuna.trial import TrialState

    return TrialState.PRUNED if objectives == 1 else TrialState.FAIL


def _readings(record: TrialRecord, directions: Mapping[str, str]) -> dict[int, float]:
    """The leading objective at each reading; none of a failed trial, which is then the worst."""
    leading = next(iter(directions))
    if record.state == "failed":
        return {}
    read = {int(one["records"]): one["objectives"].get(leading) for one in record.readings}
    return {records: float(value) for records, value in read.items() if value is not None}


def _distribution(parameter: Parameter) -> Any:
    """Optuna's word for a domain: places of a choice, whole steps of an interval, or the interval itself."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    domain = parameter.domain
    if isinstance(domain, Choice):
        return CategoricalDistribution(tuple(range(len(domain.values))))
    if step := _step(parameter):
        return IntDistribution(0, math.floor((domain.high - domain.low) / step + 1e-9))
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _step(parameter: Parameter) -> float | None:
    """The step of what Optuna is told as whole steps; in the logarithm it draws from all, and the nearest is taken."""
    domain = parameter.domain
    return domain.step or (1 if parameter.integer else None) if isinstance(domain, Uniform) else None


def _value(parameter: Parameter, suggested: Any) -> Any:
    domain = parameter.domain
    if isinstance(domain, Choice):
        return domain.values[suggested]
    step = _step(parameter)
    return parameter.nearest(domain.low + suggested * step if step else suggested)


def _place(parameter: Parameter, value: Any) -> Any:
    """The reverse of ``_value``; ``None`` for a value outside the domain, which only trial 0 may have."""
    domain = parameter.domain
    if isinstance(domain, Choice):
        return next((at for at, one in enumerate(domain.values) if same(one, value)), None)
    if not parameter.contains(value):
        return None
    step = _step(parameter)
    return round((value - domain.low) / step) if step else float(value)
