"""What ``streamkd bench learning`` sets beside our learner: by name, with its settings and the grid that chose them.

    peers     Avalanche's strategies (``streamkd.bench.peers``)
    gates     our own learner with its defaults, but another gate or another pool
    bounds    the same network in a plain loop without a stream's order: i.i.d. in one pass, jointly in twenty

``CHOSEN`` are what did best on split-mnist-5k, on class orders of seeds 100 and 101 and on training records
that the reported runs never test on::

    streamkd bench learning --choose --only split-mnist-5k
"""

from itertools import product
from typing import Any

from streamkd.bench import peers
from streamkd.bench.streams import Tree
from streamkd.config import Config

Settings = dict[str, Any]
OURS = "streamkd"
EPOCHS = {"iid": 1, "joint": 20}
GATES = ("one-ema", "ca-mkd", "uniform", "best-single-teacher", "best-fixed")
BASELINES = (*peers.STRATEGIES, *GATES, *EPOCHS)
CHOSEN_ON = (100, 101)

_RATES: list[Settings] = [
    {"optimizer": "sgd", "learning_rate": 0.05},
    {"optimizer": "adam", "learning_rate": 0.001},
    {"optimizer": "adam", "learning_rate": 0.003},
]
_HARD = (0.3, 0.5, 0.7)
WITNESSES = ("last-label", "linear", "crossed", "forgetting", "former")


def default_teachers() -> list[str]:
    """The teachers of a configuration that names none, without those that speak of the present alone."""
    return [choice.name for choice in Config.model_fields["teachers"].default if choice.name not in WITNESSES]


def grid(name: str) -> list[Settings]:
    """The settings that a baseline may choose from; one entry means that there is nothing to choose."""
    everyone = default_teachers()
    replays = [{"replay": count} for count in (10, 60)]
    match name:
        case "replay" | "er-ace":
            return _cross(_RATES, replays)
        case "der" | "der-balanced":
            return _cross(_RATES, replays, [{"alpha": alpha, "beta": 0.5} for alpha in (0.1, 0.5)])
        case "lwf":
            return _cross(_RATES, [{"alpha": 1.0}])
        case "ewc":
            return _cross(_RATES, [{"strength": 1.0}])
        case "lamaml":
            return _cross(_RATES[:1], replays, [{"alpha": alpha} for alpha in (0.03, 0.1)])
        case "one-ema":
            return [{"hard": hard} for hard in _HARD]
        case "best-single-teacher":
            return [{"hard": hard, "teachers": [teacher]} for hard, teacher in product(_HARD, everyone)]
        case "best-fixed":
            pools = [everyone, *([t] for t in everyone), *([t for t in everyone if t != out] for out in everyone)]
            return [{"hard": hard, "teachers": pool} for hard, pool in product(_HARD, pools)]
        case "ca-mkd" | "uniform":
            return [{}]
    return list(_RATES)


def _cross(*lists: list[Settings]) -> list[Settings]:
    """One of each list, merged."""
    return [{key: value for part in parts for key, value in part.items()} for parts in product(*lists)]


def gated(tree: Tree, name: str, settings: Settings) -> Tree:
    """A stream's tree with the gate and pool of one of ``GATES``; everything else as ours has it."""
    match name:
        case "one-ema":
            return tree | {"teachers": [{"name": "ema"}], "gate": {"name": "fixed", "hard": settings["hard"]}}
        case "ca-mkd":
            return tree | {"gate": {"name": "confidence"}}
        case "uniform":  # the label is one source among the teachers
            return tree | {"gate": {"name": "fixed", "hard": 1 / (1 + len(default_teachers()))}}
    teachers = [{"name": teacher} for teacher in settings["teachers"]]
    return tree | {"teachers": teachers, "gate": {"name": "fixed", "hard": settings["hard"]}}


_SGD: Settings = {"optimizer": "sgd", "learning_rate": 0.05}
_ADAM: Settings = {"optimizer": "adam", "learning_rate": 0.001}
CHOSEN: dict[str, Settings] = {
    "fine-tuning": _SGD,
    "replay": {**_ADAM, "replay": 60},
    "er-ace": {**_ADAM, "replay": 60},
    "der": {**_SGD, "replay": 60, "alpha": 0.5, "beta": 0.5},
    "der-balanced": {**_SGD, "replay": 60, "alpha": 0.5, "beta": 0.5},
    "lwf": {**_SGD, "alpha": 1.0},
    "ewc": {**_SGD, "strength": 1.0},
    "lamaml": {**_SGD, "replay": 10, "alpha": 0.03},
    # fixed gates: to be chosen again whenever the default teachers change
    "one-ema": {"hard": 0.5},
    "ca-mkd": {},
    "uniform": {},
    "best-single-teacher": {"hard": 0.7, "teachers": ["analytic"]},
    "best-fixed": {"hard": 0.7, "teachers": ["ema", "analytic", "snapshot"]},
    "iid": _ADAM,
    "joint": _ADAM,
}
