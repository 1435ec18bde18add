"""The artefact: what is written comes back, and damage is said."""

import json
from pathlib import Path

import pytest
import torch

from streamkd.errors import ConfigError, StateError
from streamkd.meta import artefact
from streamkd.meta.artefact import Artefact
from streamkd.state import tree

WHOLE = Artefact(
    learned_for={"adapt.optimizer": {"name": "learned"}, "gate": [{"name": "per-sample"}]},
    gate_weights={"0.score.0.weight": torch.arange(4.0).reshape(2, 2)},
    start={"body.head.weight": torch.ones(1, 3), "normalise.count": torch.tensor(7)},
    gate_optimizer={"out.bias": torch.zeros(1)},
    trained_on={"stream": "known"},
    gate_notes={"0._extra_state": {"names": ["ema"]}},
)


def _same(one: Artefact, other: Artefact) -> None:
    assert one.digest == other.digest
    assert one.trained_on == other.trained_on
    assert one.gate_notes == other.gate_notes
    for part in ("gate_weights", "start", "gate_optimizer"):
        mine, theirs = getattr(one, part), getattr(other, part)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Both files together give back every part, bit for bit."""
    artefact.write(tmp_path / "new" / "folder", WHOLE)
    _same(artefact.read(tmp_path / "new" / "folder"), WHOLE)


def test_a_checkpoint_carries_it() -> None:
    """Its tree goes through a checkpoint's packing."""
    _same(Artefact.from_state(tree.unpack(tree.pack(WHOLE.state_dict()))), WHOLE)


def test_the_digest_is_of_what_decides(tmp_path: Path) -> None:
    """A weight or a name changes it; where it was trained does not."""
    changed = [
        {"start": {"body.head.weight": torch.zeros(1, 3)}},
        {"learned_for": {"adapt.optimizer": {"name": "learned"}}},
        {"gate_notes": {"0._extra_state": {"names": ["memory"]}}},
    ]
    kept = {name: getattr(WHOLE, name) for name in Artefact.__dataclass_fields__}
    assert all(Artefact(**{**kept, **change}).digest != WHOLE.digest for change in changed)
    assert Artefact(**{**kept, "trained_on": {}}).digest == WHOLE.digest


def test_one_from_before_there_were_notes_is_read(tmp_path: Path) -> None:
    """Without notes the document is the same as ever, and so is the digest."""
    kept = {name: getattr(WHOLE, name) for name in Artefact.__dataclass_fields__}
    plain = Artefact(**{**kept, "gate_notes": {}})
    artefact.write(tmp_path, plain)
    assert "gate_notes" not in json.loads((tmp_path / artefact.DOCUMENT).read_text())
    _same(artefact.read(tmp_path), plain)


def test_one_from_before_optimisers_were_plugins_names_the_one_that_there_was() -> None:
    """Its rule is of no use to any other."""
    state = WHOLE.state_dict()
    state["document"] = {**state["document"], "learned_for": {"gate": [{"name": "per-sample"}]}}
    _same(Artefact.from_state(state), WHOLE)


def test_a_gates_state_is_parted() -> None:
    """Tensors here, JSON there, together the state again; what is neither is refused."""
    state = {"0.table": torch.ones(2, 1), "0._extra_state": {"names": ["ema"]}}
    weights, notes = artefact.parted(state)
    assert Artefact(gate_weights=weights, gate_notes=notes).gate_state.keys() == state.keys()
    assert notes == {"0._extra_state": {"names": ["ema"]}}
    with pytest.raises(ConfigError, match="JSON"):
        artefact.parted({"0._extra_state": object()})


@pytest.mark.parametrize("harm", ["nothing", "document", "tensors", "later"])
def test_damage_is_said(harm: str, tmp_path: Path) -> None:
    """A folder without files, a broken file, or a later schema is refused with the way out."""
    if harm != "nothing":
        artefact.write(tmp_path, WHOLE)
    if harm == "document":
        (tmp_path / artefact.DOCUMENT).write_text("{")
    if harm == "tensors":
        (tmp_path / artefact.TENSORS).write_bytes(b"short")
    if harm == "later":
        document = json.loads((tmp_path / artefact.DOCUMENT).read_text())
        (tmp_path / artefact.DOCUMENT).write_text(json.dumps({**document, "schema": 99}))
    with pytest.raises(StateError, match="meta-train"):
        artefact.read(tmp_path)
