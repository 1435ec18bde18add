"""A directory in words: what a state's newest checkpoint holds, or what a search came to; read without owning it."""

import hashlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from streamkd.errors import StateError
from streamkd.evaluate.measures import Measures, told
from streamkd.logs import some
from streamkd.state.checkpoint import CheckpointStore, Snapshot
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore
from streamkd.streams.log import joins
from streamkd.streams.log.dead_letters import DeadLetters
from streamkd.streams.log.log import Log
from streamkd.tune.record import JOURNAL


def inspect(path: Path | str) -> dict[str, Any]:
    """A state directory (``learned``) or a search (``streamkd.tune.results.summary``) as plain values.

    Raises:
        StateError: it is neither, or holds nothing yet.
    """
    if Path(path).is_file():
        raise StateError("is a file, no directory", where=str(path), fix="name one that `serve` or `tune` made")
    if (Path(path) / JOURNAL).is_file():
        from streamkd.tune import study  # Optuna is needed for a search alone
        from streamkd.tune.results import outcome, summary

        found = study.Study.open(path)
        return summary.about(outcome.read(found), found.driver())
    return learned(Path(path))


def learned(path: Path) -> dict[str, Any]:
    """The state directory as plain values; ``weights_sha256`` covers the student's parameters and buffers.

    Raises:
        StateError: it is no state directory, or holds no checkpoint yet.
    """
    directory = StateDirectory(path)
    if not directory.exists():
        raise StateError(
            "is no state directory and no search", where=str(path), fix="name one that `serve` or `tune` made"
        )
    checkpoints = CheckpointStore(directory, read_only=True)
    snapshot = checkpoints.latest()
    if snapshot is None:
        raise StateError("holds no checkpoint yet", where=str(path), fix="let `streamkd serve` run a little longer")
    versions = VersionStore(directory, read_only=True)
    served = versions.served()
    return {
        **_learned(snapshot),
        "version": served.version if served else None,
        "pinned": bool(served and served.pinned),
        "checkpoint": {"id": snapshot.info.id, "created": snapshot.info.created, "bytes": snapshot.info.bytes},
        "skipped": [{"id": number, "reason": reason} for number, reason in snapshot.skipped.items()],
        "offsets": dict(snapshot.info.offsets),
        "dead_letters": _dead_letters(directory),
        "labels": _labels(directory, snapshot.config),
        "order": _order(directory, snapshot.config),
        "environment": snapshot.environment,
        "config": snapshot.config,
    }


def _learned(snapshot: Snapshot) -> dict[str, Any]:
    tree = snapshot.tree
    learned: Mapping[str, Any] = tree["learned"] or {}
    memory = learned.get("memory")
    pool = learned.get("pool", {})
    return {
        "records_trained": tree["records"],
        "steps": tree["steps"],
        "weights_sha256": weights_sha256(learned["student"]) if learned else None,
        "tasks": tree["tasks"]["names"],
        "classes": tree["labels"]["labels"],
        "measures": _measures(tree),
        "teachers": [
            {
                "name": name,
                "marginal_gain": pool["worth"].get(name),
                "accuracy": pool["accuracy"].get(name),
                "age": pool["ages"].get(name),
                "bytes": _bytes(state),
            }
            for name, state in pool.get("teachers", {}).items()
        ],
        "records_repeated": memory.get("recognition", {}).get("repeats", 0) if memory else 0,
        "memory_records": memory["replayed"]["filled"] + memory["holdout"]["filled"] if memory else 0,
    }


def _measures(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was served; nothing where an older streamkd wrote the checkpoint."""
    found = Measures()
    if "measures" in tree:
        found.load_state_dict(tree["measures"]["version"])
    return found.figures(tree["labels"]["labels"])


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """One hash over names, types, shapes and bytes of a module's state."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _bytes(node: Any) -> int:
    if isinstance(node, torch.Tensor):
        return node.numel() * node.element_size()
    return sum(map(_bytes, node.values())) if isinstance(node, dict) else 0


def _dead_letters(directory: StateDirectory) -> int:
    """Refused records in all: those of the learner, and those of the log."""
    connection = directory.connect(read_only=True)
    count = DeadLetters(connection).total()
    connection.close()
    if directory.log.exists():
        with closing(Log(directory.log, read_only=True)) as log:
            count += log.letters.total()
    return count


def _labels(directory: StateDirectory, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How labels that come later stand; ``None`` where none are waited for."""
    if config["stream"].get("labels") is None or not directory.log.exists():
        return None
    with closing(Log(directory.log, read_only=True)) as log:
        return joins.told(log.label_counts())


def _order(directory: StateDirectory, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is held for its turn by event time, and was out of it; ``None`` where there is no order."""
    if config["stream"].get("order") is None or not directory.log.exists():
        return None
    with closing(Log(directory.log, read_only=True)) as log:
        told = log.standing().told()
    return {name: told[name] for name in ("held", "held_bytes", "late", "untimed", "full")}


def in_words(found: Mapping[str, Any]) -> str:
    """A few lines for a person."""
    if "search" in found:
        from streamkd.tune.results import summary

        return summary.told(found)
    tasks, classes = found["tasks"], found["classes"]
    lines = [
        f"{found['records_trained']} records trained in {found['steps']} steps"
        f"{_again(found['records_repeated'])}; "
        f"{len(tasks)} tasks ({some(tasks)}), {len(classes)} classes ({some(classes)})",
        f"served on arrival: {told(found['measures']['newest'])}",
        f"served version: {found['version'] or 'none yet'}{' (pinned)' if found['pinned'] else ''}",
        f"teachers: {some([t['name'] for t in found['teachers']]) or 'none'}; "
        f"{found['memory_records']} remembered records",
        f"next offsets: {', '.join(f'{p} {o}' for p, o in found['offsets'].items())}; "
        f"{found['dead_letters']} dead letters",
        f"checkpoint {found['checkpoint']['id']}, {found['checkpoint']['bytes']} bytes; "
        f"weights {found['weights_sha256']}",
    ]
    lines += [_of_labels(labels) for labels in [found["labels"]] if labels]
    lines += [_of_order(order) for order in [found["order"]] if order]
    lines += [f"checkpoint {s['id']} is damaged: {s['reason']}" for s in found["skipped"]]
    return "\n".join(lines)


def _of_labels(labels: Mapping[str, Any]) -> str:
    unmatched = ", ".join(f"{count} {reason}" for reason, count in labels["unmatched"].items())
    return (
        f"labels: {labels['joined']} joined, of {labels['kept']} predictions kept ({labels['pending']} have none yet, "
        f"{labels['unlabelled']} had none in time); {labels['waiting']} waiting, {labels['early']} ever early; "
        f"unmatched: {unmatched}"
    )


def _of_order(order: Mapping[str, Any]) -> str:
    late = ", ".join(f"{count} {treatment}" for treatment, count in order["late"].items())
    return (
        f"by event time: {order['held']} records held for their turn; late: {late}; {order['untimed']} without event "
        f"time, {order['full']} before their turn for want of room"
    )


def _again(repeats: int) -> str:
    return f", {repeats} of them had come before" if repeats else ""
