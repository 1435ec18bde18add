"""Searches as a driver leaves them, made up: every state, conditional and categorical parameters, whole readings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamkd import config as configuration
from streamkd.plugins import Registry
from streamkd.tune.record import State
from streamkd.tune.settings import Settings
from streamkd.tune.space.domains import Categorical, Interval, Parameter
from streamkd.tune.space.space import Space
from streamkd.tune.study import Asked, Study

REGISTRY = Registry.load()
TOTAL = 9000
CONFIG = configuration.from_tree(
    {
        "name": "toy",
        "stream": {"source": {"name": "replay", "dataset": "digits", "classes_per_task": 2}},
        "losses": [{"name": "match-gate", "temperature": 2.0}],
    },
    REGISTRY,
)
SPACE = Space(
    (
        Parameter("optimizer.learning_rate", Interval(1e-4, 1e-1, log=True)),
        Parameter("adapt.every", Categorical((5, 10, 20, 40)), integer=True),
        Parameter("losses.match-gate.temperature", Interval(1.0, 6.0)),
        Parameter("memory.replay", Interval(10, 120), integer=True),
        Parameter("memory.policy.name", Categorical(("reservoir", "class-balanced"))),
        Parameter("optimizer.name", Categorical(("adam", "adamw", "sgd"))),
        Parameter("optimizer.momentum", Interval(0.0, 0.95), when={"optimizer.name": ("sgd",)}),
        Parameter("vicinal.rows", Interval(0, 240, 60), integer=True),
    )
)
REASONS = (
    "crash: the process ended by SIGSEGV",
    "hang: learned nothing for 300 s",
    "nan: the loss after 1230 records is nan",
    "memory: the process was killed (SIGKILL)",
)


def header(**more: Any) -> dict[str, Any]:
    """What a search is begun with."""
    told = {"name": "toy", "config": configuration.dump(CONFIG), "space": SPACE.to_json(), "settings": {"trials": 16}}
    told |= {"objectives": {"accuracy": "max"}, "seeds": [100, 101, 102], "total": TOTAL, "directory": "/here"}
    return told | {"command": "streamkd tune toy.yaml", "validation": {"records": 2000, "given": 8000}} | more


def search(place: Path, count: int, objectives: dict[str, str] | None = None, **more: Any) -> Study:
    """A search of so many trials in a place; every seventh fails, low ones are pruned, the last one is running."""
    named = objectives or {"accuracy": "max"}
    study = Study.create(place, header(objectives=named, settings={"trials": count}, **more))
    settings, dice = (
        Settings(trials=max(count, 1), sampler="random", objectives=tuple(named)),
        np.random.default_rng(count),
    )
    for number in range(count):
        asked = study.ask(SPACE, settings, CONFIG, REGISTRY)
        assert asked is not None
        made(study, asked, dice, number == count - 1, tuple(named))
    return study


def made(study: Study, asked: Asked, dice: np.random.Generator, last: bool, objectives: tuple[str, ...]) -> None:
    """A trial whose accuracy hangs on its rate, with its readings as far as it came."""
    off = abs(np.log10(asked.values["optimizer.learning_rate"]) + 2.6)
    height = 0.86 - 0.05 * off + 0.02 * (asked.values["memory.policy.name"] == "class-balanced") + dice.normal(0, 0.004)
    state: State = "finished" if height > 0.82 or asked.number == 0 else "pruned"
    state = "failed" if asked.number % 7 == 5 else "running" if last else state
    end = {"finished": 9, "pruned": 3 if height > 0.8 else 1, "failed": 1, "running": 4}[state]
    for part in range(1, end + 1):
        study.read(asked, part, reading(TOTAL * part // 9, height, dice, objectives), prune=False)
    if state != "running":
        study.end(asked, state, REASONS[asked.number // 7 % len(REASONS)] if state == "failed" else "")


def put(study: Study, values: dict[str, Any], state: State, *readings: dict[str, Any], reason: str = "") -> None:
    """A trial with these values, whatever the space is."""
    taken = {one.number for one in study.trials()}
    study._enqueue(min(set(range(len(taken) + 1)) - taken), values, Space(()))
    asked = study.ask(Space(()), Settings(trials=1_000), CONFIG, REGISTRY)
    assert asked is not None
    for step, one in enumerate(readings, 1):
        study.read(asked, step, one, prune=False)
    if state != "running":
        study.end(asked, state, reason)


def read_as(accuracy: Sequence[float], records: int = TOTAL) -> dict[str, Any]:
    """A reading with these figures of the seeds."""
    mean = float(np.mean(accuracy))
    per_seed = {"accuracy": [*accuracy]}
    return {"records": records, "objectives": {"accuracy": mean}, "per_seed": per_seed, "seconds": 1.5}


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
        "curve": curve,
        "seconds": records / 2000,
    }
