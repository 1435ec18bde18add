"""Changelog fragments: each file of changes/ says one change, and a release gathers them into CHANGELOG.md.

    changes/NAME.md: text of one change ─► gather ─► "- text", at the end of the newest section

A file for each, so that two branches that change something never meet in one line. ``test_changes.py`` looks at them;
``pytest tests/test_changes.py --write-changelog`` gathers them and takes them away.
"""

from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER, CHANGELOG = ROOT / "changes", ROOT / "CHANGELOG.md"
HEADING = "\n## "


def fragments() -> dict[str, str]:
    """The changes that no release has told yet, by file name."""
    return {file.name: file.read_text("utf-8") for file in sorted(FOLDER.glob("*.md"))}


def gathered(changelog: str, told: Mapping[str, str]) -> str:
    """The changelog with these changes at the end of its first section."""
    head, begin, rest = changelog.partition(HEADING)
    newest, older, others = rest.partition(HEADING)
    items = "".join(f"- {'  '.join(text.splitlines(keepends=True))}" for text in told.values())
    return f"{head}{begin}{newest.rstrip()}\n{items}{older}{others}"


def gather() -> None:
    """Write CHANGELOG.md with all of them, and remove their files."""
    told = fragments()
    CHANGELOG.write_text(gathered(CHANGELOG.read_text("utf-8"), told), "utf-8")
    for name in told:
        (FOLDER / name).unlink()
