"""Teachers and model compared on records before they were learned, class by class, as they come.

For loops that need have no held-out memory of their own (``streamkd.avalanche.plugin``); where there is one, the pool
is measured on it all at once (``streamkd.gates.likelihood``, ``streamkd.replay.vicinal``).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from streamkd.gates.gate import GateInputs, Measured
from streamkd.gates.likelihood import PSEUDO, WORST
from streamkd.losses.match_gate import fused_target, soft_answers

KEPT = 0.9  # of what a class's records have told, at each further one: the last ten or so count
ROUND = 0.01  # of mistakes, added to both sides: from so few records a smaller difference says nothing


class Comparison:
    """Who said what of records before they were learned, of each class the last ten or so.

    ``measured`` is what a gate asks for: the mean log p(label) of each teacher and class. ``advantage`` compares
    mistakes, of the teachers together and of the model, as means over the classes: a mini-batch has more of some than
    of others.
    """

    def __init__(self) -> None:
        self._logs: dict[str, Tensor] = {}  # [2, classes] by teacher: Σ log p(y), records
        self._mistakes = torch.zeros(3, 0)  # the teachers', the model's, records

    def heard(self, evidence: GateInputs) -> None:
        """Take in each teacher's log-likelihoods; those of before the gate has weighed, for it reads them."""
        columns = evidence.labels.view(-1, 1, 1).expand(-1, len(evidence.teachers), 1)
        logs = torch.log_softmax(evidence.answers.masked_fill(~evidence.known, -torch.inf), -1)
        logs = logs.gather(2, columns).squeeze(2).nan_to_num(nan=0.0, neginf=WORST).clamp_min(WORST) * evidence.heard
        member = F.one_hot(evidence.labels, evidence.logits.shape[1]).to(logs.dtype)
        found = torch.stack([logs.T @ member, evidence.heard.to(logs.dtype).T @ member], 1)
        for key, new in zip(evidence.teachers, found, strict=True):
            old = self._logs.get(key, torch.zeros_like(new))
            self._logs[key] = wider(old.to(new.device), new.shape[1]) * KEPT ** new[1] + new
        self._logs = {key: logs for key, logs in self._logs.items() if key in evidence.teachers}

    def compared(self, evidence: GateInputs, weights: Tensor) -> None:
        """Count the mistakes of the teachers, mixed by the weights [batch, sources], and of the model."""
        taught = fused_target(soft_answers(evidence.answers, evidence.known, 1.0), weights)
        best, place = taught.max(1)
        theirs = (place != evidence.labels) | (best <= 0)  # where no teacher speaks, too
        ours = evidence.logits.argmax(1) != evidence.labels
        member = F.one_hot(evidence.labels, evidence.logits.shape[1]).to(taught.dtype)
        new = torch.stack([theirs, ours, torch.ones_like(ours)]).to(taught.dtype) @ member
        self._mistakes = wider(self._mistakes.to(new.device), new.shape[1]) * KEPT ** new[2] + new

    def advantage(self) -> float:
        """1 - e/s, at least 0: what part of the model's mistakes s the teachers, who make e, would spare it."""
        met = self._mistakes[2] > 0
        if not bool(met.any()):
            return 0.0
        theirs, ours = (self._mistakes[:2, met] / self._mistakes[2, met]).mean(1).tolist()
        return max(0.0, 1 - (theirs + ROUND) / (ours + ROUND))

    def measured(self, teachers: Sequence[str], classes: int) -> Measured:
        """Credit [teachers, classes], each class drawn towards the teacher's mean; NaN for who has not spoken."""
        logs, count = torch.stack([wider(self._logs[key], classes) for key in teachers]).unbind(1)
        total = count.sum(1, keepdim=True)
        mean = torch.where(total > 0, logs.sum(1, keepdim=True) / total, torch.nan)
        return Measured((logs + PSEUDO * mean) / (count + PSEUDO))


def wider(tensor: Tensor, classes: int) -> Tensor:
    """Columns up to ``classes``, the new ones 0 (or false)."""
    return F.pad(tensor, (0, max(classes - tensor.shape[-1], 0)))
