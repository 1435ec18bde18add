"""The readout: the network of the analytic teacher, which answers with what was last solved and is never trained.

raw inputs ─► normalisation ─► features ─► (W·h + b) / temperature + prior ─► logits, the largest 0
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from streamkd.analytic import features as extractor
from streamkd.analytic.features import Extractor
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.students.networks import Normalise

FILE = "readout.safetensors"


class Readout(nn.Module):
    """Raw inputs [batch, *shape] to logits [batch, classes]: normalisation, features, and what was solved.

    ``known`` [classes] is where there is a solution; the other logits are 0. ``prior`` [classes] is what speaks for a
    class beforehand. A frozen network normalises for itself.
    """

    teacher = "analytic"
    known: Tensor
    temperature: Tensor
    prior: Tensor

    def __init__(self, normalise: Normalise | None, extractor: Extractor, classes: int) -> None:
        super().__init__()
        self.normalise, self.extractor = normalise, extractor
        self.weight = nn.Parameter(torch.zeros(classes, extractor.width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(classes), requires_grad=False)
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("prior", torch.zeros(classes))

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        return self.answers(self.features(x))

    def features(self, x: Tensor) -> Float[Tensor, "batch features"]:
        """Features of raw inputs."""
        return self.extractor(x if self.normalise is None else self.normalise(x))

    def answers(self, h: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of features, the largest of a row 0: they are kept in float16."""
        logits = self.scores(h) / self.temperature + self.prior
        top = logits.masked_fill(~self.known, torch.finfo(logits.dtype).min).amax(1, keepdim=True)
        return (logits - top).masked_fill_(~self.known, 0.0)

    def scores(self, h: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """What was solved: W·h + b."""
        return torch.addmm(self.bias, h, self.weight.T)

    @property
    def classes(self) -> int:
        """How many classes it has logits for, known or not."""
        return len(self.bias)

    def grow(self, classes: int) -> None:
        """More classes, unknown so far."""
        more = (0, classes - self.classes)
        self.take(F.pad(self.weight.data, (0, 0, *more)), F.pad(self.bias.data, more), F.pad(self.known, more))
        self.prior = F.pad(self.prior, more)

    def take(self, weight: Tensor, bias: Tensor, known: Tensor) -> None:
        """A new solution."""
        self.weight.data, self.bias.data = weight.to(self.weight.device), bias.to(self.bias.device)
        self.known = known.to(self.known.device)

    def learned(self) -> dict[str, Tensor]:
        """Its state, without that of a network which is frozen."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("extractor.")}

    def load_learned(self, learned: dict[str, Tensor]) -> None:
        """Take what ``learned`` gave, with as many classes."""
        frozen = {f"extractor.{name}": tensor for name, tensor in self.extractor.state_dict().items()}
        even = {"prior": torch.zeros_like(learned["bias"])}  # of older states
        self.load_state_dict({**frozen, **even, **learned})

    def write(self, directory: Path) -> dict[str, Any]:
        """Put what was solved, and what the features need, into a version's directory."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.learned().items()}
        (directory / FILE).write_bytes(save(weights))
        return {"features": extractor.write(directory, self.extractor)}


def load(directory: Path, about: Mapping[str, Any], schema: RecordSchema, classes: int, registry: Registry) -> Readout:
    """The readout that wrote itself there; ``about`` has what it gave."""
    normalise, features = extractor.load(directory, about["features"], schema, registry)
    readout = Readout(normalise, features, classes)
    readout.load_learned(load_file(directory / about.get("file", FILE)))  # older versions have it under another name
    return readout
