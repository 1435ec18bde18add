"""Changelog fragments are short, and are gathered whole."""

import re

import pytest

from . import changes

BEFORE = "# Changelog\n\n## 0.2.0 (unreleased)\n\n- One.\n\n## 0.1.0\n\n- Old.\n"


@pytest.mark.parametrize(
    "name", changes.fragments() or [pytest.param("", marks=pytest.mark.skip("nothing is waiting"))]
)
def test_a_fragment_is_one_change(name: str) -> None:
    """A name of lower-case words; one paragraph of at most four lines, without a list mark, that ends a sentence."""
    text = changes.fragments()[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.md", name)
    assert re.fullmatch(r"(?![-*# ])(.{1,130}\n){1,4}", text)
    assert text.rstrip().endswith(".")


def test_they_are_gathered_at_the_end_of_the_newest_section() -> None:
    """Each as an item, in the order of their names, its further lines indented; what was there stays."""
    told = {"a.md": "Two,\non two lines.\n", "b.md": "Three.\n"}
    after = BEFORE.replace("- One.\n", "- One.\n- Two,\n  on two lines.\n- Three.\n")
    assert changes.gathered(BEFORE, told) == after
    assert changes.gathered(BEFORE, {}) == BEFORE


def test_the_changelog_takes_them(request: pytest.FixtureRequest) -> None:
    """All stand in the first section then, and no older one has changed."""
    before, told = changes.CHANGELOG.read_text("utf-8"), changes.fragments()
    after = changes.gathered(before, told)
    newest = after.split(changes.HEADING)[1]
    assert all(text.splitlines()[0] in newest for text in told.values())
    assert after.split(changes.HEADING)[2:] == before.split(changes.HEADING)[2:]
    if request.config.getoption("--write-changelog"):
        changes.gather()
        assert (changes.CHANGELOG.read_text("utf-8"), changes.fragments()) == (after, {})
