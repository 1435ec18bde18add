"""The page on gates says what is: every gate, every option with its default, and YAML that is taken as it stands."""

import re
from pathlib import Path

import pytest
import yaml

from streamkd import config
from streamkd.plugins import Registry

PAGE = (Path(__file__).parents[2] / "docs/reference/gates.md").read_text()
REGISTRY = Registry.load()
GATES = ["fixed", "likelihood", "per-sample"]


def _table(name: str) -> dict[str, str]:
    """Option and default of each row of the gate's table."""
    [rows] = re.findall(rf"^\|[^|\n]*`{name}`[^|\n]*\| default \| meaning \|\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.M)
    return dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", rows, re.M))


@pytest.mark.parametrize("name", GATES)
def test_a_gates_options_stand_there_with_their_defaults(name: str) -> None:
    """As their class has them, none missing and none too many."""
    options = REGISTRY.kind("gates", name).options()
    assert {option: yaml.safe_load(default) for option, default in _table(name).items()} == options.model_dump()


def test_every_gate_stands_in_the_first_table() -> None:
    """The built-in ones; a plugin's may be installed beside them."""
    rows = re.findall(r"^\| `([a-z-]+)` \| .* \| .* \| .* \|$", PAGE, re.M)
    assert sorted(rows) == GATES


def test_who_adapts_is_who_has_parameters() -> None:
    """The last column of the first table says nothing exactly where there is nothing to move."""
    for name, moved in re.findall(r"^\| `([a-z-]+)` \| .* \| .* \| (.*) \|$", PAGE, re.M):
        kind = REGISTRY.kind("gates", name)
        assert bool(list(kind.make(kind.options()).parameters())) == (moved != "nothing"), name


def test_its_yaml_is_part_of_a_configuration() -> None:
    """Blocks are taken as they stand, beside a stream; those of `adapt` are the defaults."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    assert len(blocks) >= len(GATES)
    stream = {"source": {"name": "replay", "dataset": "digits"}}
    for block in blocks:
        read = config.from_tree({"stream": stream, **yaml.safe_load(block)}, REGISTRY)
        if "adapt" in block:
            assert read.adapt == config.Adapt()
