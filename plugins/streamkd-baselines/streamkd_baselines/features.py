"""Hints: one layer of the student beside one layer of each named teacher, weighed by the gate.

    feature     L_i = Σ_k w_ik · ½·mean_d (A_k(h_i) - h_ik)²                     FitNets, Romero et al. 2015, equation 3
    attention   L_i = Σ_k w_ik · ½·‖ Q(h_i)/‖Q(h_i)‖ - Q(h_ik)/‖Q(h_ik)‖ ‖₂       Zagoruyko & Komodakis 2017, equation 2

h is the student's layer, h_k teacher k's, A_k a learned linear adapter where their sizes differ, Q(h) = Σ_c |h_c|^p
where in the picture (or in the sequence) a layer is active. FitNets' squared norm is divided by the number of features,
so that the term's weight means the same for narrow and wide layers.

Teachers show their layers on fresh rows only: a remembered row has the loss 0, and as a term is a mean over all rows,
f fresh and r remembered rows count f / (f + r) of it. So has a row whose teacher gives no answer, or numbers that are
not finite. The hard label has no part in these losses: they go beside another.
"""

from collections.abc import Callable, Iterable, Mapping
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from streamkd.api import Kind, LossInputs, Options, PluginError, Shapes, hookimpl

FAINT = 1e-6  # norm below which a map fades to zero


class FeatureOptions(Options):
    """Which layer of the student is taught by which layers of the teachers."""

    student: str = Field(description="the student's layer; its names begin with `body.`")
    teacher: dict[str, str] = Field(min_length=1, description="by the id of each teacher that is looked at: its layer")


class AttentionOptions(FeatureOptions):
    """Where the student is to look, and where each teacher looks."""

    power: float = Field(default=2.0, ge=1, description="p of the map: larger looks at the strongest channels")


class Feature:
    """``feature_distance`` under the gate's weights; its adapters are trained with the student."""

    def __init__(self, options: FeatureOptions) -> None:
        self.options = options
        self.layers, self.teacher_layers = _names(options)
        self.adapters = nn.ModuleDict()

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        return (lesson.weights * self.per_source(lesson)).sum(1)

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """½·mean (A_k(h) - h_k)² of each named teacher; 0 for the hard label, for others, and in remembered rows."""
        return hint_table(lesson, self.options, self._apart)

    def _apart(self, key: str, ours: Tensor, theirs: Tensor, shown: Tensor) -> Tensor:
        if ours.shape == theirs.shape:
            return feature_distance(ours, theirs)
        name = _slot(self.options, key)
        if name not in self.adapters:
            raise _unfitting(self.options.student, ours.shape[1:], key, theirs.shape[1:])
        return feature_distance(*self.adapters[name](ours, theirs))

    def prepare(self, student: Shapes, teachers: Mapping[str, Shapes]) -> None:
        """An adapter for each teacher whose layer has another shape than the student's.

        Raises:
            PluginError: one of the two is a head, which grows as labels come: no adapter would fit it for long.
        """
        mine, self.adapters = self.options.student, nn.ModuleDict()
        for key, layer in self.options.teacher.items():
            if teachers[key][layer] != student[mine]:
                if "head" in (mine.rpartition(".")[2], layer.rpartition(".")[2]):
                    raise _unfitting(mine, student[mine], key, teachers[key][layer])
                self.adapters[_slot(self.options, key)] = Regressor(student[mine], teachers[key][layer])

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.adapters.parameters()


class Attention:
    """``attention_distance`` under the gate's weights."""

    def __init__(self, options: AttentionOptions) -> None:
        self.options = options
        self.layers, self.teacher_layers = _names(options)

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        return (lesson.weights * self.per_source(lesson)).sum(1)

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """Half the distance of the maps of each named teacher; 0 elsewhere, as for ``feature``."""
        return hint_table(lesson, self.options, self._apart)

    def _apart(self, key: str, ours: Tensor, theirs: Tensor, shown: Tensor) -> Tensor:
        maps = [attention_map(outputs, self.options.power) for outputs in (ours, theirs)]
        return attention_distance(*maps)


class Regressor(nn.Module):
    """From the student's outputs to the teacher's: pairs of one shape.

    Maps [channels, height, width] of both: a 1×1 convolution, the teacher's resized to the student's height and width
    (bilinear, antialiased). Sequences [steps, features] of one length: a linear layer over the features. Anything else
    is flattened. First weights depend on the shapes alone.
    """

    def __init__(self, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
        super().__init__()
        self.maps = len(ours) == len(theirs) == 3
        self.steps = len(ours) == len(theirs) == 2 and ours[0] == theirs[0]
        sides = (
            (ours[0], theirs[0]) if self.maps else (ours[1], theirs[1]) if self.steps else (prod(ours), prod(theirs))
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(*sides)

    def forward(self, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        if self.maps:
            adapted = F.conv2d(ours, self.linear.weight[:, :, None, None], self.linear.bias)
            return adapted, resized(theirs, adapted.shape[2:])
        if self.steps:
            return self.linear(ours), theirs
        return self.linear(ours.flatten(1)), theirs.flatten(1)


def feature_distance(
    ours: Float[Tensor, "batch *shape"], theirs: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch"]:
    """½·mean_d (h - h_k)² of each sample."""
    return (ours - theirs).square().flatten(1).mean(1) / 2


def attention_map(outputs: Float[Tensor, "batch *shape"], power: float = 2.0) -> Float[Tensor, "batch *places"]:
    """Q(h) = Σ_c |h_c|^p: over the channels of a map [channels, height, width], over the features of a sequence.

    Raises:
        PluginError: the layer gives neither.
    """
    if outputs.dim() not in (3, 4):
        raise PluginError(
            f"needed an output of [channels, height, width] or [steps, features], got {list(outputs.shape[1:])}",
            where="loss attention",
            fix="name a convolutional or a sequence layer; a student with some is `convnet`",
        )
    return outputs.abs().pow(power).sum(1 if outputs.dim() == 4 else 2)


def attention_distance(
    ours: Float[Tensor, "batch *places"], theirs: Float[Tensor, "batch *other"]
) -> Float[Tensor, "batch"]:
    """½·‖ Q/‖Q‖ - Q_k/‖Q_k‖ ‖₂ of each sample: from 0 (same place) to √½ (apart, as no map is negative).

    A teacher's map of another size is resized to the student's. A map fainter than 1e-6 fades to zero, so that a dead
    layer has no gradient. Where both agree the gradient is 0.
    """
    if ours.shape != theirs.shape:
        theirs = resized(theirs.unsqueeze(1), ours.shape[1:]).squeeze(1)
    apart = F.normalize(ours.flatten(1), dim=1, eps=FAINT) - F.normalize(theirs.flatten(1), dim=1, eps=FAINT)
    return torch.linalg.vector_norm(apart, dim=1) / 2


def resized(
    maps: Float[Tensor, "batch channels *places"], size: Iterable[int]
) -> Float[Tensor, "batch channels *size"]:
    """Maps at another size: bilinear and antialiased in the plane, linear along a sequence."""
    plane = maps.dim() == 4
    return F.interpolate(maps, list(size), mode="bilinear" if plane else "linear", antialias=plane)


Apart = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""(teacher, the student's outputs, the teacher's, the rows that count [batch] bool) ─► distance of each row [batch]."""


def hint_table(lesson: LossInputs, options: FeatureOptions, apart: Apart) -> Float[Tensor, "batch sources"]:
    """``apart`` on the fresh rows, in the columns of the named teachers; 0 in all others."""
    fresh, rows = lesson.fresh, len(lesson.labels)
    ours = lesson.features[options.student][:fresh]
    columns = [lesson.logits.new_zeros(rows)] * (1 + len(lesson.teachers))
    for index, key in enumerate(lesson.teachers):
        if fresh and key in options.teacher:
            theirs = lesson.teacher_features[key][options.teacher[key]].to(ours.dtype)
            shown = lesson.known[:fresh, index].any(1) & torch.isfinite(theirs).flatten(1).all(1)
            theirs = torch.where(shown.view(-1, *[1] * (theirs.dim() - 1)), theirs, 0.0)
            distance = torch.where(shown, apart(key, ours, theirs, shown), 0.0)
            columns[1 + index] = F.pad(distance, (0, rows - fresh))
    return torch.stack(columns, 1)


def _names(options: FeatureOptions) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    return (options.student,), {key: (layer,) for key, layer in options.teacher.items()}


def _unfitting(layer: str, ours: Iterable[int], key: str, theirs: Iterable[int]) -> PluginError:
    return PluginError(
        f"{layer!r} gives {list(ours)} and the teacher {key!r} {list(theirs)}, and no adapter would stay fit",
        where="loss feature",
        fix="name layers whose size does not change as labels come",
    )


def _slot(options: FeatureOptions, key: str) -> str:
    """A module's name may have no dots, a teacher's may."""
    return str([*options.teacher].index(key))


@hookimpl
def streamkd_losses() -> Iterable[Kind]:
    """Both hints."""
    yield Kind("feature", Feature, FeatureOptions, "outputs of a layer, through an adapter (Romero et al. 2015)")
    yield Kind("attention", Attention, AttentionOptions, "where a layer is active (Zagoruyko & Komodakis 2017)")
