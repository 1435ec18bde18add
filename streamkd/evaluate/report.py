"""The report of a run: ``report.json`` for programs, ``report.html`` for people, from the figures of each seed.

    assess(...) per model ─► one dict per seed ─► write_report ─► means, deviations, per_seed ─► JSON and HTML

Figures are means over the seeds with sample standard deviations beside them (``..._std``, 0 for one seed);
what was not measured is ``null``. Called by ``streamkd run``.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from streamkd.errors import StreamkdError, first_line
from streamkd.evaluate import accuracy, calibration
from streamkd.evaluate.page import page
from streamkd.evaluate.seeds import merge, plain

SCHEMA = 1
MERGED = (
    "tests",
    "student",
    "served",
    "fidelity",
    "gate",
    "efficiency",
    "throughput",
    "teachers",
    "boundaries",
    "history",
)


def assess(
    matrix: np.ndarray,
    prequential: float | None,
    probabilities: np.ndarray,
    labels: np.ndarray,
    baseline: np.ndarray | None = None,
) -> dict[str, Any]:
    """The report's object of one model.

    Args:
        matrix: accuracy after task i on the test records of task j; NaN where it was not measured.
        prequential: accuracy of its predictions before training on each record, over the whole stream.
        probabilities: of the final model for the test records of all tasks [records, classes].
        labels: their positions [records]; -1 for a label that the model does not know.
        baseline: accuracy of the untrained student per task; forward transfer is null without it.
    """
    forward = None if baseline is None else accuracy.forward_transfer(matrix, baseline)
    return plain(
        {
            "accuracy": {
                "final_average": accuracy.final_average(matrix),
                "anytime_average": accuracy.anytime_average(matrix),
                "prequential": prequential,
                "matrix": np.asarray(matrix, np.float64),
            },
            "forgetting": {
                "average": accuracy.forgetting(matrix),
                "per_task": accuracy.forgetting_per_task(matrix),
            },
            "transfer": {"backward": accuracy.backward_transfer(matrix), "forward": forward},
            "calibration": {
                "nll": calibration.nll(probabilities, labels),
                "ece": calibration.ece(probabilities, labels),
                "bins": [asdict(one) for one in calibration.reliability(probabilities, labels)],
            },
        }
    )


def untested(prequential: float | None) -> dict[str, Any]:
    """As ``assess``, of a model for which there are no test records."""
    accuracies = {"final_average": None, "anytime_average": None, "prequential": prequential, "matrix": None}
    return {
        "accuracy": {**accuracies, "per_test": []},
        "forgetting": {"average": None, "per_task": []},
        "transfer": {"backward": None, "forward": None},
        "calibration": {"nll": None, "ece": None, "bins": []},
        "measures": {"tests": {"records": 0}},
    }


def write_report(
    path: Path,
    results: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    stream: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Write both files into a folder, each whole or not at all; returns what ``report.json`` holds.

    Args:
        results: one per seed: ``seed`` and any of tests, student, served, fidelity, gate, efficiency, throughput,
            teachers, boundaries, history. Anything else stays in ``per_seed`` alone.
        stream: ``name``, ``records``, ``refused``, ``tasks`` and ``classes`` (names, or how many).
    """
    report = summarise(results, config, stream, environment)
    path.mkdir(parents=True, exist_ok=True)
    put(path, report)
    return report


def read(path: Path) -> dict[str, Any]:
    """What ``report.json`` in a folder holds.

    Raises:
        StreamkdError: there is none.
    """
    try:
        report: dict[str, Any] = json.loads((path / "report.json").read_text("utf-8"))
        if report.get("schema") != SCHEMA:
            raise ValueError(f"one of schema {report.get('schema')}")
    except (OSError, ValueError, AttributeError) as fault:
        raise StreamkdError(
            f"needed a folder with report.json, got {first_line(fault)}",
            where=str(path),
            fix=f"streamkd run CONFIG --report {path}",
        ) from None
    return report


def put(path: Path, report: Mapping[str, Any]) -> None:
    """Write both files into a folder."""
    _replace(path / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    _replace(path / "report.html", page(report))


def summarise(
    results: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    stream: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``report.json``."""
    if not results:
        raise ValueError("needed the results of one seed at least, got none")
    seeds = [plain(dict(result)) for result in results]
    merged = merge([{key: value for key, value in seed.items() if key != "seed"} for seed in seeds])
    return {
        "schema": SCHEMA,
        "config": plain(dict(config)),
        "seeds": [seed["seed"] for seed in seeds],
        "stream": plain(dict(stream)),
        **{key: merged[key] for key in MERGED if key in merged},
        "environment": plain(dict(environment)),
        "per_seed": seeds,
    }


def shared(results: Sequence[Mapping[str, Any]], key: str) -> Any:
    """What all seeds have under a key; ``None`` where they differ: no one of them stands for the others."""
    first = results[0][key]
    return first if all(result[key] == first for result in results) else None


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
