"""A part by its choice: what a configuration names, built by the plugin that brings it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from streamkd import config as configuration
from streamkd.choices import Choice
from streamkd.errors import PluginError, StreamkdError
from streamkd.hookspecs import Group
from streamkd.plugins import Registry


def make(registry: Registry, path: str, group: Group, choice: Choice, *arguments: Any) -> Any:
    """What a choice of the configuration stands for; ``path`` is where it stands, for errors.

    Raises:
        PluginError: there is no such plugin, or it fails to build its part.
    """
    options = configuration.options(registry, path, group, choice)
    with named(path, choice):
        return registry.kind(group, choice.name, path).make(options, *arguments)


def make_all(registry: Registry, group: Group, choices: Sequence[Choice]) -> list[tuple[str, Any]]:
    """Name and part of every choice in a list of the configuration."""
    return [(choice.name, make(registry, f"{group}.{index}", group, choice)) for index, choice in enumerate(choices)]


@contextmanager
def named(path: str, choice: Choice) -> Iterator[None]:
    """Whatever a plugin raises becomes an error that names it: the configuration asked for it, so it is fatal."""
    try:
        yield
    except StreamkdError:
        raise
    except Exception as fault:  # a plugin is a stranger's code
        said = f"{choice.name!r} cannot be built: {type(fault).__name__}: {fault}"
        raise PluginError(said, where=path, fix="see its options and its files, or name another") from fault
