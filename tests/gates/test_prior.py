"""The prior of the per-sample gate as one vector: its defaults, its scales and bounds, and the file that holds it."""

import json
import math
from pathlib import Path

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from streamkd.errors import StateError
from streamkd.gates.per_sample import PerSampleGate, PerSampleOptions
from streamkd.gates.prior import NAMES, GatePrior, moved
from streamkd.meta import artefact
from streamkd.meta.artefact import Artefact

BY_HAND = {
    "floor": 0.3,
    "hard": 0.5,
    "doubt": 1.0,
    "room": 0.02,
    "trust": 1.0,
    "slip": 0.2,
    "credit": 1.0,
    "unmeasured": 0.5,
    "stale": 0.25,
    "present": 1.0,
    "noise_from": 0.05,
    "noise_range": 0.25,
    "known_after": 60,
    "least_belief": 0.04,
}


def test_the_defaults_are_those_that_were_set_by_hand() -> None:
    """Every number that the decision pages have figures for."""
    assert GatePrior().model_dump() == BY_HAND
    assert tuple(BY_HAND) == NAMES


def test_a_prior_that_has_not_moved_weighs_with_the_same_bits() -> None:
    """Offsets of 0 leave every number, and so every weight, as it is."""
    still = moved(GatePrior(), [0.0] * len(NAMES))
    evidence = toys.evidence(toys.lesson(3))
    gates = [PerSampleGate(PerSampleOptions(**kept)).double() for kept in ({}, still.model_dump())]
    assert torch.equal(*(gate(evidence) for gate in gates))


@given(st.lists(st.floats(-30, 30), min_size=len(NAMES), max_size=len(NAMES)))
def test_no_offset_leaves_the_bounds(offsets: list[float]) -> None:
    """Whatever the evolution tries is a prior, and no number is at the wrong side of where it began."""
    began, found = GatePrior(), moved(GatePrior(), offsets)
    for name, by in zip(NAMES, offsets, strict=True):
        assert (getattr(found, name) - getattr(began, name)) * by >= 0, name


def test_ratios_move_by_their_logit_and_others_by_their_logarithm() -> None:
    """log(p / (1 - p)) of a ratio, log v of what has no upper bound, each by the offset."""
    found = moved(GatePrior(), [0.7] * len(NAMES))
    assert math.log(found.hard / (1 - found.hard)) == pytest.approx(0.7)
    assert math.log(found.slip / (1 - found.slip)) == pytest.approx(math.log(0.25) + 0.7)
    assert math.log(found.known_after / 60) == pytest.approx(0.7)


def test_as_many_offsets_as_numbers() -> None:
    """One too few is none of a prior."""
    with pytest.raises(ValueError, match="shorter"):
        moved(GatePrior(), [0.0])


def test_a_file_gives_back_the_numbers(tmp_path: Path) -> None:
    """Written, read, and in a checkpoint: the same numbers, and where they were learned."""
    prior = moved(GatePrior(), [0.1] * len(NAMES)).model_dump()
    artefact.write(tmp_path, Artefact(gate_prior=prior, trained_on={"family": {"streams": [1, 2]}}))
    found = artefact.read(tmp_path)
    assert found.gate_prior == prior
    assert found.trained_on == {"family": {"streams": [1, 2]}}
    assert Artefact.from_state(found.state_dict()).digest == found.digest != Artefact().digest


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("hard", 1.5, "gate_prior.hard: Input should be less than or equal to 1, got 1.5"),
        ("known_after", 0, "gate_prior.known_after: Input should be greater than 0, got 0"),
        ("soft", 0.5, "gate_prior.soft: Extra inputs are not permitted, got 0.5"),
        ("trust", "much", "gate_prior.trust: Input should be a valid number"),
    ],
)
def test_a_file_that_cannot_be_is_refused_in_words(name: str, value: object, said: str, tmp_path: Path) -> None:
    """The number, its bound and what came."""
    artefact.write(tmp_path, Artefact(gate_prior={"hard": 0.4}))
    document = json.loads((tmp_path / artefact.DOCUMENT).read_text())
    document["gate_prior"] = {name: value}
    (tmp_path / artefact.DOCUMENT).write_text(json.dumps(document))
    with pytest.raises(StateError, match=said):
        artefact.read(tmp_path)
