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
from streamkd.hookspecs import VERSIONS, Group, Kind, Options, SourceKind

GROUP = "streamkd"
ODD: dict[Group, str] = {"losses": "loss", "policies": "policy", "rows": "rows"}
SINGULAR: dict[Group, str] = {group: ODD.get(group, group[:-1]) for group in get_args(Group)}
# Keys that a choice in the configuration keeps for itself: an option of that name would never be filled.
RESERVED: dict[Group, tuple[str, ...]] = {
    "teachers": ("name", "id", "isolate"),
    "rows": ("name", "id"),
    "losses": ("name", "weight", "gate"),
}
# What distributions of ours bring, to name them where they are missing.
BROUGHT: dict[Group, dict[str, str]] = {
    "gates": dict.fromkeys(("confidence", "hedge", "per-class", "scalar"), "streamkd-baselines"),
    "losses": {
        "attention-transfer": "streamkd-vision",
        **dict.fromkeys(("attention", "decoupled-kd", "feature", "kd"), "streamkd-baselines"),
        **dict.fromkeys(("match-gate-literal", "match-gate-mixture", "relational"), "streamkd-baselines"),
    },
    "observers": {"mlflow": "streamkd-mlflow"},
    "optimizers": {"learned": "streamkd-baselines"},
    "rows": {"text-joined": "streamkd-text"},
    "students": {
        "sound": "streamkd-crossmodal",
        "vision-features": "streamkd-vision",
        **dict.fromkeys(("text-encoder", "text-ngrams"), "streamkd-text"),
    },
    "teachers": {"river": "streamkd-river", "torchvision": "streamkd-vision"},
}
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
        self._kinds: dict[Group, dict[str, tuple[Kind, str]]] = {group: {} for group in get_args(Group)}
        self._distributions: dict[str, str] = {}
        self._statuses: list[PluginStatus] = []

    @classmethod
    def load(cls, only: Iterable[str] | None = None) -> "Registry":
        """All entry points of the group, or those named ``only`` (a process that needs one source)."""
        registry = cls()
        wanted = None if only is None else set(only)
        found = [entry for entry in entry_points(group=GROUP) if wanted is None or entry.name in wanted]
        # each look at a name or a version parses the whole of a distribution's metadata: one for all its entry points
        named = {dist: (dist.name, dist.version) if dist else ("?", "?") for dist in {entry.dist for entry in found}}
        # the built-ins first
        for entry in sorted(found, key=lambda e: (not e.value.startswith("streamkd."), e.name, named[e.dist])):
            registry._load_entry(entry, *named[entry.dist])
        return registry

    def _load_entry(self, entry: EntryPoint, distribution: str, version: str) -> None:
        try:
            kinds = self.register(entry.load(), entry.name, distribution)
            status = PluginStatus(entry.name, distribution, version, tuple(kinds))
        except (Exception, SystemExit) as fault:  # noqa: BLE001 - a plugin is a stranger's code: it hurts only itself
            logger.warning("plugin %s of %s %s is off: %r", entry.name, distribution, version, fault)
            said = f"{type(fault).__name__}: {fault}"
            status = PluginStatus(entry.name, distribution, version, (), said, traceback.format_exc())
        self._statuses.append(status)

    def register(self, plugin: Any, name: str, distribution: str = "") -> list[str]:
        """Take the kinds of one plugin object, all or none; returns them as ``group/name``.

        Raises:
            PluginError: a hook is misspelt or unmarked, raises, yields something else than kinds, or a name is taken.
        """
        where = f"plugin {name}" + (f" of {distribution}" if distribution else "")
        hooks = _hooks_of(plugin, name, where)
        brought = [(group, kind) for group in self._kinds for kind in _yielded(hooks, group, where)]
        if not brought:
            known = ", ".join(f"streamkd_{group}" for group in self._kinds)
            raise PluginError("brings nothing", where=where, fix=f"mark one of {known} with @hookimpl")
        for group, kind in brought:
            self._refuse_taken(group, kind, where, brought)
        for group, kind in brought:
            self._kinds[group][kind.name] = (kind, name)
            self._distributions[f"{group}/{kind.name}"] = where
        return [f"{group}/{kind.name}" for group, kind in brought]

    def _refuse_taken(self, group: Group, kind: Kind, where: str, brought: list[tuple[Group, Kind]]) -> None:
        other = self._distributions.get(f"{group}/{kind.name}")
        if sum(g == group and k.name == kind.name for g, k in brought) > 1:
            raise PluginError(f"{group}/{kind.name} is brought twice", where=where, fix="give one another name")
        if other:
            raise PluginError(
                f"{group}/{kind.name} is brought by both {other} and {where}",
                where=where,
                fix="give one of them another name, or uninstall one",
            )

    def names(self, group: Group) -> list[str]:
        """The names that the configuration can pick from."""
        return sorted(self._kinds[group])

    def kind(self, group: Group, name: str, where: str = "") -> Kind:
        """The kind of that name.

        Raises:
            PluginError: unknown; named are the distribution of ours that brings it, or the known and the nearest, and
                the broken plugins.
        """
        if name in self._kinds[group]:
            return self._kinds[group][name][0]
        broken = [f"{s.name} ({s.error})" for s in self._statuses if s.error]
        fix = self._way_to(group, name)
        if broken:
            fix += f"; plugins that did not load: {'; '.join(broken)}"
        raise PluginError(f"there is no {SINGULAR[group]} {name!r}", where=where or group, fix=fix)

    def _way_to(self, group: Group, name: str) -> str:
        if distribution := BROUGHT.get(group, {}).get(name):
            return f"{distribution} brings it: pip install {distribution} (plugins/{distribution} of the sources)"
        near = difflib.get_close_matches(name, self.names(group), 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        return f"{guess}known {group}: {', '.join(self.names(group)) or 'none'}"

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


def _hooks_of(plugin: Any, name: str, where: str) -> pluggy.PluginManager:
    """A manager with this plugin alone, so that one call asks nobody else."""
    known = [f"streamkd_{group}" for group in get_args(Group)]
    found = {hook: getattr(plugin, hook, None) for hook in known}
    unmarked = [hook for hook, function in found.items() if function and not getattr(function, "streamkd_impl", None)]
    if unmarked:
        raise PluginError(f"{unmarked[0]} is not marked", where=where, fix="put @streamkd.api.hookimpl above it")
    manager = pluggy.PluginManager("streamkd")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name)
        manager.check_pending()
    except pluggy.PluginValidationError as fault:
        seen = [hook for hook in dir(plugin) if hook.startswith("streamkd") and hook not in known]
        near = difflib.get_close_matches(seen[0], known, 1) if seen else []
        fix = (f"did you mean {near[0]!r}? " if near else "") + f"hooks take no argument: {', '.join(known)}"
        raise PluginError(str(fault), where=where, fix=fix) from None
    return manager


def _yielded(hooks: pluggy.PluginManager, group: Group, where: str) -> list[Kind]:
    """What one hook of the plugin yields, each checked to be what the configuration can pick."""
    needed, at = SourceKind if group == "sources" else Kind, f"{where}, hook streamkd_{group}"
    try:
        kinds = [kind for result in getattr(hooks.hook, f"streamkd_{group}")() for kind in result]
    except Exception as fault:
        raise PluginError(f"raised {type(fault).__name__}: {fault}", where=at) from fault
    for kind in kinds:
        if not isinstance(kind, needed):
            raise PluginError(f"needed streamkd.api.{needed.__name__}, got {kind!r}", where=at)
        _refuse_malformed(kind, group, at)
    return kinds


def _refuse_malformed(kind: Kind, group: Group, at: str) -> None:
    if not isinstance(kind.name, str) or not kind.name.strip():
        raise PluginError(f"needed a name, got {kind.name!r}", where=at)
    if not callable(kind.make):
        raise PluginError(f"needed a callable `make`, got {kind.make!r}", where=f"{at}, {kind.name}")
    if not isinstance(kind.options, type) or not issubclass(kind.options, Options):
        raise PluginError(
            f"needed a subclass of streamkd.api.Options, got {kind.options!r}", where=f"{at}, {kind.name}"
        )
    for key in RESERVED.get(group, ("name",)):
        if key in kind.options.model_fields:
            raise PluginError(
                f"the option {key!r} can never be filled: the configuration keeps that key for itself",
                where=f"{at}, {kind.name}",
                fix="give the option another name",
            )
    _check_version(kind, VERSIONS[group], f"{at}, {kind.name}")


def _check_version(kind: Kind, known: int, at: str) -> None:
    if kind.hook_version > known:
        raise PluginError(
            f"it is written for version {kind.hook_version} of the hook, this streamkd knows up to {known}",
            where=at,
            fix="upgrade streamkd, or install an older release of the plugin",
        )
    if kind.hook_version < known:
        logger.warning("%s: it is written for version %d of the hook, this is %d", at, kind.hook_version, known)
