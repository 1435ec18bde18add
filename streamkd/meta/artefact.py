"""What phase 2 learned, as a directory: ``meta.json`` and ``meta.safetensors``.

    gate_prior        numbers of the per-sample gate's prior (``streamkd.gates.prior``), all or some
    gate              weights of the step's gates: where the stream's begin, and what they are anchored to
    gate_notes        what else belongs to their state (of which teacher a row is), as JSON; of most gates nothing
    start             a one-class student: where the stream's student begins, its head row beginning every label
    gate_optimizer    the rule of the gate's optimiser, where it has one to learn
    trained_on        the stream, its tasks, episodes, seed: what the figures of a run should be read with

A learner keeps a copy in its checkpoints, so that a state directory goes on with what it began from.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from streamkd.errors import ConfigError, StateError
from streamkd.gates.prior import checked

logger = logging.getLogger(__name__)
SCHEMA = 1  # of the format
DOCUMENT, TENSORS = "meta.json", "meta.safetensors"
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Artefact:
    """What a stream may begin from; an empty part was not learned."""

    learned_for: Mapping[str, Any] = field(default_factory=dict)
    """The configuration's parts that it is bound to (gate, its optimiser, student), each where it was learned."""
    gate_weights: Weights = field(default_factory=dict)
    start: Weights = field(default_factory=dict)
    gate_optimizer: Weights = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    gate_notes: Mapping[str, Any] = field(default_factory=dict)
    gate_prior: Mapping[str, float] = field(default_factory=dict)

    @property
    def gate_state(self) -> dict[str, Any]:
        """What the step's gates load."""
        return {**self.gate_weights, **self.gate_notes}

    @property
    def digest(self) -> str:
        """SHA-256 over all that decides what is learned; where it was trained does not count."""
        document = self._document()
        document.pop("trained_on")
        parts = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            parts.update(name.encode())
            parts.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return parts.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """As a tree for a checkpoint."""
        return {"document": self._document(), "tensors": self._tensors()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Artefact":
        """Back from ``state_dict``."""
        document = state["document"]
        parts: dict[str, Weights] = {"gate": {}, "start": {}, "gate_optimizer": {}}
        for name, tensor in state["tensors"].items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        # written before it was a plugin's, and by no other
        bound = {"adapt.optimizer": {"name": "learned"}} if parts["gate_optimizer"] else {}
        return cls(
            bound | document["learned_for"],
            parts["gate"],
            parts["start"],
            parts["gate_optimizer"],
            document["trained_on"],
            document.get("gate_notes", {}),
            checked(document.get("gate_prior", {})),
        )

    def _document(self) -> dict[str, Any]:
        parts = {"gate_notes": dict(self.gate_notes), "gate_prior": dict(self.gate_prior)}
        return {
            "schema": SCHEMA,
            "learned_for": dict(self.learned_for),
            "trained_on": dict(self.trained_on),
            **{name: part for name, part in parts.items() if part},
        }

    def _tensors(self) -> Weights:
        parts = {"gate": self.gate_weights, "start": self.start, "gate_optimizer": self.gate_optimizer}
        return {f"{part}/{name}": t.detach().cpu() for part, tensors in parts.items() for name, t in tensors.items()}


def parted(state: Mapping[str, Any]) -> tuple[Weights, dict[str, Any]]:
    """A gate's state as ``gate_weights`` and ``gate_notes``.

    Raises:
        ConfigError: something in it is neither a tensor nor JSON.
    """
    weights = {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}
    notes = {name: value for name, value in state.items() if name not in weights}
    try:
        return weights, json.loads(json.dumps(notes))
    except (TypeError, ValueError) as fault:
        raise ConfigError(
            f"needed tensors and JSON as the gate's state, got {', '.join(notes)}: {fault}",
            where="gate",
            fix="let its get_extra_state give JSON, or name another gate",
        ) from fault


def write(directory: Path, artefact: Artefact) -> None:
    """Write both files.

    Raises:
        StateError: the directory cannot be written.
    """
    state = artefact.state_dict()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in state["tensors"].items()}
        (directory / TENSORS).write_bytes(save(tensors))
        (directory / DOCUMENT).write_text(json.dumps(state["document"], indent=1), "utf-8")
    except OSError as fault:
        raise StateError(f"cannot be written: {fault}", where=str(directory)) from fault


def read(directory: Path) -> Artefact:
    """The artefact in a directory.

    Raises:
        StateError: there is none, it is damaged, or a later streamkd wrote it.
    """
    try:
        document = json.loads((directory / DOCUMENT).read_text("utf-8"))
        tensors = load((directory / TENSORS).read_bytes())
        if document["schema"] > SCHEMA:
            raise ValueError(f"schema {document['schema']} is later than {SCHEMA}, which this streamkd reads")
        if document.get("rates"):
            logger.warning("%s: rates by parameter are not used any more; the start and the gate are", directory)
        return Artefact.from_state({"document": document, "tensors": tensors})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
        raise StateError(
            f"is no artefact of `streamkd meta-train`: {fault}",
            where=str(directory),
            fix="name the directory that `streamkd meta-train CONFIG --out DIR` wrote",
        ) from fault
