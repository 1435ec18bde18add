"""Where a dotted path leads in a configuration, and a configuration with other values there.

    Config ─► Draft ─► value(path) | put(path, value) | leave_out(path) ─► config()

A path goes into a list by position, or by the id or name of what stands there (``teachers.ema.decay``). Options that a
plugin has and the configuration does not write are there too, with their defaults.
"""

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import ValidationError

from streamkd import config as configuration
from streamkd.config import Choice, Config
from streamkd.document import Document
from streamkd.errors import ConfigError, PluginError
from streamkd.hookspecs import Group
from streamkd.plugins import RESERVED, Registry
from streamkd.search.domains import Value, same

Keys: TypeAlias = tuple[str | int, ...]


class Draft:
    """A configuration that is being changed."""

    def __init__(self, config: Config, registry: Registry) -> None:
        self._registry = registry
        self._tree = configuration.dump(config)
        self._look(config)
        self._begun = self._full

    def _look(self, config: Config) -> None:
        """What the tree is with every plugin's options in it, and where its plugins stand."""
        self._plugins = {_keys(path): group for path, group, _ in config.choices()}
        self._full = configuration.dump(config)
        for path, group, choice in config.choices():
            _at(self._full, _keys(path)).update(_options(self._registry, path, group, choice))

    def keys(self, path: str) -> Keys:
        """The place of a path; a plugin whose name has changed is still found by the name that it began with.

        Raises:
            ConfigError: there is no such place; the nearest key and the known ones are named.
        """
        try:
            return _find(self._full, path.split("."), path)
        except ConfigError:
            begun = _anchored(self._begun, path.split("."))
            if begun == path.split("."):
                raise
            return _find(self._full, begun, path)

    def value(self, path: str) -> Value:
        """What stands at a path now."""
        return _at(self._full, self.keys(path))

    def put(self, path: str, value: Value) -> None:
        """Another value; another plugin takes none of the options that were written for the one before it."""
        keys = self.keys(path)
        if same(_at(self._full, keys), value):
            return
        if keys[-1] == "name" and (group := self._plugins.get(keys[:-1])):
            plugin, own = _at(self._tree, keys[:-1]), RESERVED.get(group, ())
            for key in [key for key in plugin if key not in own]:
                del plugin[key]
        _at(self._tree, keys[:-1])[keys[-1]] = copy.deepcopy(value)
        if keys[-1] == "name" or isinstance(value, list | dict):
            self._look(Document(self._tree).check(Config))

    def leave_out(self, path: str) -> None:
        """Nothing is written there: the key has its default."""
        keys = self.keys(path)
        node = _at(self._tree, keys[:-1])
        if isinstance(node, dict):
            node.pop(keys[-1], None)

    def config(self) -> Config:
        """The configuration, checked; ``value`` then says what it made of what was put there.

        Raises:
            ConfigError: a value that is refused.
        """
        config = configuration.from_tree(self._tree, self._registry)
        self._look(config)
        return config


def _options(registry: Registry, path: str, group: Group, choice: Choice) -> dict[str, Any]:
    """What a plugin would take; of options that do not fit (yet), what is written and the defaults."""
    try:
        options = registry.kind(group, choice.name, path).options
    except PluginError as fault:
        raise ConfigError(fault.message, where=f"{path}.name", fix=fault.fix) from None
    try:
        return options.model_validate(choice.values).model_dump(mode="json")
    except ValidationError:
        fields = options.model_fields.items()
        unwritten = {name: field.get_default(call_default_factory=True) for name, field in fields}
        return {**{name: None if unwritten[name] is ... else unwritten[name] for name in unwritten}, **choice.values}


def _keys(path: str) -> Keys:
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))


def _at(tree: Any, keys: Keys) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _find(tree: Any, parts: Sequence[str], path: str) -> Keys:
    keys: list[str | int] = []
    for part in parts:
        key = _key(tree, part)
        if key is None:
            raise _unknown(tree, part, ".".join(map(str, keys)), path)
        keys.append(key)
        tree = tree[key]
    return tuple(keys)


def _key(tree: Any, part: str) -> str | int | None:
    """What a part of a path is in this node; ``None``: nothing."""
    if isinstance(tree, list):
        return _position(tree, part)
    return part if isinstance(tree, Mapping) and part in tree else None


def _position(items: Sequence[Any], part: str) -> int | None:
    """The one element of that position, id or name."""
    if part.isdigit():
        return int(part) if int(part) < len(items) else None
    found = [index for index, item in enumerate(items) if _called(item) == part]
    return found[0] if len(found) == 1 else None


def _called(item: Any) -> str:
    return (item.get("id") or item.get("name") or "") if isinstance(item, Mapping) else ""


def _anchored(tree: Any, parts: Sequence[str]) -> list[str]:
    """The parts, with positions for names as far as the path can be followed."""
    followed: list[str] = []
    for index, part in enumerate(parts):
        key = _key(tree, part)
        if key is None:
            return [*followed, *parts[index:]]
        followed.append(str(key))
        tree = tree[key]
    return followed


def _unknown(tree: Any, part: str, above: str, path: str) -> ConfigError:
    if isinstance(tree, list):
        known = [_called(item) for item in tree if _called(item)]
        twice = known.count(part) > 1
        known += [str(index) for index in range(len(tree))]
        message = f"{known.count(part)} of {above} go by the name {part!r}" if twice else f"unknown entry {part!r}"
    elif isinstance(tree, Mapping):
        known, message = sorted(map(str, tree)), f"unknown key {part!r}"
    else:
        return ConfigError(f"there is nothing below {above!r}, which is {tree!r:.40}", where=path)
    near = [] if part in known else difflib.get_close_matches(part, known, 1)
    fix = (f"did you mean {near[0]!r}? " if near else "") + f"known in {above or 'the configuration'}: "
    return ConfigError(message, where=path, fix=fix + ", ".join(known))
