"""What a search leaves for people and programs, written from its study: as often as one likes, also half-way.

    Outcome ─┬► best.yaml        the configuration that is taken; `serve` and `run` take it as it is
             ├► front.yaml       two objectives: the front, and a configuration each in front/
             └► report.html

Each file is there whole or not at all. Called by ``streamkd.tune.search``.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.state.directory import sync
from streamkd.tune.record import TrialRecord
from streamkd.tune.results import outcome, summary
from streamkd.tune.results.outcome import Outcome
from streamkd.tune.results.page import page
from streamkd.tune.space.places import Keys, keys_of, node_at
from streamkd.tune.space.space import Space
from streamkd.tune.study import Study, in_words

BEST, FRONT, PAGE = "best.yaml", "front.yaml", "report.html"


def write(study: Study, space: Space, config: Config, registry: Registry) -> Outcome:
    """Write all of them; returns what they tell. Without a finished trial there is no best.yaml.

    Raises:
        StateError: the place cannot be written.
    """
    found = outcome.read(study)

    def configured(one: TrialRecord, *comments: str) -> bytes:
        applied = space.apply(config, one.values, registry) if one.number else config
        moved = rooted(applied, registry, Path(found.header["directory"]))
        return written(moved, [*_comments(found, one), *comments]).encode()

    files = {PAGE: page(found, space).encode()}
    if found.decision is not None:
        files[BEST] = configured(found.decision.taken, summary.sentence(found))
    if len(found.objectives) > 1:
        files[FRONT] = _front(found).encode()
        files |= {_front_file(one): configured(one) for one in found.front}
    for name, content in files.items():
        _put(study.place / name, content)
    return found


def _comments(found: Outcome, one: TrialRecord) -> list[str]:
    """Where a configuration comes from."""
    figures = [f"{name} {value:.4f}" for name in found.objectives if (value := one.objective(name)) is not None]
    return [
        f"Trial {one.number} of the search {found.header.get('name')}: {', '.join(figures)} on seeds "
        f"{', '.join(map(str, found.seeds))}",
        *(f"  {path}: {value}" for path, value in one.values.items()),
        f"command: {found.header.get('command', '')}",
    ]


def _front_file(one: TrialRecord) -> str:
    return f"front/{one.number:05}.yaml"


def _front(found: Outcome) -> str:
    import yaml

    rows = [
        {
            "trial": one.number,
            "objectives": {name: one.objective(name) for name in found.objectives},
            "values": dict(one.values),
            "config": _front_file(one),
        }
        for one in found.front
    ]
    head = (
        "# The trials that no other one beats in one objective without losing in the other; best first by the first.\n"
    )
    return head + yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=120)


def written(config: Config, comments: Sequence[str]) -> str:
    """A configuration as a YAML file with lines on top; ``config.load`` gives it back."""
    import yaml

    clean = ("".join(sign if sign.isprintable() else " " for sign in line) for line in comments)
    head = "".join(f"# {line}\n" for line in clean)
    return head + yaml.safe_dump(configuration.dump(config), sort_keys=False, allow_unicode=True, width=120)


def rooted(config: Config, registry: Registry, directory: Path) -> Config:
    """The configuration with every relative path, also of plugins, seen from ``directory``: it can be moved."""
    tree = configuration.dump(config)
    found = [*_paths(config)]
    for at, group, choice in config.choices():
        found += _paths(configuration.options(registry, at, group, choice), keys_of(at))
    for keys, path in found:
        node_at(tree, keys[:-1])[keys[-1]] = str(directory / path)
    share = config.share
    if share is not None and share.teacher not in {teacher.key for teacher in config.teachers}:
        tree["share"]["teacher"] = str(directory / share.teacher)
    return configuration.from_tree(tree, registry)


def _paths(part: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Path]]:
    """Every path below a checked model; what only looks like one is left alone."""
    if isinstance(part, Path):
        yield keys, part
        return
    below: Iterable[tuple[Any, Any]] = ()
    if isinstance(part, BaseModel):
        below = ((name, getattr(part, name)) for name in type(part).model_fields)
    elif isinstance(part, Mapping):
        below = part.items()
    elif isinstance(part, list | tuple):
        below = enumerate(part)
    for key, value in below:
        yield from _paths(value, (*keys, key))


def _put(path: Path, content: bytes) -> None:
    """The file under another name, then renamed."""
    with in_words(path, "a file that can be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_bytes(content)
        sync(beside)
        beside.replace(path)
        sync(path.parent)
