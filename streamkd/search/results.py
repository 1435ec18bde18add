"""What a search leaves for people and programs, written from its ledger: as often as one likes, also half-way.

    Ledger ─► Outcome ─┬► trials.parquet   a row a trial
                       ├► best.yaml        the configuration that is taken; `serve` and `run` take it as it is
                       ├► front.yaml       two objectives: the front, and a configuration each in front/
                       └► report.html

Each file is there whole or not at all. Called by ``streamkd.search.driver``.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.search import best, outcome, summary
from streamkd.search.ledger import Ledger, TrialRecord
from streamkd.search.outcome import Outcome
from streamkd.search.page import page

BEST, FRONT, TABLE, PAGE = "best.yaml", "front.yaml", "trials.parquet", "report.html"


def write(ledger: Ledger, registry: Registry) -> Outcome:
    """Write all of them; returns what they tell. Without a finished trial there is no best.yaml.

    Raises:
        StateError: the place cannot be written.
    """
    found = outcome.read(ledger)
    ledger.store.write(TABLE, _parquet(table(found)))
    if found.verdict is not None:
        ledger.store.write(BEST, _best(found, registry).encode())
    if len(found.objectives) > 1:
        for one in found.front:
            ledger.store.write(_front_file(one), _configuration(found, one, registry, _comments(found, one)).encode())
        ledger.store.write(FRONT, _front(found).encode())
    ledger.store.write(PAGE, page(found).encode())
    return found


def table(found: Outcome) -> pa.Table:
    """A row a trial: how it ended, its objectives (means, ``.per_seed`` lists) and ``values.<path>``.

    Values that are not all numbers, or all truths, are text.
    """
    trials = found.trials
    columns: dict[str, pa.Array] = {
        "trial": pa.array([one.number for one in trials], pa.int64()),
        "state": pa.array([one.state for one in trials], pa.string()),
        "reason": pa.array([one.reason for one in trials], pa.string()),
        "records": pa.array([one.records for one in trials], pa.int64()),
        "seconds": pa.array([one.seconds for one in trials], pa.float64()),
        "begun_at": pa.array([one.begun_at for one in trials], pa.float64()),
        "worker": pa.array([one.worker for one in trials], pa.string()),
        "parent": pa.array([one.parent for one in trials], pa.int64()),
        "changes": pa.array([len(one.changes) for one in trials], pa.int64()),
    }
    for name in found.objectives:
        columns[name] = pa.array([one.objective(name) for one in trials], pa.float64())
        columns[f"{name}.per_seed"] = pa.array([_per_seed(one, name) for one in trials], pa.list_(pa.float64()))
    for path in dict.fromkeys(path for one in trials for path in one.latest):
        columns[f"values.{path}"] = _values([one.latest.get(path) for one in trials])
    return pa.table(columns)


def _per_seed(one: TrialRecord, name: str) -> Any:
    return one.readings[-1].get("per_seed", {}).get(name) if one.readings else None


def _values(values: Sequence[Any]) -> pa.Array:
    known = [value for value in values if value is not None]
    if known and all(type(value) in (int, float) for value in known):
        whole = all(type(value) is int for value in known)
        return pa.array([v if v is None or whole else float(v) for v in values], pa.int64() if whole else pa.float64())
    if known and all(type(value) is bool for value in known):
        return pa.array(values, pa.bool_())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _parquet(rows: pa.Table) -> bytes:
    file = io.BytesIO()
    parquet.write_table(rows, file)
    return file.getvalue()


def _best(found: Outcome, registry: Registry) -> str:
    assert found.verdict is not None
    return _configuration(
        found, found.verdict.taken, registry, [*_comments(found, found.verdict.taken), summary.sentence(found)]
    )


def _configuration(found: Outcome, one: TrialRecord, registry: Registry, comments: Sequence[str]) -> str:
    """The search's configuration with a trial's values and absolute paths, as a YAML file."""
    return best.written(_configured(found, one, registry), comments)


def _configured(found: Outcome, one: TrialRecord, registry: Registry) -> Config:
    config = configuration.from_tree(found.header["config"], registry)
    applied = found.space.apply(config, one.latest, registry) if one.number else config
    return best.rooted(applied, registry, Path(found.header["directory"]))


def _comments(found: Outcome, one: TrialRecord) -> list[str]:
    """Where a configuration comes from."""
    figures = [f"{name} {value:.4f}" for name in found.objectives if (value := one.objective(name)) is not None]
    return [
        f"Trial {one.number} of the search {found.header.get('name')}: {', '.join(figures)} on seeds "
        f"{', '.join(map(str, found.seeds))}",
        *(f"  {path}: {value}" for path, value in one.latest.items()),
        *(["  these are its last values: they changed in the running stream"] if one.changes else []),
        f"command: {found.header.get('command', '')}",
    ]


def _front_file(one: TrialRecord) -> str:
    return f"front/{one.number:05}.yaml"


def _front(found: Outcome) -> str:
    import yaml

    rows = [
        {
            "trial": one.number,
            "objectives": {name: one.objective(name) for name in found.objectives},
            "values": dict(one.latest),
            "config": _front_file(one),
        }
        for one in found.front
    ]
    head = (
        "# The trials that no other one beats in one objective without losing in the other; best first by the first.\n"
    )
    return head + yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=120)
