"""A host: somebody else's training loop, in which a step listens (``streamkd.avalanche.plugin``).

host: forward ─► step: weigh, loss ─► host: backward ─► step: finite, clip ─► host: update ─► step: finish
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Hosted:
    """Fresh rows of the host, which goes forward, back and on itself: between the step's events.

    ``logits`` [fresh, classes] are its own, with their graph. The memory is offered the first ``offered`` of the rows.
    """

    logits: Tensor
    offered: int
