"""Avalanche's own strategies on the same stream: the other side of the benchmarks.

``online_replay`` is timed by ``bench speed``; ``STRATEGIES`` are trained by ``bench learning``, an experience for each
task, one epoch of mini-batches of the same size. LaMAML is Avalanche's second one: its first needs ``higher``, which
no longer builds.
"""

import copy
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.benchmarks.utils.utils import as_taskaware_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
from avalanche.training.supervised import DER, ER_ACE, Naive
from avalanche.training.supervised.der import compute_dataset_logits
from avalanche.training.supervised.lamaml_v2 import LaMAML
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from streamkd.bench.unordered import Settings, optimizer


def online_replay(
    x: Tensor,
    y: Tensor,
    network: nn.Module,
    *,
    task_records: int,
    batch: int,
    replay: int,
    memory: int,
    learning_rate: float,
) -> float:
    """``split_online_stream`` with ``ReplayPlugin`` over a reservoir, as its users write it; records per second.

    x [n, features] float32, y [n], a task every ``task_records``. One experience of ``batch`` records at a time,
    ``replay`` remembered ones beside.
    """
    with _unheard():  # printing its warnings would be timed
        datasets = [_dataset(*task) for task in zip(x.split(task_records), y.split(task_records), strict=True)]
        stream = benchmark_from_datasets(train=datasets).train_stream
        plugin = ReplayPlugin(
            mem_size=memory,
            batch_size=batch,
            batch_size_mem=replay,
            storage_policy=ReservoirSamplingBuffer(max_size=memory),
        )
        strategy = Naive(
            model=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=learning_rate),
            train_mb_size=batch,
            plugins=[plugin],
            # the accuracy of each mini-batch, as our learner measures it too; nothing is printed
            evaluator=EvaluationPlugin(accuracy_metrics(minibatch=True), loggers=[BaseLogger()], collect_all=False),
        )
        online = split_online_stream(stream, experience_size=batch, access_task_boundaries=False)
        begun = time.perf_counter()
        for experience in online:
            strategy.train(experience, eval_streams=[])
        return len(y) / (time.perf_counter() - begun)


STRATEGIES = ("fine-tuning", "replay", "er-ace", "der", "der-balanced", "lwf", "ewc", "lamaml")
"""By name; DER is DER++."""


@dataclass(frozen=True)
class RunBudget:
    """What every side gets: records of a batch, remembered records in all."""

    batch: int
    memory: int


class Network(nn.Module):
    """Any classifier as Avalanche calls it, with task labels or without; they are not looked at."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, task_labels: Tensor | None = None) -> Tensor:
        return self.body(x)


def train(
    name: str,
    tasks: Sequence[tuple[Tensor, Tensor]],
    network: nn.Module,
    budget: RunBudget,
    settings: Settings,
    seed: int,
    after: Callable[[nn.Module], None],
) -> None:
    """One pass of a strategy of ``STRATEGIES`` over tasks (x [n, ...], y [n]); ``after`` each task it sees the network.

    The order of tasks is the stream's; within a task Avalanche's own loader shuffles.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    model = Network(copy.deepcopy(network))
    with _unheard():
        stream = with_classes_timeline(
            benchmark_from_datasets(train=[as_taskaware_classification_dataset(_dataset(x, y)) for x, y in tasks])
        ).train_stream
        strategy = _strategy(name, model, budget, settings)
        for experience in stream:
            strategy.train(experience, eval_streams=[])
            after(model)


def _strategy(name: str, model: nn.Module, budget: RunBudget, settings: Settings) -> Any:
    """One of ``STRATEGIES``; its memory, where it has one, replays ``settings["replay"]`` records a batch."""
    common = {
        "model": model,
        "optimizer": optimizer(model, settings),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": budget.batch,
        "train_epochs": 1,
        "evaluator": EvaluationPlugin(loggers=[BaseLogger()], collect_all=False),
    }
    match name:
        case "replay":
            memory, policy = budget.memory, ClassBalancedBuffer(budget.memory)
            plugin = ReplayPlugin(
                memory, batch_size=budget.batch, batch_size_mem=settings["replay"], storage_policy=policy
            )
            return Naive(**common, plugins=[plugin])
        case "er-ace":
            return ER_ACE(**common, mem_size=budget.memory, batch_size_mem=settings["replay"])
        case "der" | "der-balanced":
            weights = {"alpha": settings["alpha"], "beta": settings["beta"]}
            made = DER(**common, mem_size=budget.memory, batch_size_mem=settings["replay"], **weights)
            if name == "der":  # over a reservoir, as in its paper; Avalanche's own buffer is balanced by class
                made.storage_policy = ReservoirWithLogits(budget.memory)
            return made
        case "lwf":
            return Naive(**common, plugins=[LwFPlugin(settings["alpha"], 2.0)])
        case "ewc":
            return Naive(**common, plugins=[EWCPlugin(settings["strength"])])
        case "lamaml":
            sizes = {"max_buffer_size": budget.memory, "buffer_mb_size": settings["replay"]}
            return LaMAML(**common, alpha_init=settings["alpha"], **sizes)
    return Naive(**common)


class ReservoirWithLogits(ReservoirSamplingBuffer):
    """A reservoir whose records carry the model's logits, as ``ClassBalancedBufferWithLogits`` has them."""

    def update(self, strategy: Any, **kwargs: Any) -> None:
        data = strategy.experience.dataset
        logits = compute_dataset_logits(data.eval(), strategy.model, strategy.train_mb_size, strategy.device)
        kept = FlatData([logits], discard_elements_not_in_indices=True)
        attribute = TensorDataAttribute(kept, name="logits", use_in_getitem=True)
        self.update_from_dataset(make_avalanche_dataset(data, data_attributes=[attribute]))


@contextmanager
def _unheard() -> Iterator[None]:
    """Avalanche warns of itself at every step, whatever the filters say."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda *args, **more: None
        yield


def _dataset(x: Tensor, y: Tensor) -> AvalancheDataset:
    targets = DataAttribute(y.tolist(), "targets")
    tasks = DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True)
    return AvalancheDataset([TensorDataset(x, y)], data_attributes=[targets, tasks])
