"""Avalanche's own strategies on the same stream: the other side of the benchmarks."""

import time
import warnings

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.utils.data import TensorDataset


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
    with warnings.catch_warnings():
        # Avalanche warns of itself at every step, whatever the filters say; printing it would be timed
        warnings.showwarning = lambda *args, **more: None
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


def _dataset(x: Tensor, y: Tensor) -> AvalancheDataset:
    targets = DataAttribute(y.tolist(), "targets")
    tasks = DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True)
    return AvalancheDataset([TensorDataset(x, y)], data_attributes=[targets, tasks])
