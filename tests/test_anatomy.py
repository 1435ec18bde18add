"""The figures of a package's source are counted as they are told."""

from pathlib import Path

import pytest

from . import anatomy

FILES = {
    "__init__.py": "",
    "a.py": 'from small import b\n\ndef f() -> None:\n    """Says."""\n    x = 1\n    print(x)\n',
    "b.py": "from .sub import c\n",
    "sub/__init__.py": "",
    "sub/c.py": "import typing\nif typing.TYPE_CHECKING:\n    from small import d\nfrom ..a import f\n",
    "d.py": "def late() -> typing.Any:\n    from small import a\n\n\nfrom small.a import f\n",
    "test_a.py": "pass\npass\n",
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package of six modules and a test."""
    for name, text in FILES.items():
        file = tmp_path / "small" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
    return tmp_path / "small"


def test_circles_are_of_what_is_imported_at_once(small: Path) -> None:
    """What is imported within a function or for types alone closes none."""
    assert anatomy.circles(anatomy.modules(small)) == [{"small.a", "small.b", "small.sub.c"}]


def test_a_row_has_a_packages_figures(small: Path) -> None:
    """Modules, lines, lengths of modules and of bodies without docstring, circles, `Any`, tests to source."""
    assert anatomy.row(str(small)) == ("small", "6", "16", "4 / 6 / 6", "2 / 2", "1", "62.5", "0.12")


def test_ours_has_no_circle() -> None:
    """No module of the package imports, over whatever others, itself."""
    assert anatomy.circles(anatomy.modules(anatomy.folder("streamkd"))) == []
