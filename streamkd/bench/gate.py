"""``streamkd bench gate``: the default gate beside fixed weights and other gates, in pools where a gate has to decide.

    scenarios × policies × seeds ─► run_one, each kept in a file as soon as it is there ─► figures, table, plots

Figures are final average accuracies, means over the seeds: ``<scenario>.<policy>`` of the student,
``<scenario>.served.<policy>`` of the moving average; ``..._std`` beside each. ``best-fixed`` is the best setting of the
grid on these very test records, an upper bar that is found afterwards; ``best-single`` the best that hears one teacher
alone. ``average.<policy>`` is over the scenarios; ``average.best-setting`` is the one fixed setting that is best on
average, where ``average.best-fixed`` may be another in each.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamkd import config as configuration
from streamkd.bench import book, documents, policies, scenarios, scores, streams, upkeep
from streamkd.bench.book import Progress, Row
from streamkd.bench.scores import Table
from streamkd.cores import compute_on
from streamkd.run import run_seed

SIDES = ("student", "served")
FOUND = ("best-fixed", "best-single")
STREAM = "split-mnist-5k"
Values = dict[str, dict[str, list[float]]]
"""By scenario and policy, a value for each seed."""


@dataclass(frozen=True)
class GateRun:
    """One run. ``chosen_on``: on records to choose by."""

    scenario: str
    policy: str
    seed: int
    stream: str = STREAM
    chosen_on: bool = False


def measure(
    only: Sequence[str],
    names: Sequence[str],
    seeds: Sequence[int],
    work: Path,
    *,
    stream: str = STREAM,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Every policy in every scenario under every seed; runs that ``work`` holds already are not done again.

    Raises:
        ConfigError: a scenario, policy or stream that there is not. PluginError: a policy's gate is not installed.
        SourceError: the stream's data is not here.
    """
    for what, asked, known in (
        ("scenario", only, scenarios.NAMES),
        ("policy", names, policies.POLICIES),
        ("stream", [stream], streams.STREAMS),
    ):
        book.require_known(what, asked, known, "bench gate")
    policies.require_gates(names)
    tasks = [
        GateRun(scenario, policy, seed, stream)
        for scenario in only
        for policy in policies.policies_of(scenario)
        if policy in names
        for seed in seeds
    ]
    results = book.run_all([(_key(task), task) for task in tasks], run_one, work / "gate.jsonl", jobs, progress)
    rows = [
        {"scenario": task.scenario, "policy": task.policy, "seed": task.seed, **row}
        for task, row in zip(tasks, results, strict=True)
    ]
    best = {side: {name: best_fixed(each) for name, each in _values(rows, side).items()} for side in SIDES}
    return book.result("gate", rows, figures=figures(rows), best=best, stream=stream, seeds=list(seeds))


def timed(result: dict[str, Any], progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """A result of ``measure`` with what the gate costs on its stream: two figures more, and ``timing``."""
    costs, timing = upkeep.measure(result["stream"], progress=progress)
    return {**result, "figures": {**result["figures"], **costs}, "timing": timing}


def run_one(task: GateRun) -> Row:
    """One run, on one thread: the final average accuracies, the gate's part of the time by its own count, seconds."""
    compute_on(1)
    made = _tree(task)
    registry = scenarios.registry_for(made, task.seed)
    begun = time.perf_counter()
    report = run_seed(streams.config_of(made, registry, task.seed), registry)
    accuracies = {side: report[side]["accuracy"]["final_average"] for side in SIDES}
    return {
        **accuracies,
        "overhead_ratio": report["gate"]["overhead_ratio"],
        "seconds": time.perf_counter() - begun,
    }


def _tree(task: GateRun) -> streams.Tree:
    """The average is served, so that no other model of the pool answers for it."""
    made = scenarios.tree(task.scenario, task.stream, task.chosen_on)
    return {**policies.under(made, task.policy), "publish": {"model": "ema"}}


def _key(task: GateRun) -> str:
    """A run by everything that decides it but the code; two policies that are the same gate are one run."""
    made = configuration.dump(configuration.from_tree({**_tree(task), "seed": task.seed}))
    return book.key_of(task.stream, task.chosen_on, made)


def _values(rows: Sequence[Row], side: str) -> Values:
    """The accuracies of one side, seeds in the order of the rows."""
    found: Values = {}
    for row in rows:
        found.setdefault(row["scenario"], {}).setdefault(row["policy"], []).append(row[side])
    return found


def best_fixed(values: Mapping[str, Sequence[float]], among: Sequence[str] = tuple(policies.FIXED)) -> str | None:
    """The setting with the highest mean among those that were run."""
    return max((name for name in among if name in values), key=lambda name: statistics.mean(values[name]), default=None)


def _with_best(values: Values) -> Values:
    """And the settings that are found afterwards, under names of their own."""
    found: Values = {}
    for scenario, each in values.items():
        pairs = ((FOUND[0], best_fixed(each)), (FOUND[1], best_fixed(each, policies.singles(scenario))))
        found[scenario] = {**each, **{name: each[best] for name, best in pairs if best is not None}}
    return found


def _average(values: Values) -> dict[str, list[float]]:
    """Over the scenarios, of what was run in all of them: a value for each seed."""
    parts = list(values.values())
    shared = [name for name in (parts[0] if parts else ()) if all(name in each for each in parts)]
    found = {name: [statistics.mean(s) for s in zip(*(each[name] for each in parts), strict=True)] for name in shared}
    best = best_fixed(found)
    return {**found, **({"best-setting": found[best]} if best is not None else {})}


def by_scenario(rows: Sequence[Row], side: str) -> Values:
    """The accuracies of one side, with the best of each scenario, and their average."""
    values = _with_best(_values(rows, side))
    return {**values, "average": _average(values)}


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Means over the seeds under the names that documents quote, sample deviations beside them."""
    return scores.named(
        {
            f"{scenario}{middle}.{policy}": values
            for side, middle in zip(SIDES, ("", ".served"), strict=True)
            for scenario, each in by_scenario(rows, side).items()
            for policy, values in each.items()
        }
    )


def table(rows: Sequence[Row], side: str) -> Table:
    """A scenario across and their average, a policy down; ours first, then what was found afterwards."""
    down = [policies.DEFAULT, *FOUND, "best-setting", *policies.POLICIES[1:]]
    return scores.table(f"final average accuracy, {side}", by_scenario(rows, side), down, "")


def panels(rows: Sequence[Row]) -> Values:
    """Students' accuracies for ``plots``, by scenario and policy; of the default gate the served model's too."""
    found = by_scenario(rows, "student")
    for scenario, each in by_scenario(rows, "served").items():
        mine = {"student": found[scenario].pop(policies.DEFAULT, []), "served": each.get(policies.DEFAULT, [])}
        found[scenario] |= {f"streamkd, {side}": values for side, values in mine.items() if values}
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The result as it stands in docs/explanation/gate.md: tables of both sides, settings, the gate's costs."""
    parts = []
    for side in SIDES:
        parts.append(documents.table(*table(result["rows"], side)))
        best = [f"{scenario} `{name}`" for scenario, name in result["best"][side].items() if name is not None]
        parts += [f"The best fixed settings, {side}: {', '.join(best)}."] if best else []
    costs = {name: value for name, value in result["figures"].items() if name.startswith("gate.")}
    parts += [", ".join(f"`{name}` {value:.3f}" for name, value in costs.items()) + "."] if costs else []
    return "\n\n".join(parts)
