"""The checks of shapes that all tests run under: at work in the first calls, and again and again in later ones."""

import pytest
import torch

from streamkd.gates.gate import share


def given(rows: int, times: int = 1) -> None:
    """Scores of some rows, and who is heard in two; so many times."""
    for _ in range(times):
        share(torch.zeros(rows, 3), torch.ones(2, 3, dtype=torch.bool))


def test_a_wrong_shape_is_told_however_often_a_function_was_called() -> None:
    """At once; and after hundreds of good calls within fifty more, which would broadcast in silence."""
    with pytest.raises(Exception, match="Type-check error"):
        given(1)
    given(2, times=300)
    with pytest.raises(Exception, match="Type-check error"):
        given(1, times=50)
