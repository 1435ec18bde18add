"""What holds of everything that maps rows [batch, *shape] to logits [batch, classes]: students and teachers."""

from collections.abc import Callable

import torch
from torch import Tensor

from streamkd.testing.clauses import Clause, same, shaped

Forward = Callable[[Tensor], Tensor]


def answers_rows(clause: Clause, forward: Forward, x: Tensor, classes: int, about: str) -> None:
    """Logits have a row each, and a row has the same ones by itself."""
    with clause(
        f"it maps [batch, *shape] to finite logits [batch, classes], {about}",
        "give a float column for each label of the label space, of whatever number of rows",
    ):
        whole = forward(x)
        shaped(whole, (len(x), classes))
    with clause(
        f"each row is answered by itself: a batch has the answers of its parts, {about}",
        "leave out batch statistics and dropout",
    ):
        same(torch.cat([forward(x[:1]), forward(x[1:])]), whole)


def leaves_input(clause: Clause, forward: Forward, x: Tensor, about: str) -> None:
    """The input is neither changed nor kept."""
    with clause(f"it leaves its input as it is, {about}", "work on a copy: the tensor is the caller's"):
        mine = x.clone()
        forward(mine)
        same(mine, x, 0)
    with clause(
        f"it answers what its input holds now, and its answers stay as they were given, {about}",
        "keep neither the input nor the answers between calls, or copies of them",
    ):
        others = x.flip(0)
        needed = forward(others).clone()
        answers = forward(mine)
        kept = answers.clone()
        mine.copy_(others)
        same(forward(mine), needed)
        same(answers, kept, 0)
