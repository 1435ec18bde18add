"""The gate, meta-trained by whole passes over a family of streams: ``streamkd meta-train --gate``.

    generation ─► pairs of gates, each pair on a stream of its own ─► passes ─► who did better ─► ``Evolution``
    each generation is kept in a file as soon as it is over ─► the mean of the later half ─► artefact

One step ahead says little about a thousand: here a gate is judged by what students have become at the end. Both gates
of a pair learn the same records under the same seed, so that only what differs between them tells.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator

from streamkd.cores import compute_on
from streamkd.document import Document
from streamkd.errors import StateError
from streamkd.gates.per_sample import PerSampleGate, PerSampleOptions
from streamkd.gates.prior import NAMES, GatePrior, moved
from streamkd.meta import artefact
from streamkd.meta.artefact import Artefact
from streamkd.pretraining import family, outsiders, worlds
from streamkd.pretraining.evolution import Evolution
from streamkd.records import Model
from streamkd.settings import Positive

GENERATIONS = "generations.jsonl"
FIRST, APART = 10_000, 1_000_000  # number of the family's first stream, and from seed to seed; benchmarks have low ones
LAST_LAYERS = ("0.score.2.weight", "0.score.2.bias", "0.hard.2.weight", "0.hard.2.bias")
WEIGHT = 0.5  # of the networks' last layers, for an offset of 1
Progress = Callable[[int, int], None]
Each = Callable[[Callable[["Pass"], float], Sequence["Pass"]], Iterable[float]]
"""``map``, perhaps over processes."""


class LongHorizon(Model):
    """How the gate is meta-trained; the defaults are those of the command."""

    generations: Positive = Field(default=150, description="steps of the evolution")
    pairs: Positive = Field(default=12, description="streams of a generation, each learned under two gates")
    networks: bool = Field(default=False, description="beside the prior's numbers the last layers of its two networks")
    sigma: float = Field(default=0.3, gt=0, le=2, description="how far a generation's gates stand from their mean")
    rate: float = Field(default=0.2, gt=0, le=1, description="twice how far the mean moves in a generation, at most")
    pull: float = Field(default=0.02, ge=0, le=1, description="how strongly it is drawn to where it began")
    least: Positive = Field(default=500, description="records of a stream, at least")
    most: Positive = Field(default=2_000, description="and at most")
    seed: int = Field(default=0, ge=0, lt=1 << 30)

    @model_validator(mode="after")
    def _in_order(self) -> "LongHorizon":
        if self.least > self.most:
            raise ValueError(f"least is {self.least}, more than most, {self.most}")
        return self


def plan_of(options: Mapping[str, Any]) -> LongHorizon:
    """Checked settings.

    Raises:
        ConfigError: a value that cannot be.
    """
    return Document({}).check(LongHorizon, options, "")


@dataclass(frozen=True)
class Pass:
    """One gate on one stream."""

    stream: int
    offsets: tuple[float, ...]
    records: tuple[int, int]


def meta_train(
    out: Path,
    plan: LongHorizon | None = None,
    *,
    each: Each = map,
    progress: Progress = lambda done, total: None,
) -> Artefact:
    """Meta-train the default gate and write the artefact into ``out``; what is kept there is not run again.

    ``each`` runs the passes of a generation: ``map`` here, one after another.

    Raises:
        StateError: ``out`` has generations of another plan, or cannot be written.
    """
    plan = plan or LongHorizon()
    means = [one.mean for one in _generations(out / GENERATIONS, plan, each, progress)]
    later = np.mean(means[len(means) // 2 :], axis=0).tolist()
    made = gate_of(later, _trained_on(plan))
    artefact.write(out, made)
    return made


def gate_of(offsets: Sequence[float], trained_on: dict[str, Any] | None = None) -> Artefact:
    """What a stream begins from: the prior at the first offsets, the networks' last layers at the others, if any."""
    numbers, weights = offsets[: len(NAMES)], np.array(offsets[len(NAMES) :], dtype=np.float32)
    return Artefact(
        learned_for={"gate": [{"name": "per-sample"}]},
        gate_prior=moved(GatePrior(), numbers).model_dump(),
        gate_weights=_networks(weights) if len(weights) else {},
        trained_on=trained_on or {},
    )


def _networks(last: np.ndarray) -> dict[str, torch.Tensor]:
    """The gate's networks as they begin, but for their last layers."""
    found = torch.nn.ModuleList([PerSampleGate(PerSampleOptions())]).state_dict()
    rest = WEIGHT * torch.from_numpy(last)
    for name in LAST_LAYERS:
        mine, rest = rest[: found[name].numel()], rest[found[name].numel() :]
        found[name] = mine.view_as(found[name]).clone()
    return found


def size_of(plan: LongHorizon) -> int:
    """How many numbers are learned."""
    found = torch.nn.ModuleList([PerSampleGate(PerSampleOptions())]).state_dict()
    return len(NAMES) + plan.networks * sum(found[name].numel() for name in LAST_LAYERS)


def judge(one: Pass) -> float:
    """Mean accuracy of the student and of what is served; on one thread."""
    compute_on(1)
    drawn = family.draw(one.stream, one.records)
    return family.pass_over(drawn, gate_of(one.offsets)).mean


def _generations(file: Path, plan: LongHorizon, each: Each, progress: Progress) -> Iterator[Evolution]:
    """Every generation, first those that the file has."""
    begun = Evolution((0.0,) * size_of(plan), plan.seed, plan.sigma, plan.rate, plan.pull)
    kept = _read(file, plan)
    yield from kept
    now = kept[-1] if kept else begun
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as book:
        while now.generation < plan.generations:
            progress(now.generation, plan.generations)
            gains = _gains(now, plan, each)
            now = now.told(gains)
            line = {"plan": _identity(plan), "evolution": now.as_json(), "gains": gains}
            book.write(json.dumps(line) + "\n")
            book.flush()
            yield now
    progress(now.generation, plan.generations)


def _gains(now: Evolution, plan: LongHorizon, each: Each) -> list[float]:
    """What the first gate of each pair did better than the second, on the pair's own stream."""
    first = FIRST + plan.seed * APART + now.generation * plan.pairs
    passes = [
        Pass(first + number, tuple(half.tolist()), (plan.least, plan.most))
        for number, pair in enumerate(now.candidates(plan.pairs))
        for half in pair
    ]
    said = list(each(judge, passes))
    return [one - other for one, other in zip(said[::2], said[1::2], strict=True)]


def _identity(plan: LongHorizon) -> dict[str, Any]:
    """What decides a generation: not how many there will be."""
    return plan.model_dump(mode="json", exclude={"generations"})


def _read(file: Path, plan: LongHorizon) -> list[Evolution]:
    """The generations that are kept, as many as are wanted; a line that a kill cut off is taken out.

    Raises:
        StateError: they are of another plan.
    """
    kept, whole = [], []
    for line in file.read_text("utf-8").splitlines(keepends=True) if file.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if entry["plan"] != _identity(plan):
            raise StateError(
                f"has generations of another plan, {entry['plan']}, needed {_identity(plan)}",
                where=str(file),
                fix="name another --out, or go on with the options that it was begun with",
            )
        kept.append(Evolution.from_json(entry["evolution"]))
        whole.append(line)
    if file.exists():
        file.write_text("".join(whole), "utf-8")
    return kept[: plan.generations]


@contextmanager
def processes(jobs: int) -> Iterator[Each]:
    """Here, one after another; or in so many processes."""
    if jobs == 1:
        yield map
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield pool.map


def _trained_on(plan: LongHorizon) -> dict[str, Any]:
    first = FIRST + plan.seed * APART
    return {
        "family": {
            "worlds": list(worlds.KINDS),
            "pictures": worlds.pictures_of(),
            "orders": list(family.ORDERS),
            "strangers": list(outsiders.NATURES),
            "streams": [first, first + plan.generations * plan.pairs - 1],
        },
        "plan": plan.model_dump(mode="json"),
    }
