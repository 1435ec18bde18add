"""A directory in words: what a state's newest checkpoint holds, or what a search came to; read without owning it."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from streamkd.errors import StateError
from streamkd.evaluate.measures import Measures, told
from streamkd.logs import one_line, some
from streamkd.state import rollback
from streamkd.state.checkpoint import CheckpointInfo, CheckpointStore, Snapshot
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionInfo, VersionStore
from streamkd.streams.encoding import contract
from streamkd.streams.ingest.columns import sent_columns
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
        "checkpoints": _kept(directory, checkpoints),
        "versions": [_seen(info, info.positions) | {"version": info.version} for info in versions.list()],
        "skips": _skips(directory),
        "offsets": dict(snapshot.info.offsets),
        "positions": _positions(directory),
        **_columns(directory),
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


def _seen(info: CheckpointInfo | VersionInfo, positions: Mapping[str, int]) -> dict[str, Any]:
    """What a checkpoint or a version has learned: the records before these offsets."""
    told = {"records": info.records, "created": info.created}
    return {**told, "offsets": dict(info.offsets), "positions": dict(positions)}


def _kept(directory: StateDirectory, checkpoints: CheckpointStore) -> list[dict[str, Any]]:
    """The checkpoints that can be gone back to, oldest first, and where the partitions of a broker stood."""
    kept = checkpoints.list()
    if not directory.log.exists():
        return [{"id": info.id, **_seen(info, {})} for info in kept]
    with closing(Log(directory.log, read_only=True)) as log:
        at = [log.positions(info.offsets.get(log.partition, 0)) for info in kept]
    return [{"id": info.id, **_seen(info, positions)} for info, positions in zip(kept, at, strict=True)]


def _positions(directory: StateDirectory) -> dict[str, int]:
    """The next message of each partition of a broker: those before are in the log. Files are too many to be told."""
    if not directory.log.exists():
        return {}
    with closing(Log(directory.log, read_only=True)) as log:
        noted = log.notes()
        return {name: offset for name, offset in log.positions().items() if name not in noted}


def _columns(directory: StateDirectory) -> dict[str, Any]:
    """The columns as they were sent, and what of them is not read, or changed."""
    if not directory.log.exists():
        return {"columns": {}, "sent": []}
    with closing(Log(directory.log, read_only=True)) as log:
        types = sent_columns(log)
        return {"columns": types, "sent": contract.in_words(types, log.schema)}


def _skips(directory: StateDirectory) -> list[dict[str, Any]]:
    with closing(directory.connect(read_only=True)) as connection:
        return [asdict(skip) for skip in rollback.skips(connection)]


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
    lines += [f"read of {name}: all before {at}" for name, at in found["positions"].items()]
    lines += [one_line(said) for said in found["sent"]]
    lines += [f"never learned: {s['partition']} {s['start']} to {s['stop'] - 1}" for s in found["skips"]]
    lines += [f"can go back to {_back(found['checkpoints'])}"]
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


def _back(checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """The offsets of the checkpoints, oldest first."""
    partitions = checkpoints[-1]["offsets"]
    return "; ".join(f"{p} {', '.join(str(c['offsets'].get(p, 0)) for c in checkpoints)}" for p in partitions)


def _of_order(order: Mapping[str, Any]) -> str:
    late = ", ".join(f"{count} {treatment}" for treatment, count in order["late"].items())
    return (
        f"by event time: {order['held']} records held for their turn; late: {late}; {order['untimed']} without event "
        f"time, {order['full']} before their turn for want of room"
    )


def _again(repeats: int) -> str:
    return f", {repeats} of them had come before" if repeats else ""
