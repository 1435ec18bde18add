"""What may change while a stream runs, and what may not: the rates do, the structure does not.

    saved configuration, new one ─► refuse_structural ─► resumed_as ─► the learner restores, the new rates in effect

Numbers that every step reads anew may change: those of the sections below, and of plugins the options that are whole
or broken numbers by type ``float``. Names, sizes, lists and switches of plugins are structure.
"""

from collections.abc import Iterator
from typing import Any, get_args

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import StateConflict
from streamkd.plugins import Registry

FREE = ("name", "threads", "optimizer", "adapt", "vicinity", "pool", "publish", "checkpoint", "serve", "observers")
KEPT = ("optimizer.name", "adapt.engine", "adapt.first_order", "adapt.temperature", "pool.limit")


def changed(saved: Config, now: Config, registry: Registry) -> Iterator[tuple[str, Any, Any]]:
    """Dotted path, value before and value now of everything that differs, plugins' defaults filled in."""
    before, after = (dict(_leaves(_resolved(config, registry))) for config in (saved, now))
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) != after.get(path):
            yield path, before.get(path), after.get(path)


def may_change(path: str, config: Config, registry: Registry) -> bool:
    """Whether a running stream can take up another value at that place of its configuration."""
    if path in KEPT:
        return False
    section, *rest = path.split(".")
    if section in FREE or path == "memory.replay" or (section == "losses" and rest[1:] == ["weight"]):
        return True
    for place, group, choice in config.choices():
        if path.rpartition(".")[0] == place and group in ("gates", "losses", "teachers"):
            field = registry.kind(group, choice.name, place).options.model_fields.get(rest[-1])
            return field is not None and float in (field.annotation, *get_args(field.annotation))
    return False


def refuse_structural(saved: Config, now: Config, registry: Registry) -> None:
    """Whether a trial of the one configuration can go on under the other.

    Raises:
        StateConflict: the path that cannot change, and both values.
    """
    for path, before, after in changed(saved, now, registry):
        if not may_change(path, now, registry):
            raise StateConflict(
                f"a running stream was begun with {before}, and cannot go on with {after}",
                where=path,
                fix="begin a trial of its own, or leave this path out of what may change on the way",
            )


def resumed_as(saved: Config, now: Config) -> Config:
    """The saved configuration as the learner should see it: gates and losses of another floor or temperature are still
    the same ones, with what they have learned; nothing has changed that it would warn of.
    """
    rates = ("optimizer", "adapt", "vicinity", "pool", "gate", "losses", "teachers")
    return saved.model_copy(update={name: getattr(now, name) for name in rates})


def temperature_of(config: Config, registry: Registry) -> float | None:
    """The configured temperature that an adapted one begins at: that of the first loss that counts and has one."""
    for index, choice in enumerate(config.losses):
        options = configuration.options(registry, f"losses.{index}", "losses", choice)
        if choice.weight and (found := getattr(options, "temperature", None)) is not None:
            return float(found)
    return None


def _resolved(config: Config, registry: Registry) -> dict[str, Any]:
    """The tree with every option of every plugin, whether written or not."""
    tree = configuration.dump(config)
    for path, group, choice in config.choices():
        if group in ("sources", "observers"):
            continue
        node = tree
        for step in path.split("."):
            node = node[int(step)] if isinstance(node, list) else node[step]
        node |= configuration.options(registry, path, group, choice).model_dump(mode="json")
    return tree


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything below; lists of plugins are walked, those of numbers are values."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and node and all(isinstance(item, dict) and "name" in item for item in node):
        for place, value in enumerate(node):
            yield from _leaves(value, f"{path}.{place}")
    else:
        yield path, node
