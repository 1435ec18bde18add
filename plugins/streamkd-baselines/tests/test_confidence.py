"""The gate ``confidence`` is CA-MKD's equation 3."""

import oracles
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from streamkd_baselines.confidence import ConfidenceGate, ConfidenceOptions

from streamkd.api import GateInputs

seeds = st.integers(0, 10_000)


def ca_mkd(evidence: GateInputs, hard: float) -> list[list[float]]:
    """(1 - exp(CE_k)/Σ exp(CE_j)) / (K - 1), Zhang et al. 2022, equation 3."""
    rows = []
    for i, label in enumerate(evidence.labels.tolist()):
        wrong = {}
        for k in range(len(evidence.teachers)):
            if evidence.heard[i, k]:
                p = oracles.softmax(evidence.answers[i, k].tolist(), evidence.known[i, k].tolist())
                wrong[k] = 1 / p[label]
        count = len(wrong)
        v = {k: (1 - e / sum(wrong.values())) / (count - 1) if count > 1 else 1.0 for k, e in wrong.items()}
        w0 = hard if count else 1.0
        rows.append([w0] + [(1 - w0) * v.get(k, 0.0) for k in range(len(evidence.teachers))])
    return rows


@given(seeds)
def test_confidence_is_ca_mkd(seed: int) -> None:
    """Equation 3 of the paper over the teachers heard; one teacher alone has all."""
    evidence = toys.evidence(toys.lesson(seed))
    wanted = torch.tensor(ca_mkd(evidence, 0.5), dtype=torch.float64)
    torch.testing.assert_close(ConfidenceGate(ConfidenceOptions())(evidence), wanted, rtol=1e-9, atol=1e-9)
