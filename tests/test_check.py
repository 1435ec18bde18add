"""What ``check`` says of configurations that cannot be meant: a table."""

import pytest

from .checks import CHECKS
from .test_cli import streamkd


@pytest.mark.parametrize(("override", "code", "said"), CHECKS, ids=[row[0] for row in CHECKS])
def test_what_check_says(override: str, code: int, said: str) -> None:
    """The exit code and the words of each, with its place; and it is fine where nothing is wrong."""
    done = streamkd("check", "--set", override)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert ("fine" in done.stdout) == (code == 0)
