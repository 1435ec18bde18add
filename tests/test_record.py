"""The page of what was tried says what the tests say."""

import pytest

from . import record


def test_the_page_is_what_the_rows_say(request: pytest.FixtureRequest) -> None:
    """It is made of the rows that tests execute; made anew it is the same."""
    if request.config.getoption("--write-record"):
        record.PAGE.write_text(record.page(), "utf-8")
    assert record.PAGE.read_text("utf-8") == record.page(), "pytest tests/test_record.py --write-record"


@pytest.mark.parametrize("kind", record.NEEDED)
def test_there_are_enough(kind: record.Kind) -> None:
    """So many rows of each kind, each once."""
    rows = [(table.title, *row) for table in record.TABLES if table.kind == kind for row in table.rows]
    assert len(set(rows)) == len(rows) >= record.NEEDED[kind]


def test_every_row_is_run() -> None:
    """The tests that the page names are collected by pytest, and none of them waits for `make soak` or is skipped."""
    for table in record.TABLES:
        assert table.test.__name__.startswith("test_")
        assert {mark.name for mark in table.test.pytestmark} == {"parametrize"}  # type: ignore[attr-defined]
