"""A learner on a drawn stream, with a forest among its teachers and without: how near the student comes to it.

    python plugins/streamkd-river/distillation.py agrawal --records 20000

Everybody is judged on each record as it comes, labels at once, batches of ten (as in ``streamkd bench drift``); the
seconds are those of the process. Answers are timed at the end, ten rows at a time.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from streamkd_river import teacher

from streamkd import config as configuration
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.students.networks import at_rest
from streamkd.wiring import open_source, schema_of

FOREST = {"name": "river", "id": "forest", "model": "forest.ARFClassifier"}
TIMED = 100  # answers of which the seconds are the mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a table for each of the two learners."""
    parser = argparse.ArgumentParser(prog="python plugins/streamkd-river/distillation.py", description=__doc__)
    parser.add_argument("stream", help="a drawn stream, as `replay` names it: agrawal, ...")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    registry = Registry.load()
    if "river" not in registry.names("teachers"):
        registry.register(teacher, "river", "streamkd-river")
    _line("teachers", "who", "accuracy", "µs to answer")
    _line(*["---"] * 4)
    for about, teachers in (("default", []), ("default and forest", [FOREST])):
        learner = learner_of(registry, chosen.stream, chosen.records, chosen.seed, teachers)
        right, seconds = run(learner)
        spent = answering(learner)
        for name, accuracy in right.items():
            _line(about, name, f"{accuracy:.3f}", f"{1e6 * spent[name]:.0f}" if name in spent else "–")
        _line(about, "µs of CPU a record, in all", "", f"{1e6 * seconds:.0f}")


def _line(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


def learner_of(registry: Registry, stream: str, records: int, seed: int, teachers: Sequence[dict[str, Any]]) -> Learner:
    """With the default teachers and these, the student of ``streamkd bench drift``."""
    source = {"name": "replay", "dataset": stream, "order": "given", "limit": records}
    tree: dict[str, Any] = {"stream": {"source": source}, "student": {"name": "mlp", "hidden": [100, 100]}}
    plain = configuration.from_tree(tree, registry)
    defaults = [choice.model_dump(mode="json", exclude_unset=True) for choice in plain.teachers]
    tree |= {"teachers": [*defaults, *teachers], "detectors": [{"name": "new-label"}], "device": "cpu", "seed": seed}
    config = configuration.from_tree(tree, registry)
    schema = schema_of(config, registry)
    opened, _ = open_source(config, registry, schema)
    return Learner(config, registry, opened, schema)


def run(learner: Learner) -> tuple[dict[str, float], float]:
    """Prequential accuracy of everybody who speaks, ``served`` among them, and CPU seconds a record."""
    right: dict[str, int] = {}
    begun = time.process_time()
    while learner.advance():
        assert learner.last is not None
        said, labels = learner.step.mixture.last, learner.last.plan.y[: learner.last.fresh].numpy()
        if said is None:
            continue
        for name, answers in [("served", said.mixed), *zip(said.names, said.probabilities.swapaxes(0, 1), strict=True)]:
            right[name] = right.get(name, 0) + int((answers.argmax(1) == labels).sum())
    seconds = time.process_time() - begun
    return {name: count / learner.records for name, count in right.items()}, seconds / learner.records


@torch.no_grad()
def answering(learner: Learner) -> dict[str, float]:
    """CPU seconds to answer a record: student, each teacher, and what a version holds."""
    rows = learner.step.recent.rows
    assert rows is not None  # records with labels have come
    x = rows[0][-10:]
    able: dict[str, Callable[[torch.Tensor], Any]] = {t.key: t.logits for t in learner.step.pool.everybody}
    with at_rest(learner.student) as student, at_rest(learner.served) as served:
        return {name: _seconds(of, x) for name, of in {**able, "student": student, "served": served}.items()}


def _seconds(of: Callable[[torch.Tensor], Any], x: torch.Tensor) -> float:
    of(x)
    spent = []
    for _ in range(TIMED):
        begun = time.process_time()
        of(x)
        spent.append(time.process_time() - begun)
    return float(np.median(spent)) / len(x)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
