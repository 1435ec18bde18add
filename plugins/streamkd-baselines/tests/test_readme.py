"""The README says what is: every kind, every option with its default, and YAML that is taken as it stands."""

import re
from pathlib import Path

import pytest
import yaml
from baselines import MODULES, REGISTRY

from streamkd import config
from streamkd.api import Group

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
GROUPS: tuple[Group, ...] = ("gates", "losses", "optimizers")
HEADINGS = {"gates": "## Gates", "losses": "## Losses", "optimizers": "## Optimiser"}
KINDS = [(group, name) for group in GROUPS for name in REGISTRY.names(group) if REGISTRY.origin(group, name) in MODULES]


def _told(name: str) -> dict[str, str]:
    """Option and default of each row of the tables that are headed by the kind's name."""
    tables = re.findall(rf"^\|[^|\n]*`{name}`[^|\n]*\| default \| meaning \|\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.M)
    return {
        option: default
        for rows in tables
        for option, default in re.findall(r"^\| `(\w+)` \| `?(.*?)`? ?\|", rows, re.M)
    }


@pytest.mark.parametrize(("group", "name"), KINDS, ids=["/".join(kind) for kind in KINDS])
def test_its_options_stand_there_with_their_defaults(group: Group, name: str) -> None:
    """As their class has them, none missing and none too many; one that must be given has no default."""
    fields = REGISTRY.kind(group, name).options.model_fields
    wanted = {option: None if field.is_required() else field.default for option, field in fields.items()}
    assert {option: yaml.safe_load(default) for option, default in _told(name).items()} == wanted


@pytest.mark.parametrize(("group", "name"), KINDS, ids=["/".join(kind) for kind in KINDS])
def test_it_stands_in_the_first_table_of_its_group(group: Group, name: str) -> None:
    """With what it goes by, or its formula."""
    section = README.partition(HEADINGS[group])[2].partition("\n## ")[0]
    assert re.search(rf"^\| `{name}` \| .{{30,}} \|$", section, re.M)


def test_who_adapts_is_who_has_parameters() -> None:
    """The last column says nothing exactly where there is nothing to move."""
    rows = re.findall(r"^\| `([a-z-]+)` \| .* \| .* \| (.*) \|$", README.partition("## Losses")[0], re.M)
    assert len(rows) == 4
    for name, moved in rows:
        kind = REGISTRY.kind("gates", name)
        assert bool(list(kind.make(kind.options()).parameters())) == (moved != "nothing"), name


def test_its_yaml_is_part_of_a_configuration() -> None:
    """Blocks are taken as they stand, beside a stream."""
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.S)
    assert len(blocks) == 5
    for block in blocks:
        tree = {"stream": {"source": {"name": "replay", "dataset": "digits"}}, **yaml.safe_load(block)}
        config.from_tree(tree, REGISTRY)
