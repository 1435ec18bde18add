"""Pools in which a gate has something to decide: one stream, a base pool, and what each scenario changes.

    clean               the base pool: the moving average and the remembered logits
    permuted-teacher    and a good teacher whose answers stand in the wrong columns: sure of itself, and wrong
    random-teacher      and a network that was never trained: near chance, and a little sure of itself
    label-noise         the base pool; 30 % of the training labels are changed within their task
    coverage-hole       and a teacher that is right on half of the classes and permuted on the others
    partial-teacher     and a good teacher that knows half of the classes and no others
    growth              the base pool and a snapshot after each of many tasks, up to sixteen
    experts             and one teacher for each task, right on its classes and permuted on all others

The base pool leaves the analytic teacher out: it is good everywhere, and beside it no other teacher's fault would be
seen. Teachers from outside are trained on the stream's training records, in the order of no task.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamkd.bench import streams, unordered
from streamkd.bench.streams import Tree
from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.plugins import Registry
from streamkd.pretraining.synthetic import SyntheticTeacher
from streamkd.teachers.teacher import TeacherContext
from streamkd.wiring import student_of

BASE: tuple[Tree, ...] = ({"name": "ema"}, {"name": "memory"})
NOISE = 0.3
GROWN = 16
EPOCHS = 5
OPTIMIZER = {"optimizer": "adam", "learning_rate": 1e-3}
SURE = 10.0  # what an untrained network's logits are multiplied by: it says 0.3 of its first choice


def _outside(nature: str, task: int = 0) -> Tree:
    return {"name": "outside", "id": f"{nature}-{task}", "nature": nature, "task": task}


def scenarios(tasks: int) -> dict[str, tuple[Tree, ...]]:
    """The teachers beside the base pool, for a stream of so many tasks."""
    return {
        "clean": (),
        "permuted-teacher": (_outside("permuted"),),
        "random-teacher": (_outside("random"),),
        "label-noise": (),
        "coverage-hole": (_outside("half"),),
        "partial-teacher": (_outside("partial"),),
        "growth": ({"name": "snapshot", "limit": GROWN},),
        "experts": tuple(_outside("expert", task) for task in range(tasks)),
    }


NAMES = tuple(scenarios(1))


def tree(scenario: str, stream: str, chosen_on: bool = False, tasks: int = 5) -> Tree:
    """The configuration of a scenario on a stream, its gate still the default."""
    made = streams.tree(stream, chosen_on)
    source = made["stream"]["source"]
    source["name"] = "replay"
    if scenario == "label-noise":
        source["label_noise"] = NOISE
    if scenario == "growth":
        source["variations"] = ["plain", "rotate-90", "invert", "rotate-180"]
    made["stream"]["source"] = source
    made["teachers"] = [*BASE, *scenarios(tasks)[scenario]]
    made["pool"] = {"limit": 20}
    return made


class OutsideOptions(Options):
    """A teacher of a scenario."""

    nature: Literal["permuted", "random", "half", "partial", "expert"] = Field(
        default="permuted", description="what it is"
    )
    task: int = Field(default=0, ge=0, description="the task of an expert")


def registry_for(made: Tree, seed: int) -> Registry:
    """All plugins, and the teachers ``outside`` of this stream under this seed."""
    registry = Registry.load()

    def make(options: OutsideOptions, context: TeacherContext) -> SyntheticTeacher:
        return _teacher(options, context, made, seed)

    @hookimpl
    def streamkd_teachers() -> Sequence[Kind]:
        return [Kind("outside", make, OutsideOptions, "a teacher of a scenario")]

    registry.register(SimpleNamespace(streamkd_teachers=streamkd_teachers), "scenarios")
    return registry


def _teacher(options: OutsideOptions, context: TeacherContext, made: Tree, seed: int) -> SyntheticTeacher:
    # what decides the networks, whatever gate they are heard through: one training serves all policies
    source = {**made["stream"]["source"], "label_noise": 0.0}
    plain = {key: made[key] for key in ("name", "device", "student")} | {"teachers": list(BASE)}
    plain["stream"] = {**made["stream"], "source": source}
    network, untrained, tasks, classes = _networks(json.dumps(plain), seed)
    columns = torch.arange(classes)
    generator = torch.Generator().manual_seed(seed)
    wrong, unknown = torch.randperm(classes, generator=generator), []
    if options.nature == "half":
        wrong = wrong[: classes // 2]
    elif options.nature == "partial":
        unknown, wrong = wrong[: classes // 2].tolist(), wrong[:0]
    elif options.nature == "expert":
        mine = set(tasks[options.task])
        wrong = torch.tensor([c for c in wrong.tolist() if c not in mine])
    if options.nature != "random":
        columns[wrong] = columns[wrong].roll(1)
    answers = untrained if options.nature == "random" else network
    return SyntheticTeacher(context.key, answers, columns.tolist(), len(context.labels), unknown)


@lru_cache(maxsize=16)
def _networks(tree: str, seed: int) -> tuple[Any, Any, list[list[int]], int]:
    """One trained on all training records, one that never was, each task's columns, how many there are.

    ``tree`` is JSON, by which the cache knows it.
    """
    registry = Registry.load()
    config = streams.config_of(json.loads(tree), registry, seed)
    data = streams.arrays(config, registry)
    x, y = torch.cat([part.x for part in data.train]), torch.cat([part.y for part in data.train])
    network = student_of(config, registry, data.schema, len(data.labels))
    untrained = student_of(config.model_copy(update={"seed": seed + 1}), registry, data.schema, len(data.labels))
    unordered.train(x, y, network, 32, EPOCHS, OPTIMIZER, seed)

    def sure(rows: Tensor) -> Tensor:
        return SURE * untrained(rows)

    return network.eval(), sure, [sorted(set(part.y.tolist())) for part in data.train], len(data.labels)
