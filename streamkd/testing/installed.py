"""The contracts of what is installed: every kind that plugins bring, held to the check of its hook, and timed.

``streamkd plugins check`` shows it. Kinds whose options need a value (a path, say) cannot be built by themselves; their
own tests hold them to their contract, as streamkd's tests do with what is built in.
"""

import time
from dataclasses import dataclass

from pydantic import ValidationError

from streamkd.errors import PluginError
from streamkd.hookspecs import Group, Kind
from streamkd.plugins import SINGULAR, PluginStatus, Registry
from streamkd.testing import ContractBroken, check

OURS = "streamkd"
KEPT, BROKEN, OPEN = "keeps its contract", "is broken", "needs options: not checked"


@dataclass(frozen=True)
class Verdict:
    """Of a kind, or of an entry point that brings none: ``fault`` is empty where nothing is wrong."""

    kind: str
    name: str
    distribution: str
    seconds: float
    verdict: str
    fault: str = ""


def checked(distribution: str | None = None) -> list[Verdict]:
    """Every kind of a plugin, by its distribution's or its entry point's name; of all of them without one.

    Raises:
        PluginError: nothing of that name is installed.
    """
    registry = Registry.load()
    plugins = [status for status in registry.report() if status.distribution != OURS]
    statuses = [s for s in plugins if distribution in (None, s.distribution, s.name)]
    if distribution is not None and not statuses:
        known = ", ".join(sorted({status.distribution for status in plugins})) or "none"
        fix = f"installed are: {known}; pip install it into this Python"
        raise PluginError(f"there is no plugin {distribution!r}", where="plugins", fix=fix)
    return [verdict for status in statuses for verdict in _verdicts(registry, status)]


def _verdicts(registry: Registry, status: PluginStatus) -> list[Verdict]:
    told = f"{status.distribution} {status.version}"
    if status.error:
        return [Verdict("plugin", status.name, told, 0.0, BROKEN, f"{status.name} of {told} is off: {status.error}")]
    found = []
    for brought in status.kinds:
        group, _, name = brought.partition("/")
        found.append(_verdict(group, registry.kind(group, name), told))  # type: ignore[arg-type]
    return found


def _verdict(group: Group, kind: Kind, told: str) -> Verdict:
    begun = time.perf_counter()
    verdict, fault = KEPT, ""
    try:
        check(group, kind, kind.options())
    except ValidationError:
        verdict = OPEN
    except ContractBroken as broken:
        verdict, fault = BROKEN, str(broken)
    return Verdict(SINGULAR[group], kind.name, told, time.perf_counter() - begun, verdict, fault)
