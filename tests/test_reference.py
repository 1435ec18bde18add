"""The generated pages of docs/reference/ say what the code says."""

import pytest

from . import reference


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_page_is_current(name: str, request: pytest.FixtureRequest) -> None:
    """Made anew it is the same."""
    page, file = reference.PAGES[name](), reference.FOLDER / name
    if request.config.getoption("--write-reference"):
        file.write_text(page, "utf-8")
    assert file.read_text("utf-8") == page, "pytest tests/test_reference.py --write-reference"


def test_the_pages_know_every_key() -> None:
    """Keys deep in the tree, commands of commands, options of kinds and errors all stand there."""
    said = {name: (reference.FOLDER / name).read_text("utf-8") for name in reference.PAGES}
    for key in ("holdout_ratio", "hang_seconds", "classes_per_task", "span"):
        assert f"| `{key}` |" in said["configuration.md"], key
    assert "## streamkd teachers train" in said["commands.md"]
    assert "| `streamkd_label_noise_ratio` | gauge |" in said["metrics.md"]
    assert "| `StateConflict` | 3 |" in said["errors.md"]
