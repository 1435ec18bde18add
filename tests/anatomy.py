"""What a package looks like from outside, beside others: ``make anatomy``.

    python tests/anatomy.py streamkd:tests:plugins pluggy httpx      # SOURCE[:TESTS...], a folder or a package's name

Lines are all lines of a file. A function is as long as its body without the docstring. A circle is a set of modules
that import one another when they are loaded. Files named test* and folders named tests count as tests.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import networkx

HEAD = ("package", "modules", "lines", "module p50/p90/max", "functions p50/p90", "circles", "Any/1000", "tests/source")


@dataclass(frozen=True)
class Module:
    """One file of source."""

    name: str
    text: str
    tree: ast.Module
    package: bool

    @property
    def lines(self) -> int:
        return self.text.count("\n")


def modules(root: Path) -> list[Module]:
    """All of a package but its tests, by dotted names that begin with the folder's."""
    found = []
    for file in sorted(root.rglob("*.py")):
        if not _is_test(file.relative_to(root)):
            text = file.read_text("utf-8")
            parts = file.relative_to(root.parent).with_suffix("").parts
            package = parts[-1] == "__init__"
            found.append(Module(".".join(parts[: -1 if package else None]), text, ast.parse(text), package))
    return found


def functions(module: Module) -> Iterator[int]:
    """The length of each body, without docstring."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            yield (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def circles(found: list[Module]) -> list[set[str]]:
    """Modules that import one another when they are loaded."""
    names = {module.name for module in found}
    graph = networkx.DiGraph([(m.name, to) for m in found for to in _imports(m, names) if to != m.name])
    return [circle for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]


def _imports(module: Module, names: set[str]) -> Iterator[str]:
    waiting: list[ast.stmt] = list(module.tree.body)
    for node in waiting:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            above = module.name.split(".")[: None if module.package else -1]
            base = above[: len(above) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield from (name for name in (inner if inner in names else source,) if name in names)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            for part in ("body", "orelse", "handlers", "finalbody"):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    waiting += getattr(node, part, [])


def row(source: str, *tests: str) -> tuple[str, ...]:
    """The figures of a package, as the table shows them."""
    root = folder(source)
    found = modules(root)
    lines, bodies = sorted(m.lines for m in found), sorted(length for m in found for length in functions(m))
    anys = sum(len(re.findall(r"\bAny\b", m.text)) for m in found)
    tested = sum(_lines(file) for file in root.rglob("*.py") if _is_test(file.relative_to(root)))
    tested += sum(_lines(f) for name in tests for f in Path(name).rglob("*.py") if _is_test(f.relative_to(name), name))
    return (
        root.name,
        str(len(found)),
        str(sum(lines)),
        f"{part(lines, 0.5)} / {part(lines, 0.9)} / {lines[-1]}",
        f"{part(bodies, 0.5)} / {part(bodies, 0.9)}",
        str(len(circles(found))),
        f"{1000 * anys / sum(lines):.1f}",
        f"{tested / sum(lines):.2f}" if tested else "-",
    )


def folder(source: str) -> Path:
    """A folder as it is given, or that of an installed package."""
    if Path(source).is_dir():
        return Path(source).resolve()
    found = find_spec(source)
    assert found is not None and found.origin is not None, source  # noqa: PT018
    return Path(found.origin).parent


def part(values: list[int], ratio: float) -> int:
    """The value below which that part of sorted ones lies."""
    return values[min(len(values) - 1, int(ratio * len(values)))]


def _is_test(file: Path, within: str = "") -> bool:
    return Path(within).name.startswith("test") or any(p.startswith("test_") or p == "tests" for p in file.parts)


def _lines(file: Path) -> int:
    return file.read_text("utf-8").count("\n")


if __name__ == "__main__":
    table = [HEAD, *(row(*asked.split(":")) for asked in sys.argv[1:])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
