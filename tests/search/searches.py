"""Searches as a driver leaves them, made up: every state, conditional and categorical parameters, whole readings."""

from pathlib import Path
from typing import Any

import numpy as np

from streamkd import config as configuration
from streamkd.plugins import Registry
from streamkd.search.ledger import Ledger, TrialRecord
from streamkd.search.space import Choice, LogUniform, Parameter, Space, Uniform

REGISTRY = Registry.load()
TOTAL = 9000
CONFIG: dict[str, Any] = {
    "name": "toy",
    "stream": {"source": {"name": "replay", "dataset": "digits", "classes_per_task": 2}},
    "losses": [{"name": "match-gate", "temperature": 2.0}],
}
SPACE = Space(
    (
        Parameter("optimizer.learning_rate", LogUniform(1e-4, 1e-1)),
        Parameter("adapt.learning_rate", LogUniform(1e-5, 1e-1)),
        Parameter("adapt.every", Choice((5, 10, 20, 40)), integer=True),
        Parameter("losses.match-gate.temperature", Uniform(1.0, 6.0)),
        Parameter("memory.replay", Uniform(10, 120), integer=True),
        Parameter("memory.policy", Choice(("reservoir", "class-balanced"))),
        Parameter("optimizer.name", Choice(("adam", "adamw", "sgd"))),
        Parameter("optimizer.momentum", Uniform(0.0, 0.95), when={"optimizer.name": ("sgd",)}),
        Parameter("vicinal.rows", Uniform(0, 120), integer=True),
    )
)
REASONS = (
    "crash: the process was ended by signal 11 (SIGSEGV)",
    "hang: no record learned for 300 s",
    "nan: the loss is not finite after 1230 records of seed 101",
    "memory: needed more than 2,147,483,648 bytes",
)


def search(place: Path, count: int, objectives: dict[str, str] | None = None, **header: Any) -> Ledger:
    """A search of so many trials in a place; every seventh fails, low ones are pruned, the last one is running."""
    named = objectives or {"accuracy": "max"}
    config = configuration.dump(configuration.from_tree(CONFIG, REGISTRY))
    told = {
        "name": "toy",
        "config": config,
        "space": SPACE.to_json(),
        "settings": {"trials": count},
        "objectives": named,
    }
    told |= {"seeds": [100, 101, 102], "total": TOTAL, "command": "streamkd tune toy.yaml --trials 16"}
    ledger = Ledger.create(place, told | header)
    dice = np.random.default_rng(count)
    default = SPACE.values_of(configuration.from_tree(CONFIG, REGISTRY), REGISTRY)
    for number in range(count):
        ledger.write(made(number, default if number == 0 else SPACE.sample(dice), dice, count, tuple(named)))
    return ledger


def made(number: int, values: Any, dice: np.random.Generator, count: int, objectives: tuple[str, ...]) -> TrialRecord:
    """A trial whose accuracy hangs on its rates, with its readings as far as it came."""
    off = abs(np.log10(values["optimizer.learning_rate"]) + 2.6) + 0.3 * abs(
        np.log10(values["adapt.learning_rate"]) + 3
    )
    height = 0.86 - 0.05 * off + 0.02 * (values["memory.policy"] == "class-balanced") + dice.normal(0, 0.004)
    state: Any = "finished" if height > 0.82 or number == 0 else "pruned"
    state = "failed" if number % 7 == 5 else "running" if number == count - 1 else state
    end = {"finished": 9, "pruned": 3 if height > 0.8 else 1, "failed": 1, "running": 4}[state]
    readings = tuple(reading(TOTAL * part // 9, height, dice, objectives) for part in range(1, end + 1))
    reason = REASONS[number // 7 % len(REASONS)] if state == "failed" else ""
    return TrialRecord(number, values, state, readings, reason, 3.5 * end, "worker 1", begun_at=1e9 + number)


def reading(records: int, height: float, dice: np.random.Generator, objectives: tuple[str, ...]) -> dict[str, Any]:
    """What a trial says after so many records; three seeds."""
    seeds = [float(height + 0.1 * np.exp(-records / 3000) + dice.normal(0, 0.003)) for _ in range(3)]
    forgotten = [0.3 - 0.25 * s + 0.02 * float(dice.random()) for s in seeds]
    figures = {name: seeds if index == 0 else forgotten for index, name in enumerate(objectives)}
    curve = [(at, height + 0.1 * np.exp(-at / 3000) + 0.004 * np.sin(at / 400)) for at in range(300, records + 1, 300)]
    return {
        "records": records,
        "objectives": {name: float(np.mean(each)) for name, each in figures.items()},
        "per_seed": figures,
        "seeds": [100, 101, 102],
        "accuracy": float(np.mean(seeds)),
        "curve": curve,
        "seconds": records / 2000,
    }
