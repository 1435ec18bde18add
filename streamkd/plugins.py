"""The registry: every kind that can be named in a configuration, from built-ins and plugins alike.

``Registry.load()`` loads each entry point of the group ``streamkd`` guarded: one that fails is kept in
``report()`` with its error and leaves the others alone. Asking for a kind that a broken entry point
might have brought says so.
"""

import difflib
import logging
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

import pluggy

from streamkd import hookspecs
from streamkd.errors import PluginError
from streamkd.hookspecs import Group, Kind

GROUP = "streamkd"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginStatus:
    """One entry point: where it comes from, what it brought, or why it is broken."""

    name: str
    distribution: str
    version: str
    kinds: tuple[str, ...] = ()
    error: str = ""
    details: str = field(default="", repr=False)


class Registry:
    """Kinds by group and name."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("streamkd")
        self._manager.add_hookspecs(hookspecs)
        self._kinds: dict[Group, dict[str, tuple[Kind, str]]] = {group: {} for group in get_args(Group)}
        self._statuses: list[PluginStatus] = []

    @classmethod
    def load(cls, only: Iterable[str] | None = None) -> "Registry":
        """All entry points of the group, or those named ``only`` (a process that needs one source)."""
        registry = cls()
        wanted = None if only is None else set(only)
        for entry in sorted(entry_points(group=GROUP), key=lambda e: (not e.value.startswith("streamkd."), e.name)):
            if wanted is None or entry.name in wanted:
                registry._load_entry(entry)
        return registry

    def _load_entry(self, entry: EntryPoint) -> None:
        distribution = entry.dist.name if entry.dist else "?"
        version = entry.dist.version if entry.dist else "?"
        try:
            kinds = self.register(entry.load(), entry.name)
            status = PluginStatus(entry.name, distribution, version, tuple(kinds))
        except Exception as fault:  # a plugin is a stranger's code: it hurts only itself
            logger.warning("plugin %s of %s %s is off: %r", entry.name, distribution, version, fault)
            said = f"{type(fault).__name__}: {fault}"
            status = PluginStatus(entry.name, distribution, version, (), said, traceback.format_exc())
        self._statuses.append(status)

    def register(self, plugin: Any, name: str) -> list[str]:
        """Take the kinds of one plugin object, all or none; returns them as ``group/name``.

        Raises:
            PluginError: a hook is misspelt, yields no ``Kind``, raises, or a name is taken.
        """
        self._manager.register(plugin, name)
        try:
            self._manager.check_pending()
            brought = [(group, kind) for group in self._kinds for kind in self._call(plugin, group, name)]
            if not brought:
                hooks = ", ".join(f"streamkd_{group}" for group in self._kinds)
                raise PluginError("brings nothing", where=f"plugin {name}", fix=f"mark one of {hooks} with @hookimpl")
            for group, kind in brought:
                self._refuse_taken(group, kind, name, brought)
        except BaseException:
            self._manager.unregister(plugin)
            raise
        for group, kind in brought:
            self._kinds[group][kind.name] = (kind, name)
        return [f"{group}/{kind.name}" for group, kind in brought]

    def _call(self, plugin: Any, group: Group, name: str) -> list[Kind]:
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        caller = self._manager.subset_hook_caller(f"streamkd_{group}", others)
        kinds = [kind for result in caller() for kind in result]
        for kind in kinds:
            if not isinstance(kind, Kind):
                raise PluginError(
                    f"needed streamkd.hookspecs.Kind, got {kind!r}", where=f"plugin {name}, hook streamkd_{group}"
                )
        return kinds

    def _refuse_taken(self, group: Group, kind: Kind, name: str, brought: list[tuple[Group, Kind]]) -> None:
        taken = self._kinds[group].get(kind.name)
        if taken or sum(g == group and k.name == kind.name for g, k in brought) > 1:
            other = taken[1] if taken else name
            raise PluginError(
                f"{group}/{kind.name} is brought by both {other} and {name}",
                where=f"plugin {name}",
                fix="give one of them another name, or uninstall one",
            )

    def names(self, group: Group) -> list[str]:
        """The names that the configuration can pick from."""
        return sorted(self._kinds[group])

    def kind(self, group: Group, name: str, where: str = "") -> Kind:
        """The kind of that name.

        Raises:
            PluginError: unknown; the known and the nearest are named, and the broken plugins.
        """
        if name in self._kinds[group]:
            return self._kinds[group][name][0]
        near = difflib.get_close_matches(name, self.names(group), 1)
        broken = [f"{s.name} ({s.error})" for s in self._statuses if s.error]
        fix = f"did you mean {near[0]!r}? " if near else ""
        fix += f"known {group}: {', '.join(self.names(group)) or 'none'}"
        if broken:
            fix += f"; plugins that did not load: {'; '.join(broken)}"
        raise PluginError(f"there is no {group.rstrip('s')} {name!r}", where=where or group, fix=fix)

    def origin(self, group: Group, name: str) -> str:
        """The entry point that brought a kind."""
        self.kind(group, name)
        return self._kinds[group][name][1]

    def options(self, group: Group, name: str, values: dict[str, Any], where: str = "") -> hookspecs.Options:
        """The kind's options, checked.

        Raises:
            PluginError: unknown kind. pydantic.ValidationError: values that its options refuse.
        """
        return self.kind(group, name, where).options.model_validate(values)

    def report(self) -> list[PluginStatus]:
        """Every entry point that was found, healthy or not."""
        return list(self._statuses)

