"""Efficiency: counts that can be done by hand, and timings that are timings."""

import time

import pytest
import torch
from torch import nn

from streamkd.evaluate.efficiency import flops, latency, measure, parameters, percentiles
from streamkd.teachers.teacher import module_bytes

torch.set_num_threads(1)


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def test_parameters_and_bytes_of_a_perceptron() -> None:
    """784-256-256-10 with biases, four bytes each."""
    expected = 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    assert parameters(_mlp()) == expected
    assert module_bytes(_mlp()) == 4 * expected


def test_shared_parameters_count_once_and_buffers_have_bytes() -> None:
    """A tied layer is one layer; running statistics are kept but not learned."""
    layer = nn.Linear(3, 3)
    assert parameters(nn.Sequential(layer, layer)) == 12
    norm = nn.BatchNorm1d(4)
    assert parameters(norm) == 8
    assert module_bytes(norm) == 4 * (8 + 8) + 8


def test_flops_are_two_per_multiply_add() -> None:
    """A perceptron's matrix products, by hand, for one record."""
    expected = 2 * (784 * 256 + 256 * 256 + 256 * 10)
    assert flops(_mlp(), torch.zeros(1, 784)) == expected
    assert flops(_mlp(), torch.zeros(3, 784)) == 3 * expected


def test_flops_of_a_convolution() -> None:
    """2 · out · in · kernel² · positions."""
    assert flops(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10)) == 2 * 8 * 3 * 9 * 100


def test_latency_measures_the_call() -> None:
    """A call that sleeps 2 ms takes at least that, and the 95th percentile is not below the median."""
    p50, p95 = latency(lambda _: time.sleep(0.002), torch.zeros(1), seconds=0.05)
    assert 0.002 <= p50 <= p95


def test_percentiles_of_known_timings() -> None:
    """The median of 1 to 101 is 51, the 95th percentile 96."""
    assert percentiles([float(n) for n in range(1, 102)]) == pytest.approx((51.0, 96.0))


def test_measure_gives_the_reports_object_and_leaves_the_student_as_it_was() -> None:
    """Both batch sizes in eager form; weights, gradients and training mode are untouched."""
    student = _mlp()
    student.train()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    found = measure(student, torch.zeros(5, 784), seconds=0.02)
    assert set(found) == {"parameters", "bytes", "flops", "latency_seconds"}
    assert [(one["form"], one["batch"]) for one in found["latency_seconds"]] == [("eager", 1), ("eager", 32)]
    assert found["flops"] == 2 * (784 * 256 + 256 * 256 + 256 * 10)
    assert student.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
