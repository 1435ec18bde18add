"""kill -9 of any process at any moment: each record counts once, and the weights are those of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from streamkd import config as configuration
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.state.tree import pack, unpack
from streamkd.streams.log.log import Log
from streamkd.streams.log.paces import Gear
from streamkd.wiring import open_source, schema_of

from .conftest import PUSHED, STREAMKD, Serve, Server, merged, records

# batches of 7 at a rate, with a flush after a few milliseconds: many cuts that only the journal knows
DISTURBED = merged(PUSHED, {"stream": {"batch": {"flush_seconds": 0.02}}, "pool": {"limit": 5}, "device": "cpu"})


def kill(server: Server, what: str) -> None:
    """kill -9; what nobody is left to start again is started again, on the same ports."""
    if what in ("learner", "ingress"):
        os.kill(server.pid(what), signal.SIGKILL)
        return
    if what == "supervisor":
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    server.again()


def newest(state: Path) -> Any:
    """The tree of the newest checkpoint."""
    checkpoints = CheckpointStore(StateDirectory(state), read_only=True)
    snapshot = checkpoints.latest()
    checkpoints.close()
    assert snapshot is not None
    return snapshot.tree


def learned(state: Path) -> dict[str, Any]:
    """Everything in the newest checkpoint that decides what is learned next, tensor by tensor."""
    return leaves(newest(state))


def leaves(tree: Any) -> dict[str, Any]:
    """The values of a tree by their paths, without what the clock decides: when it is measured, who is asked then."""
    parts = {name: part for name, part in tree.items() if name != "quality"}
    parts["measures"] = {name: part for name, part in tree["measures"].items() if name != "version"}
    return dict(_leaves(parts, ""))


def _leaves(node: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [leaf for key, value in node.items() for leaf in _leaves(value, f"{path}/{key}")]
    return [(path, node)]


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Paths whose values are not the same, bit for bit."""
    paths = sorted({*one, *other})
    return [path for path in paths if path not in one or path not in other or not _same(one[path], other[path])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return repr(a) == repr(b)


def check_kills(
    serve: Serve,
    folder: Path,
    rows: int,
    rate: int,
    whats: Sequence[str],
    seed: int,
    undisturbed: Callable[[Path, int], Any],
    tree: Mapping[str, Any] = DISTURBED,
) -> None:
    """Push, kill, push on; then let ``undisturbed`` consume a copy of the log, and compare every tensor."""
    moments = random.Random(seed)
    pq.write_table(pa.Table.from_batches([records(rows)]), folder / "rows.parquet")
    server = serve(tree)
    push = [*STREAMKD, "push", str(folder / "rows.parquet"), "--to", server.flight]
    pushing = subprocess.Popen(
        [*push, "--batch", "7", "--rate", str(rate), "--producer", "p"], stdout=subprocess.PIPE, text=True
    )
    try:
        for what in whats:
            server.trained(server.status().get("records_trained", 0) + 1)
            time.sleep(moments.uniform(0.0, 0.5))
            kill(server, what)
        said, _ = pushing.communicate(timeout=300)
    finally:
        pushing.kill()
        pushing.wait()
    assert f"{rows} records sent, {rows} accepted, 0 rejected" in said
    server.trained(rows, 120)
    assert server.stop() == 0

    seen = server.inspect()
    assert (seen["records_trained"], seen["offsets"]) == (rows, {"main/0": rows})
    (folder / "undisturbed").mkdir()
    for file in server.state.glob("log.sqlite*"):
        shutil.copy(file, folder / "undisturbed")
    tree = undisturbed(folder / "undisturbed", rows)
    assert differences(learned(server.state), leaves(tree)) == []
    assert weights_sha256(tree["learned"]["student"]) == seen["weights_sha256"]


def by_a_learner(state: Path, rows: int, tree: Mapping[str, Any] = DISTURBED) -> Any:
    """What a learner in this process makes of the log, without a checkpoint before its end."""
    registry = Registry.load()
    config = configuration.from_tree(tree, registry)
    schema = schema_of(config, registry)
    source, journal = open_source(config, registry, schema, state / "log.sqlite")
    learner = Learner(config, registry, source, schema, journal=journal)
    while learner.offsets["main/0"] < rows:
        assert learner.advance() or learner.offsets["main/0"] < rows
    source.close()
    return unpack(pack(learner.state()))


def by_the_journal(state: Path, rows: int) -> Any:
    """The same, of batches as large as the log says they were; to its end, where the learner would choose again."""
    log = Log(state / "log.sqlite")
    assert len(log.paces()) > 2
    log.put_pace(rows, Gear(1, 0))
    log.close()
    return by_a_learner(state, rows)


def by_a_server(serve: Serve) -> Callable[[Path, int], Any]:
    """The same by a server that is left alone, with checkpoints at other times."""

    def consume(state: Path, rows: int) -> Any:
        other = serve(DISTURBED, "--set", "checkpoint.every_seconds=2.3", state=state)
        other.trained(rows, 300)
        assert other.stop() == 0
        return newest(state)

    return consume


@pytest.mark.soak  # tests/chaos has kills of every process in `make test`
def test_kills_change_no_bit_of_what_is_learned(serve: Serve, tmp_path: Path) -> None:
    """Learner, ingress and the whole group are killed in mid-push: weights, memory and gate as if nothing had been."""
    check_kills(serve, tmp_path, 3_000, 300, ["learner", "ingress", "group"], 0, by_a_learner)


@pytest.mark.soak
def test_kills_change_no_bit_however_batches_keep_pace(serve: Serve, tmp_path: Path) -> None:
    """The same, pushed faster than batches of the configuration could be learned."""
    tree = merged(DISTURBED, {"stream": {"batch": {"pace": "auto"}}})
    check_kills(serve, tmp_path, 20_000, 1_500, ["learner", "ingress", "group"], 4, by_the_journal, tree)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ten_kills_of_a_long_push(serve: Serve, tmp_path: Path, seed: int) -> None:
    """Ten kills of every kind over 30,000 records: the same."""
    moments = random.Random(seed)
    kinds = ["learner", "ingress", "supervisor", "group"]
    whats = [*kinds, *moments.choices(kinds, k=6)]
    check_kills(serve, tmp_path, 30_000, 300, moments.sample(whats, 10), seed, by_a_server(serve))
