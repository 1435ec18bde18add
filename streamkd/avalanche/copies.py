"""Copies of any module: frozen ones, and moving averages that follow a network whose head may grow.

The learner's own students know how to grow (``students``); a network of somebody else's is met here as tensors by
name. A tensor that has grown keeps its old values in its leading corner, the rest begins as the network has it.
"""

import copy

import torch
from torch import Tensor, nn


def frozen(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares no tensor with the original and never asks for a gradient."""
    return copy.deepcopy(module).eval().requires_grad_(False)


class MovingAverage:
    """θ' ← d·θ' + (1-d)·θ after each step, with d = min(decay, (1+t)/(10+t)) so that the start is forgotten.

    Mean teacher, Tarvainen & Valpola 2017, equation 1. Buffers are copied. ``fit`` takes in what has grown.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.module = frozen(module)

    def fit(self, module: nn.Module) -> None:
        """Take the form of a module that has got new or larger tensors."""
        old, new = _tensors(self.module), _tensors(module)
        if {name: t.shape for name, t in old.items()} == {name: t.shape for name, t in new.items()}:
            return
        self.module = frozen(module)
        for name, tensor in _tensors(self.module).items():
            if name in old and old[name].dim() == tensor.dim():
                corner = tuple(slice(min(a, b)) for a, b in zip(old[name].shape, tensor.shape, strict=True))
                tensor[corner] = old[name][corner]

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Take a step towards the module."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_([*self.module.parameters()], [p.detach() for p in module.parameters()], 1 - decay)
        for ours, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            ours.copy_(theirs)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
