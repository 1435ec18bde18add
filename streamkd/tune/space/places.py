"""Where a dotted path leads in a configuration, and a configuration with other values there.

A path goes into a list by position, or by the id or name of what stands there (``teachers.ema.decay``). Options that a
plugin has and the configuration does not write are there too, with their defaults.
"""

import copy
import difflib
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import ConfigError
from streamkd.plugins import RESERVED, Registry
from streamkd.tune.space.domains import Value, same

INSTEAD = {"memory.size": "memory.bytes", "memory.bytes": "memory.size"}  # one decides, and both are refused

Keys: TypeAlias = tuple[str | int, ...]


class Places:
    """The places of a configuration."""

    def __init__(self, config: Config, registry: Registry) -> None:
        self._registry = registry
        self._tree, self._full = configuration.dump(config), configuration.dump(config)
        self._plugins = {keys_of(path): group for path, group, _ in config.choices()}
        for path, group, choice in config.choices():
            options = configuration.options(registry, path, group, choice)
            node_at(self._full, keys_of(path)).update(options.model_dump(mode="json"))

    def keys(self, path: str) -> Keys:
        """The place of a path, as far as there is one now; what is below a plugin's name may come with another name.

        Raises:
            ConfigError: a list has no such entry; the known ones are named.
        """
        keys: list[str | int] = []
        node: Any = self._full
        for part in path.split("."):
            key: Any = _entry(node, part, path) if isinstance(node, list) else part
            node = node[key] if isinstance(node, list) else node.get(key) if isinstance(node, Mapping) else None
            keys.append(key)
        return tuple(keys)

    def value(self, path: str) -> Value:
        """What stands at a path.

        Raises:
            ConfigError: nothing does; the nearest key and the known ones are named.
        """
        keys: Any = self.keys(path)
        node: Any = self._full
        for at, key in enumerate(keys):
            if not isinstance(node, Mapping | list):
                raise ConfigError(f"there is nothing below {'.'.join(map(str, keys[:at]))!r}", where=path)
            if isinstance(node, Mapping) and key not in node:
                above = ".".join(map(str, keys[:at])) or "the configuration"
                raise ConfigError(f"unknown key {key!r}", where=path, fix=_near(key, [*node], above))
            node = node[key]
        return node

    def changed(self, values: Mapping[str, Value], without: Collection[str] = ()) -> Config:
        """The configuration with other values, and nothing written at the places ``without``: they have their defaults.

        Another plugin takes none of the options that were written for the one before it.

        Raises:
            ConfigError: a place or a value that is refused.
        """
        tree, renamed = copy.deepcopy(self._tree), set()
        for path in without:
            keys = self.keys(path)
            node_at(tree, keys[:-1]).pop(keys[-1], None)
        for path in sorted(values, key=_parents_first):
            keys = self.keys(path)
            if keys[:-1] not in renamed and same(_found(self._full, keys), values[path]):
                continue  # as it stands, and not written where it was not
            parent, group = node_at(tree, keys[:-1]), self._plugins.get(keys[:-1])
            if keys[-1] == "name" and group:
                renamed.add(keys[:-1])
                for key in parent.keys() - set(RESERVED.get(group, ())):
                    del parent[key]
            parent[keys[-1]] = copy.deepcopy(values[path])
            if (other := INSTEAD.get(path)) is not None and other not in values:
                parent[other.rpartition(".")[2]] = None
        return configuration.from_tree(tree, self._registry)


def _parents_first(path: str) -> tuple[int, bool, str]:
    """What stands higher before what is in it, the name of a plugin before its options."""
    return path.count("."), not path.endswith("name"), path


def keys_of(path: str) -> Keys:
    """The keys of a path that has positions alone."""
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))


def node_at(tree: Any, keys: Any) -> Any:
    """What stands there in a plain tree; mappings that are missing on the way are made.

    Raises:
        ConfigError: something else stands on the way.
    """
    for key in keys:
        if not isinstance(tree, dict | list):
            raise ConfigError("there is nothing below it", where=".".join(map(str, keys)))
        tree = tree.setdefault(key, {}) if isinstance(tree, dict) else tree[key]
    return tree


def _found(tree: Any, keys: Any) -> Value:
    """What stands there; ``None`` where nothing does."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else tree[key] if isinstance(tree, list) else None
    return tree


def _entry(items: list[Any], part: str, path: str) -> int:
    """The one element of that position, id or name."""
    if part.isdigit() and int(part) < len(items):
        return int(part)
    names = [item.get("id") or item.get("name") or "" if isinstance(item, Mapping) else "" for item in items]
    if names.count(part) == 1:
        return names.index(part)
    known = [*filter(None, names), *map(str, range(len(items)))]
    what = f"{names.count(part)} go by the name {part!r}" if part in names else f"unknown entry {part!r}"
    raise ConfigError(what, where=path, fix=_near(part, known, "the list"))


def _near(part: Any, known: list[str], above: str) -> str:
    near = [] if part in known else difflib.get_close_matches(str(part), known, 1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known in {above}: {', '.join(sorted(known))}"
