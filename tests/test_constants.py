"""The page of constants is the code's: every number that decides learning stands there, with its value."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reference/constants.md").read_text("utf-8")
ROOMS = (
    "students",
    "gates",
    "losses",
    "replay",
    "teachers",
    "analytic",
    "learning",
    "meta",
    "avalanche",
    "pretraining",
)
NAMES_ONLY = {"meta/artefact.SCHEMA", "meta/maml.SHARED", "avalanche/plugin.SLOTS"}  # a format, a key, and none
Found = dict[str, ast.expr]


def constants() -> Found:
    """Numbers, and tuples of them, that a module of the learning rooms names."""
    return {
        f"{path.relative_to(ROOT / 'streamkd').with_suffix('')}.{name}": value
        for room in ROOMS
        for path in (ROOT / "streamkd" / room).glob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.Assign)
        for name, value in _named(node)
        if name.isupper() and any(_is_number(part) for part in ast.walk(value))
    }


def _named(node: ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    target = node.targets[0]
    if isinstance(target, ast.Name):
        yield target.id, node.value
    elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        yield from zip((each.id for each in target.elts if isinstance(each, ast.Name)), node.value.elts, strict=True)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def rows() -> dict[str, str]:
    """What the page has, by constant."""
    return dict(re.findall(r"^\| `([a-z_/]+\.[A-Z_]+)` \| `(.+?)` \| .+ \| .+ \|$", PAGE, re.M))


def test_every_constant_stands_on_the_page_with_its_value() -> None:
    """None is missing, none too many, none of another value."""
    found = {name: ast.unparse(value) for name, value in constants().items() if name not in NAMES_ONLY}
    told = {name: ast.unparse(ast.parse(value, mode="eval").body) for name, value in rows().items()}
    assert told == found
    assert len(told) > 60
