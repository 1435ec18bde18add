"""Accuracy over its price: the plain loops by their formulas, bytes by hand, and who is better in all three."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamkd.bench import frontier, gears, plain_replay, scatter
from streamkd.bench.plain_replay import ClassBuffer
from streamkd.replay.table import StoredRows
from streamkd.state.tree import pack


def filled(capacity: int, labels: list[int]) -> ClassBuffer:
    """A memory that was offered rows of these labels, each its number."""
    x, y = torch.arange(float(len(labels))).unsqueeze(1), torch.tensor(labels)
    buffer = ClassBuffer(capacity, x, 3, 0)
    buffer.offer(x, y, torch.zeros(len(y), 3))
    return buffer


def test_every_class_has_its_share_of_the_memory() -> None:
    """Ninety of one, then ten of another, then three of a third: of twelve places each has what it may."""
    buffer = filled(12, [0] * 90 + [1] * 10 + [2] * 3)
    counts = torch.bincount(buffer.y[: buffer.filled]).tolist()
    assert (sum(counts), counts[2]) == (12, 3)
    assert abs(counts[0] - counts[1]) <= 1
    assert (buffer.x.squeeze(1).long() >= torch.tensor([0, 90, 100])[buffer.y]).all()


def test_within_a_class_it_is_a_reservoir() -> None:
    """Early and late rows of one class are kept alike."""
    many = torch.stack([_kept(seed) for seed in range(200)])
    assert abs(float(many.mean()) - 49.5) < 3


def _kept(seed: int) -> torch.Tensor:
    x = torch.arange(100.0).unsqueeze(1)
    buffer = ClassBuffer(10, x, 1, seed)
    buffer.offer(x, torch.zeros(100, dtype=torch.int64), torch.zeros(100, 1))
    return buffer.x


@pytest.mark.parametrize("name", plain_replay.NAMES)
def test_a_loss_is_its_formula(name: str) -> None:
    """In float64, row by row."""
    torch.manual_seed(0)
    network, buffer = nn.Linear(1, 3).double(), filled(4, [0, 0, 1, 2])
    buffer.x, buffer.logits = buffer.x.double(), torch.randn(4, 3).double()
    x, y = torch.randn(2, 1).double(), torch.tensor([1, 2])
    loss, _ = plain_replay.LOSSES[name](network, x, y, buffer, 4)
    fresh, kept = network(x), network(buffer.x)
    if name == "replay":
        wanted = F.cross_entropy(torch.cat([fresh, kept]), torch.cat([y, buffer.y]))
    elif name == "er-ace":
        wanted = F.cross_entropy(fresh[:, 1:], y - 1) + F.cross_entropy(kept, buffer.y)
    else:
        wanted = (
            F.cross_entropy(fresh, y)
            + 0.5 * ((kept - buffer.logits) ** 2).mean()
            + 0.5 * F.cross_entropy(kept, buffer.y)
        )
    torch.testing.assert_close(loss, wanted)


def test_bytes_are_those_of_memory_network_and_optimiser() -> None:
    """Five rows of three bytes and a label, eight numbers, and Adam's two moments and count of each tensor."""
    x, y = torch.zeros(20, 3, dtype=torch.uint8), torch.arange(20) % 2
    network = nn.Sequential(_Float(), nn.Linear(3, 2))
    adam = torch.optim.Adam(network.parameters())
    spent = plain_replay.train("replay", x, y, network, adam, batch=5, replay=2, memory=5, seed=0)
    assert spent.bytes == 5 * (3 + 8) + 8 * 4 * 3 + 2 * 4
    assert spent.seconds > 0


class _Float(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def row(accuracy: float, seconds: float, size: int) -> dict[str, Any]:
    return {"accuracy": accuracy, "seconds_a_record": seconds, "bytes": size}


def test_the_rows_of_a_large_memory_count() -> None:
    """What a checkpoint would have in files of its own is among the bytes of a state."""
    rows = StoredRows({"x": torch.zeros(1_000, 3_000, dtype=torch.uint8), "y": torch.zeros(1_000)})
    assert 3_004_000 < frontier._size(pack({"memory": rows})) < 3_005_000


def test_better_is_who_is_better_in_all_three() -> None:
    """More accuracy alone is not enough, nor as much for less; beyond the standard error it is."""
    lines: Mapping[str, Any] = {
        "dear": [row(0.9, 3.0, 100), row(0.92, 3.0, 100)],
        "cheap": [row(0.8, 1.0, 10), row(0.82, 1.0, 10)],
        "worse": [row(0.7, 2.0, 50), row(0.72, 2.0, 50)],
        "hardly": [row(0.8, 2.0, 50), row(0.81, 2.0, 50)],
    }
    ahead = {line: frontier.ahead_of(line, lines) for line in lines}
    assert ahead == {"dear": [], "cheap": [], "worse": ["cheap", "hardly"], "hardly": []}


def test_a_small_frontier_is_measured_kept_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, loops and the closed form on digits: accuracies and prices of each, once; a second call runs nothing."""
    monkeypatch.setattr(gears, "GEARS", {"": gears.GEARS[", average alone"]})
    monkeypatch.setattr(frontier, "REPLAYED", (10,))
    told: list[tuple[int, int]] = []
    result = frontier.measure(["digits"], [0], tmp_path, progress=lambda done, of: told.append((done, of)))
    again = frontier.measure(["digits"], [0], tmp_path)
    assert again["figures"] == result["figures"]
    figures = result["figures"]
    assert figures["digits.closed form"] > 0.9 > figures["digits.replay, 10 replayed, our records"] > 0.3
    assert all(figures[f"digits.{line}.us"] > 10 for line in ("streamkd", "closed form"))
    ours, theirs = (figures[f"digits.{line}.mb"] for line in ("streamkd", "replay, 10 replayed, our bytes"))
    assert theirs <= ours + 0.3  # its network and moments come on top of the rows
    (head, lines) = frontier.tables(result["rows"])["digits"]
    assert head[0] == "digits"
    assert {line[0] for line in lines} >= {"streamkd", "streamkd: student", "closed form", "closed form, ridge"}
    (plot,) = scatter.write(frontier.points(result["rows"]), tmp_path)
    assert plot.read_text().count("<circle") == 2 * len(lines)
