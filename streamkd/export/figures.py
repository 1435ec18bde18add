"""What an export costs and is worth beside its version: a row for each form, over the same records.

version (torch), float32, int8 ─► answers to the same records ─► accuracy, agreement, greatest difference
                               └► in turns ─► latency
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from streamkd import extras
from streamkd.evaluate import efficiency
from streamkd.export.evidence import Evidence
from streamkd.teachers.teacher import module_bytes

Answer = Callable[[np.ndarray], np.ndarray]
BATCHES = (1, 32)
COMPARED = (1, 7, 64)  # rows of a call: a graph that was made for one number of them fails at another
CHUNK = 512  # records that are answered together
ROUNDS, SECONDS = 5, 0.1  # in which the forms are timed in turns, so that a busy machine is busy for all of them


def eager(model: nn.Module) -> Answer:
    """The version's own answers: probabilities [n, labels]."""

    @torch.inference_mode()
    def answer(records: np.ndarray) -> np.ndarray:
        return torch.softmax(model(torch.from_numpy(records)), 1).numpy()

    return answer


def quality(answer: Answer, wanted: np.ndarray, evidence: Evidence) -> dict[str, Any]:
    """``accuracy`` where labels are known, else ``None``; ``agreement`` and ``greatest_difference`` with ``wanted``.

    ``wanted`` are the version's probabilities [n, labels].
    """
    found, told = answers(answer, evidence.x), evidence.y >= 0
    sizes = [np.abs(answer(evidence.x[:size]) - wanted[:size]).max() for size in COMPARED]
    return {
        "accuracy": float((found.argmax(1) == evidence.y)[told].mean()) if told.any() else None,
        "agreement": float((found.argmax(1) == wanted.argmax(1)).mean()),
        "greatest_difference": float(max(np.abs(found - wanted).max(), *sizes)),
    }


def answers(answer: Answer, x: np.ndarray) -> np.ndarray:
    """Probabilities [n, labels] of any number of records."""
    return np.concatenate([answer(x[begin : begin + CHUNK]) for begin in range(0, len(x), CHUNK)])


def latencies(forms: Mapping[str, Answer], x: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """By form the p50 and p95 of seconds a call, at each of ``BATCHES``: of its best round, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timed = [_timed(forms, x, batch) for batch in BATCHES]
        return {form: [rows[form] for rows in timed] for form in forms}
    finally:
        torch.set_num_threads(threads)


def _timed(forms: Mapping[str, Answer], x: np.ndarray, batch: int) -> dict[str, dict[str, Any]]:
    rows = torch.from_numpy(np.ascontiguousarray(x[np.arange(batch) % len(x)]))
    best = dict.fromkeys(forms, (np.inf, np.inf))
    for _ in range(ROUNDS):
        for form, answer in forms.items():
            best[form] = min(best[form], efficiency.latency(_of_tensor(answer), rows, seconds=SECONDS))
    return {form: {"batch": batch, "p50": p50, "p95": p95} for form, (p50, p95) in best.items()}


def _of_tensor(answer: Answer) -> Callable[[torch.Tensor], np.ndarray]:
    return lambda rows: answer(rows.numpy())


def cost(model: nn.Module, x: np.ndarray) -> dict[str, int]:
    """Of the version: all numbers that it is made of, drawn ones too, their bytes, and operations for one record."""
    with torch.inference_mode():
        flops = efficiency.flops(model, torch.from_numpy(x[:1]))
    numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    return {"parameters": numbers, "bytes": module_bytes(model), "flops": flops}


def graph_cost(path: Path, flops: int) -> dict[str, int]:
    """Of a graph, which has the version's operations: the numbers in it, and the bytes of its file."""
    onnx = extras.load("onnx", "streamkd export")
    numbers = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)
    return {"parameters": numbers, "bytes": path.stat().st_size, "flops": flops}
