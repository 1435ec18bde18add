"""The analytic teacher: linear discriminant analysis on fixed random features, learned from the stream in closed form.

    fresh labelled rows ─► features ─► block of rows ─► class means, scatter ─► (now and then) solve ─► logits

It sees each record once, forgets nothing, needs no memory and no gradient (Hayes & Kanan 2020, streaming LDA): with
class means μ_c and the covariance Σ within the classes, all classes being equally likely beforehand,

    logit_c(h) = (μ_cᵀ Σ'⁻¹ h - ½ μ_cᵀ Σ'⁻¹ μ_c) / τ,    Σ' = Σ + ridge · mean(diag Σ) · I

τ is the temperature whose likelihood was best on rows that had not been learned yet. The answers change only when
the system is solved anew, so the pool keeps them like a frozen teacher's (role ``settled``).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from streamkd.distill.discriminant import Discriminant, Solution, packed, unpacked
from streamkd.distill.randomfeatures import RandomFeatures, is_image
from streamkd.distill.students import Normalise
from streamkd.distill.teachers import Role, TeacherContext, layer_outputs, module_bytes
from streamkd.errors import StateConflict
from streamkd.hookspecs import Kind, Options, hookimpl

BLOCK = 256  # rows that are learned at once
FEW, MORE = 8, 4  # records after which a new class is solved for; again when so many times as many have come,
YOUNG = 32  # while it had fewer than these
FIT = 1_024  # records after which a normalisation that is fitted to the stream is good enough for the features
RECENT = 512  # records after which what a temperature was worth counts half
USUAL = 2_048  # the same for how often it is right
TEMPERATURES = tuple(2.0 ** (k / 2) for k in range(17))  # 1 ... 256: what is learned is never too modest


class AnalyticOptions(Options):
    """Linear discriminant analysis on random features."""

    channels: int = Field(default=64, ge=0, le=1_024, description="random 5×5 filters where the input is an image")
    dense: int | None = Field(
        default=None,
        ge=0,
        le=8_192,
        description="random features of the whole input; None: 512 beside filters, else 1000",
    )
    ridge: float = Field(default=1e-3, gt=0, description="regularisation, relative to a feature's mean variance")


class Analytic(nn.Module):
    """Raw inputs [batch, *shape] to logits [batch, classes]: normalisation, random features, and what was solved.

    ``known`` [classes] is where there is a solution; the other logits are 0.
    """

    known: Tensor
    temperature: Tensor

    def __init__(self, normalise: Normalise, random: RandomFeatures, classes: int) -> None:
        super().__init__()
        self.normalise, self.random = normalise, random
        self.weight = nn.Parameter(torch.zeros(classes, random.width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(classes), requires_grad=False)
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        return self.answers(self.features(x))

    def features(self, x: Tensor) -> Float[Tensor, "batch features"]:
        """Random features of raw inputs."""
        return self.random(self.normalise(x))

    def answers(self, h: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of features, the largest of a row 0: they are kept in float16."""
        logits = torch.addmm(self.bias, h, self.weight.T) / self.temperature
        top = logits.masked_fill(~self.known, torch.finfo(logits.dtype).min).amax(1, keepdim=True)
        return (logits - top).masked_fill_(~self.known, 0.0)

    @property
    def classes(self) -> int:
        """How many classes it has logits for, known or not."""
        return len(self.bias)

    def grow(self, classes: int) -> None:
        """More classes, unknown so far."""
        more = (0, classes - self.classes)
        self.take(F.pad(self.weight.data, (0, 0, *more)), F.pad(self.bias.data, more), F.pad(self.known, more))

    def take(self, weight: Tensor, bias: Tensor, known: Tensor) -> None:
        """A new solution."""
        self.weight.data, self.bias.data = weight.to(self.weight.device), bias.to(self.bias.device)
        self.known = known.to(self.known.device)


class AnalyticTeacher:
    """``Discriminant`` on ``RandomFeatures`` of normalised inputs, solved when a sixteenth more has been learned.

    It knows the classes that were there when it was last solved. While the student's normalisation is still being
    fitted, rows wait as they are, for at most ``FIT`` records.
    """

    role: Role = "settled"
    fresh = True

    def __init__(self, options: AnalyticOptions, context: TeacherContext) -> None:
        self.key = context.key
        self.version = 0
        self.ridge = options.ridge
        self._device = context.device
        normalise = Normalise(context.schema)
        normalise.load_state_dict(context.student.normalise.state_dict())
        normalise.fit = min(normalise.fit, FIT)
        shape = normalise.columns.schema.shape
        channels = options.channels if is_image(shape) else 0
        dense = options.dense if options.dense is not None else 512 if channels else 1_000
        random = RandomFeatures(shape, channels, dense, context.student.seed)
        self.network = Analytic(normalise, random, len(context.labels)).to(self._device)
        self.discriminant = Discriminant(random.width, len(context.labels))
        self._rows: list[tuple[Tensor, Tensor]] = []  # features and columns, not yet learned
        self._raw: list[tuple[Tensor, Tensor]] = []  # inputs that wait for the normalisation
        self._since = 0  # records since the last solution, waiting ones included
        self._new: dict[int, int] = {}  # records of each class since the last solution
        self._surprise = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
        self._right: float | None = None  # of rows that were not learned yet
        self._solution: Solution | None = None
        self._asked: tuple[Tensor, Tensor] | None = None  # the last rows asked about, and their features

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        if not self.version:
            return torch.zeros(len(x), self.network.classes, device=x.device)
        with torch.no_grad():
            self._asked = (x, self.network.features(x))
            return self.network.answers(self._asked[1])

    def recall(self, x: Tensor, y: Tensor) -> Float[Tensor, "batch classes"]:
        """Logits on remembered rows x of columns y, each as if it alone had not been learned: what was learned it would
        know by heart, and could not teach what it is like.
        """
        if self._solution is None:
            return self.logits(x)
        with torch.no_grad():
            left = self._solution.left_out(self.network.features(x).cpu(), y.cpu()).to(x.device)
            return left / self.network.temperature

    def _features_again(self, x: Tensor) -> Tensor:
        """A step asks about its fresh rows before it shows them: the same memory, so the same rows."""
        asked, self._asked = self._asked, None
        if asked is not None and asked[0].data_ptr() == x.data_ptr() and asked[0].shape == x.shape:
            return asked[1]
        return self.network.features(x)

    def known(self) -> Bool[Tensor, "classes"]:
        return self.network.known

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        with torch.no_grad():
            return layer_outputs(self.network, x, layers)

    def grow(self, labels: Sequence[Any]) -> None:
        self.network.grow(len(labels))
        self.discriminant.grow(len(labels))
        if self._solution is not None:
            self._solution = self._solution.grown(len(labels))

    def after_step(self, student: Any) -> None: ...

    @torch.no_grad()
    def observe(self, x: Tensor, y: Tensor) -> None:
        """Learn a step's fresh labelled rows: raw inputs [n, *shape], columns y [n]; solve anew when that is due."""
        if self._fitting():
            x, y = self._wait(x, y)
        if not len(y):
            return
        self._rows.append((self._features_again(x).cpu(), y.cpu()))
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
        self.network.normalise.observe(x)
        self._raw.append((x.clone(), y.clone()))
        if self._fitting():
            return x[:0], y[:0]
        x, y = (torch.cat(part) for part in zip(*self._raw, strict=True))
        self._raw = []
        return x, y

    def _fitting(self) -> bool:
        return int(self.network.normalise.count) < self.network.normalise.fit

    def _due(self) -> bool:
        """A sixteenth more than at the last solution, or enough of a young class and not just solved."""
        known = self.discriminant.records
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
            self.discriminant.learn(h[::2], y[::2])
            self._take()
            h, y = h[1::2], y[1::2]
        worse = self._test(h, y)
        self.discriminant.learn(h, y)
        return worse

    def _test(self, h: Tensor, y: Tensor) -> bool:
        """Each temperature's surprise at rows that are not learned yet, as far as their classes are known.

        ``True`` where a tenth fewer were right than usual: what comes now is not what was learned.
        """
        known = self.network.known.cpu()
        mine = known[y]
        rows = int(mine.sum())
        if not rows:
            return False
        answers = self.network.answers(h[mine].to(self._device)) * self.network.temperature
        logits = answers.cpu().double().masked_fill(~known, -torch.inf)
        surprise = [F.cross_entropy(logits / t, y[mine], reduction="sum") for t in TEMPERATURES]
        self._surprise = 0.5 ** (rows / RECENT) * self._surprise + torch.stack(surprise)
        right = float((logits.argmax(1) == y[mine]).double().mean())
        usual = right if self._right is None else self._right
        self._right = right + 0.5 ** (rows / USUAL) * (usual - right)
        return right < 0.9 * usual

    def _solve(self) -> None:
        self._take()
        if self._surprise.any():
            self.network.temperature.fill_(TEMPERATURES[int(self._surprise.argmin())])
        self.version += 1
        self._since, self._new = 0, {}

    def _take(self) -> None:
        solution = self._solution = self.discriminant.solve(self.ridge)
        self.network.take(solution.weight, solution.bias, solution.counts > 0)

    def size_bytes(self) -> int:
        """Also what waits to be learned, and the features' own numbers."""
        waiting = [t for pair in (*self._rows, *self._raw) for t in pair]
        return (
            module_bytes(self.network)
            + self.discriminant.size_bytes()
            + (self._solution.size_bytes() if self._solution else 0)
            + sum(t.numel() * t.element_size() for t in waiting)
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "discriminant": self.discriminant.state_dict(),
            "solution": _solution_state(self._solution),
            "rows": _joined(self._rows),
            "raw": _joined(self._raw),
            "since": self._since,
            "new": dict(self._new),
            "surprise": self._surprise,
            "right": self._right,
            "version": self.version,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            StateConflict: it was learned on other features.
        """
        network = state["network"]
        if network["weight"].shape[1] != self.network.random.width:
            had, has = network["weight"].shape[1], self.network.random.width
            raise StateConflict(
                f"it was learned on {had} random features, the configuration has {has}",
                where=f"teacher {self.key}",
                fix="go back to its channels and dense, or give it another id to begin anew",
            )
        self.network.grow(len(network["bias"]))
        self.network.load_state_dict(network)
        self.discriminant.load_state_dict(state["discriminant"])
        self._solution = self._restored(state["solution"])
        self._rows = [tuple(state["rows"])] if state["rows"] else []
        self._raw = [tuple(t.to(self._device) for t in state["raw"])] if state["raw"] else []
        self._since, self._new = state["since"], dict(state["new"])
        self._surprise, self._right = state["surprise"].clone(), state["right"]
        self.version = state["version"]

    def _restored(self, state: dict[str, Any] | None) -> Solution | None:
        if state is None:
            return None
        counts, means = state["counts"].clone(), state["means"].clone()
        weight, bias = (t.data[: len(counts)].cpu() for t in (self.network.weight, self.network.bias))
        return Solution(weight, bias, unpacked(state["factor"], self.network.random.width), means, counts)


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
    yield Kind("analytic", AnalyticTeacher, AnalyticOptions, "linear discriminant analysis on random features")
