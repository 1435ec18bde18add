"""The policies of ``streamkd bench gate``: what the default gate is set beside, each a change of the configuration.

    gate             the default configuration's gate
    uniform          fixed: the label is one source among the teachers
    likelihood       another gate with its defaults
    ca-mkd, scalar, per-class, hedge       gates of streamkd-baselines, with theirs
    adapted-never    per-sample, as it begins
    hard-only        fixed: no teacher is heard
    fixed-H-WHO      fixed: H for the label, the rest evenly among WHO; of rows drawn without label WHO has all

The grid of fixed gates is the same in every scenario, so that a setting has an average over them. ``outside`` hears
whoever stands beside the base pool; where nobody does it is not run. A teacher without weight stays in the pool, so
that what is served, and what a step costs, is the same under every policy.
"""

from collections.abc import Iterable
from itertools import product

from streamkd.bench.scenarios import BASE, scenarios
from streamkd.bench.streams import Tree
from streamkd.plugins import Registry

DEFAULT = "gate"
HARD = (0.3, 0.5)
_NAMES = [teacher["name"] for teacher in BASE]
WHO: dict[str, Tree] = {
    "all": {},
    "base": {"teachers": dict.fromkeys(_NAMES, 1.0), "others": 0.0},
    "ema": {"teachers": {"ema": 1.0}, "others": 0.0},
    "memory": {"teachers": {"memory": 1.0}, "others": 0.0},
    "outside": {"teachers": dict.fromkeys(_NAMES, 0.0)},
}
_SETTINGS = (*product(HARD, WHO), (1.0, "all"), (1.0, "base"))
HARD_ONLY = "hard-only"
FIXED: dict[str, Tree] = {
    **{f"fixed-{hard}-{who}": {"name": "fixed", "hard": hard, **WHO[who]} for hard, who in _SETTINGS},
    HARD_ONLY: {"name": "fixed", "hard": 1.0, "others": 0.0},
}
GATES: dict[str, Tree] = {
    "ca-mkd": {"name": "confidence"},
    "likelihood": {"name": "likelihood"},
    "scalar": {"name": "scalar"},
    "per-class": {"name": "per-class"},
    "hedge": {"name": "hedge"},
}
NEVER = "adapted-never"
POLICIES = (DEFAULT, "uniform", *GATES, NEVER, *FIXED)


def require_gates(names: Iterable[str]) -> None:
    """Nothing, where the gates of these policies are all here.

    Raises:
        PluginError: one is not; the distribution that brings it is named.
    """
    registry = Registry.load()
    for name in names:
        registry.kind("gates", GATES.get(name, {"name": "fixed"})["name"], f"policy {name}")


def policies_of(scenario: str) -> tuple[str, ...]:
    """The policies that make sense in a scenario."""
    alone = not scenarios(1)[scenario]
    return tuple(name for name in POLICIES if not (alone and name.endswith("-outside")))


def singles(scenario: str) -> tuple[str, ...]:
    """The settings of the grid that hear one teacher alone."""
    beside = scenarios(2)[scenario]
    who = ("ema", "memory", *(["outside"] if len(beside) == 1 and beside[0]["name"] == "outside" else []))
    return tuple(f"fixed-{hard}-{one}" for hard, one in product(HARD, who))


def under(made: Tree, policy: str) -> Tree:
    """A scenario's configuration with the gate of a policy."""
    if policy == DEFAULT:
        return made
    if policy == NEVER:
        return {**made, "gate": {"name": "per-sample"}, "adapt": {"every": 0, "on_task_steps": 0}}
    if policy == "uniform":
        return {**made, "gate": {"name": "fixed", "hard": 1 / (1 + len(made["teachers"]))}}
    if len(made["teachers"]) == len(BASE):
        policy = policy.replace("-base", "-all")  # the same, and so one run
    return {**made, "gate": (GATES | FIXED)[policy]}
