"""The analytic teacher: a linear method on fixed features, learned from the stream in closed form.

    fresh labelled rows ─► features ─► block of rows ─► class means, scatter ─► (now and then) solve ─► logits

It sees each record once, forgets nothing, needs no memory and no gradient (Hayes & Kanan 2020, streaming LDA): with
class means μ_c, their shares π_c of all records and the covariance Σ within the classes,

    lda    logit_c(h) = (μ_cᵀ Σ'⁻¹ h - ½ μ_cᵀ Σ'⁻¹ μ_c) / τ + a log π_c,    Σ' = Σ + ridge · mean(diag Σ) · I
    ridge  the affine map of least squares onto one-hot labels, from the same moments (``streamkd.analytic.ridge``)

τ is the temperature, and a of 0 and 1 the one, whose likelihood was best on rows that had not been learned yet. The
answers change only when the system is solved anew, so the pool keeps them like a frozen teacher's (role ``versioned``).
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from streamkd.analytic import features as extractor
from streamkd.analytic import readout
from streamkd.analytic.calibration import Calibration
from streamkd.analytic.discriminant import Discriminant
from streamkd.analytic.features import Extractor
from streamkd.analytic.moments import Moments, packed, unpacked
from streamkd.analytic.random_features import RandomFeatures
from streamkd.analytic.readout import Readout
from streamkd.analytic.ridge import Ridge
from streamkd.analytic.solution import Solution
from streamkd.choices import Choice
from streamkd.errors import StateConflict
from streamkd.hookspecs import Options, TeacherKind, hookimpl
from streamkd.plugins import Registry
from streamkd.students.networks import Normalise
from streamkd.teachers import checkpoint
from streamkd.teachers.checkpoint import CheckpointOptions
from streamkd.teachers.teacher import Role, TeacherContext, layer_outputs, module_bytes

BLOCK = 256  # rows that are learned at once
FEW, MORE = 8, 4  # records after which a new class is solved for; again when so many times as many have come,
YOUNG = 32  # while it had fewer than these
DENSE = 1_000  # random features of what a body gives
FIT = 1_024  # records after which a normalisation that is fitted to the stream is good enough for the features
logger = logging.getLogger(__name__)
METHODS: dict[str, type[Solution]] = {"lda": Discriminant, "ridge": Ridge}


class AnalyticOptions(Options):
    """Discriminant analysis or ridge regression, on random features or those of a frozen network."""

    method: Literal["lda", "ridge"] = Field(
        default="lda", description="linear discriminant analysis, or ridge regression onto one-hot labels"
    )
    features: Path | None = Field(
        default=None,
        description="a frozen network in place of random features: a model's directory, a .safetensors file with its "
        ".json beside it (what its head reads), or an .onnx file (what it gives)",
    )
    columns: tuple[str, ...] = Field(
        default=(),
        description="the stream's columns that it reads; empty: the student's, or of features the network's own names",
    )
    output: str = Field(default="", description="features, ONNX: the output that is read; empty: the first")
    channels: int = Field(default=64, ge=0, le=1_024, description="random 5×5 filters where the input is an image")
    dense: int | None = Field(
        default=None,
        ge=0,
        le=8_192,
        description="random features of the whole input; None: 512 beside filters, else 1000",
    )
    body: Choice | None = Field(
        default=None,
        description="a student's kind, whose body as it begins stands before the random features; both are read",
    )
    ridge: float = Field(default=1e-3, gt=0, description="regularisation, relative to a feature's mean variance")

    @model_validator(mode="after")
    def _one_kind_of_features(self) -> "AnalyticOptions":
        network, random = {"output"}, {"channels", "dense", "body"}
        idle = self.model_fields_set & (random if self.features else network)
        if idle:
            kind = "random features, and features names a network" if self.features else "a network that features names"
            raise ValueError(f"{', '.join(sorted(idle))} belong to {kind}: leave out one or the other")
        return self


class AnalyticTeacher:
    """``Moments`` of features, solved by a method when a sixteenth more has been learned.

    It knows the classes that were there when it was last solved. While the student's normalisation is still being
    fitted, rows wait as they are, for at most ``FIT`` records.
    """

    role: Role = "versioned"
    fresh = True

    def __init__(self, options: AnalyticOptions, context: TeacherContext) -> None:
        self.key = context.key
        self.version = 0
        self.ridge = options.ridge
        self._method = METHODS[options.method]
        self._device = context.device
        normalise, features = _features(options, context)
        self.network = Readout(normalise, features, len(context.labels)).to(self._device)
        self.moments = Moments(features.width, len(context.labels))
        self._identity: dict[str, str] = {"method": options.method}
        if not isinstance(features, RandomFeatures):
            self._identity |= features.identity
        if normalise is not None and options.columns:
            self._identity["columns"] = json.dumps(options.columns)
        own = context.schema.student or tuple(column.name for column in context.schema.inputs)
        self.served = extractor.served(features, own) and not (normalise is not None and options.columns)
        """Whether it can answer requests, which bring the student's columns alone."""
        if not self.served:
            logger.warning(
                "teacher %s reads columns that requests do not bring: it teaches, and is not served", self.key
            )
        self._rows: list[tuple[Tensor, Tensor]] = []  # features and columns, not yet learned
        self._raw: list[tuple[Tensor, Tensor]] = []  # inputs that wait for the normalisation
        self._since = 0  # records since the last solution, waiting ones included
        self._new: dict[int, int] = {}  # records of each class since the last solution
        self._trial = Calibration()
        self._solution: Solution | None = None
        self._asked: tuple[Tensor, Tensor] | None = None  # the last rows asked about, and their features

    def part(self) -> Readout | None:
        """The network, once it has learned something, where requests bring its columns."""
        return self.network if self.version and self.served else None

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        if not self.version:
            return torch.zeros(len(x), self.network.classes, device=x.device)
        with torch.no_grad():
            self._asked = (x.clone(), self.network.features(x))
            return self.network.answers(self._asked[1])

    def recall(self, x: Tensor, y: Tensor) -> Float[Tensor, "batch classes"]:
        """Logits on remembered rows x of columns y, each as if it alone had not been learned: what was learned it would
        know by heart, and could not teach what it is like.
        """
        if self._solution is None:
            return self.logits(x)
        with torch.no_grad():
            left = self._solution.left_out(self.network.features(x).cpu(), y.cpu()).to(x.device)
            return left / self.network.temperature + self.network.prior

    def _features_again(self, x: Tensor) -> Tensor:
        """A step asks about its fresh rows before it shows them. They are told by what they hold: a tensor may hold
        other rows by then, at the same place.
        """
        asked, self._asked = self._asked, None
        if asked is not None and torch.equal(asked[0], x):
            return asked[1]
        return self.network.features(x)

    def known(self) -> Bool[Tensor, "classes"]:
        return self.network.known

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        with torch.no_grad():
            return layer_outputs(self.network, x, layers)

    def grow(self, labels: Sequence[Any]) -> None:
        self.network.grow(len(labels))
        self.moments.grow(len(labels))
        if self._solution is not None:
            self._solution = self._solution.grown(len(labels))

    @torch.no_grad()
    def observe(self, x: Tensor, y: Tensor) -> None:
        """Learn a step's fresh labelled rows: raw inputs [n, *shape], columns y [n]; solve anew when that is due."""
        if self._fitting():
            x, y = self._wait(x, y)
        if not len(y):
            return
        h = self._features_again(x).cpu()
        finite = h.isfinite().all(1)
        h, y = h[finite], y.cpu()[finite]
        self._rows.append((h, y))
        self._since += len(y)
        for column in y.tolist():
            self._new[column] = self._new.get(column, 0) + 1
        if self._due():
            self._learn()
            self._solve()
        elif sum(len(y) for _, y in self._rows) >= BLOCK and self._learn():
            self._solve()

    @torch.no_grad()
    def end_task(self) -> None:
        """Learn what waits, and solve."""
        if self._rows:
            self._learn()
        if self._since:
            self._solve()

    def _wait(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Keep rows while the normalisation is being fitted, and give all of them back once it is."""
        assert self.network.normalise is not None
        self.network.normalise.observe(x)
        self._raw.append((x.clone(), y.clone()))
        if self._fitting():
            return x[:0], y[:0]
        x, y = (torch.cat(part) for part in zip(*self._raw, strict=True))
        self._raw = []
        return x, y

    def _fitting(self) -> bool:
        normalise = self.network.normalise
        return normalise is not None and int(normalise.count) < normalise.fit

    def _due(self) -> bool:
        """A sixteenth more than at the last solution, or enough of a young class and not just solved."""
        known = self.moments.records
        if self._since >= max(BLOCK, known // 16):
            return True
        return self._since >= max(2 * FEW, known // 100) and any(map(self._grew, self._new))

    def _grew(self, column: int) -> bool:
        had = int(self._solution.counts[column]) if self._solution else 0
        return had < YOUNG and had + self._new[column] >= max(FEW, MORE * had)

    def _learn(self) -> bool:
        """Take the waiting rows, after they were a test; whether it went clearly worse than usual."""
        h, y = (torch.cat(part) for part in zip(*self._rows, strict=True))
        self._rows = []
        if not self.version:  # nothing to test yet: half of the rows make a first solution for the others
            self.moments.learn(h[::2], y[::2])
            self._take()
            h, y = h[1::2], y[1::2]
        worse = self._test(h, y)
        self.moments.learn(h, y)
        return worse

    def _test(self, h: Tensor, y: Tensor) -> bool:
        """Rows that are not learned yet, as far as their classes are known, are a test."""
        known = self.network.known.cpu()
        mine = known[y]
        return self._trial.test(self.network.scores(h[mine].to(self._device)).cpu(), y[mine], known, self._prior())

    def _solve(self) -> None:
        self._take()
        if (best := self._trial.best) is not None:
            temperature, exponent = best
            self.network.temperature.fill_(temperature)
            self.network.prior.copy_(exponent * self._prior())
        self.version += 1
        self._since, self._new = 0, {}

    def _prior(self) -> Tensor:
        """[classes] logarithms of how often each class has come; of one that has not, of a single time."""
        counts = self.moments.counts.clamp_min(1).float()
        return (counts / counts.sum()).log()

    def _take(self) -> None:
        solution = self._solution = self._method.of(self.moments, self.ridge)
        self.network.take(solution.weight, solution.bias, solution.counts > 0)

    def size_bytes(self) -> int:
        """Also what waits to be learned, and the features' own numbers."""
        waiting = [t for pair in (*self._rows, *self._raw) for t in pair]
        return (
            module_bytes(self.network)
            + self.moments.size_bytes()
            + (self._solution.size_bytes() if self._solution else 0)
            + sum(t.numel() * t.element_size() for t in waiting)
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "identity": dict(self._identity),
            "network": self.network.learned(),
            "moments": self.moments.state_dict(),
            "solution": _solution_state(self._solution),
            "rows": _joined(self._rows),
            "raw": _joined(self._raw),
            "since": self._since,
            "new": {str(column): count for column, count in self._new.items()},
            "trial": self._trial.state_dict(),
            "version": self.version,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            StateConflict: it was learned by another method, or on other features.
        """
        network = state["network"]
        checkpoint.same(self._identity, state["identity"], f"teacher {self.key}")
        if network["weight"].shape[1] != self.network.extractor.width:
            had, has = network["weight"].shape[1], self.network.extractor.width
            raise StateConflict(
                f"it was learned on {had} random features, the configuration has {has}",
                where=f"teacher {self.key}",
                fix="go back to its channels and dense, or give it another id to begin anew",
            )
        self.network.grow(len(network["bias"]))
        self.network.load_learned(network)
        self.moments.load_state_dict(state["moments"])
        self._solution = self._restored(state["solution"])
        self._rows = [tuple(state["rows"])] if state["rows"] else []
        self._raw = [tuple(t.to(self._device) for t in state["raw"])] if state["raw"] else []
        # older states have the columns as integers
        self._since, self._new = state["since"], {int(column): count for column, count in state["new"].items()}
        self._trial.load_state_dict(state["trial"])
        self.version = state["version"]

    def _restored(self, state: dict[str, Any] | None) -> Solution | None:
        if state is None:
            return None
        counts, means = state["counts"].clone(), state["means"].clone()
        weight, bias = (t.data[: len(counts)].cpu() for t in (self.network.weight, self.network.bias))
        # by columns, as LAPACK left it: laid out by rows the same solve rounds otherwise, and with it a resumed run
        factor = unpacked(state["factor"], self.moments.width).T.contiguous().T
        return self._method(weight, bias, factor, means, counts)


def _features(options: AnalyticOptions, context: TeacherContext) -> tuple[Normalise | None, Extractor]:
    """The normalisation before the features, and the features."""
    if options.features is not None:
        model = CheckpointOptions(path=options.features, columns=options.columns, output=options.output)
        return None, extractor.network(model, context.schema, context.registry or Registry.load())
    normalise = _normalise(options.columns, context)
    normalise.fit = min(normalise.fit, FIT)
    if options.body is not None:
        about = {
            "name": options.body.name,
            "options": options.body.values,
            "dense": DENSE if options.dense is None else options.dense,
            "seed": context.student.seed,
        }
        return normalise, extractor.BodyFeatures(
            about, normalise.columns.schema.shape, context.registry or Registry.load()
        )
    return normalise, extractor.random(normalise, options.channels, options.dense, context.student.seed)


def _normalise(columns: tuple[str, ...], context: TeacherContext) -> Normalise:
    """The student's, as far as it has come; of columns of its own one that begins."""
    if columns:
        checkpoint.chosen(context.schema, columns, f"teacher {context.key}", "name columns of the stream")
        return Normalise(context.schema.model_copy(update={"student": columns}))
    normalise = Normalise(context.schema)
    normalise.load_state_dict(context.student.normalise.state_dict())
    return normalise


def _solution_state(solution: Solution | None) -> dict[str, Any] | None:
    """What of a solution the network does not hold."""
    if solution is None:
        return None
    return {"factor": packed(solution.factor), "means": solution.means, "counts": solution.counts}


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [torch.cat(part) for part in zip(*pairs, strict=True)] if pairs else []


@hookimpl
def streamkd_teachers() -> Any:
    """The analytic teacher."""
    yield TeacherKind(
        "analytic",
        AnalyticTeacher,
        AnalyticOptions,
        "LDA or ridge regression in closed form, on random features or a frozen network's",
        load=readout.load,
    )
