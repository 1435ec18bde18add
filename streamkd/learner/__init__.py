"""One student on one stream.

learner   ``advance``: a batch of records is learned; ``state`` and ``restore``
feed      a source ─► records that can be learned; dead letters
resuming  the parts that learn ─► a tree for a checkpoint ─► the same parts
"""

from streamkd.learner.learner import Learner

__all__ = ["Learner"]
