"""Names: no two public classes of the package go by one."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "streamkd"


def test_no_two_public_classes_have_one_name() -> None:
    """Whoever reads a name in an error or a type knows which class it is."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted({*PACKAGE.rglob("*.py")} - {*PACKAGE.glob("scaffold/kinds/*.py")}):  # those are named by authors
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
    assert len(places) > 300
