"""The registry as it is where streamkd-baselines is installed, whether it is or not: a third party's gates and losses
for tests that want any gate, or a loss that reads layers.
"""

import tomllib
from importlib import import_module
from pathlib import Path

from streamkd.plugins import Registry

FOLDER = Path(__file__).parent.parent / "plugins" / "streamkd-baselines"
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text("utf-8"))["project"]
MODULES: dict[str, str] = PROJECT["entry-points"]["streamkd"]


_load = Registry.load  # as it was before a test puts this in its place


def with_baselines() -> Registry:
    """What is installed, and those modules of the distribution that are not."""
    registry = _load()
    there = {status.name for status in registry.report() if status.distribution == PROJECT["name"]}
    for name, module in MODULES.items():
        if name not in there:
            registry.register(import_module(module), name, PROJECT["name"])
    return registry


REGISTRY = with_baselines()
