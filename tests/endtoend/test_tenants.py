"""`streamkd serve --tenants`: many learners in few processes, each as if it were alone."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from streamkd.inspection import weights_sha256

from .conftest import PUSHED, Serve, Server, merged, records, streamkd, until
from .test_kills import by_a_learner, differences, learned, leaves

TENANT = merged(PUSHED, {"stream": {"source": {"name": "http"}}, "device": "cpu"})
REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8], "data": [3.0] + [0.0] * 7}]}


class Tenants:
    """A server of tenants as its operator and their users see it."""

    def __init__(self, serve: Serve, folder: Path) -> None:
        self.folder, self.state = folder / "tenants", folder / "states"
        self.folder.mkdir()
        self._serve = serve

    def put(self, name: str, **changes: Any) -> None:
        text = yaml.safe_dump(merged(TENANT, {"name": name, **changes}))
        (self.folder / f"{name}.tmp").write_text(text)
        (self.folder / f"{name}.tmp").rename(self.folder / f"{name}.yaml")

    def start(self, learners: int = 1) -> Server:
        given = ("--tenants", str(self.folder), "--learners", str(learners))
        self.server = self._serve(None, *given, state=self.state)
        return self.server

    def list(self) -> dict[str, Any]:
        return dict(self.server.get("/v1/tenants").json()["tenants"])

    def is_there(self, name: str) -> bool:
        return bool(self.list().get(name, {}).get("state") in ("resting", "waiting", "learning"))

    def push(self, name: str, rows: pa.RecordBatch, sequence: int = 0) -> httpx.Response:
        """One batch, again until it is acknowledged."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        headers = {"content-type": "application/vnd.apache.arrow.stream"}
        headers |= {"streamkd-producer": "p", "streamkd-sequence": str(sequence)}

        def post() -> httpx.Response | None:
            try:
                told = self.server.post(f"/t/{name}/v1/streams/main", content=bytes(sink.getvalue()), headers=headers)
            except httpx.TransportError:
                return None
            if told.status_code in (429, 503):
                return None
            assert told.status_code == 200, told.text  # anything else is no receipt
            return told

        return until(post, 60, f"a receipt of {name}")

    def trained(self, name: str, rows: int, seconds: float = 60.0) -> None:
        def done() -> bool:
            one = self.list()[name]
            return bool(one["records_trained"] >= rows and one["lag_records"] == 0)

        until(done, seconds, f"{rows} records of {name}: {self.list()}")


@pytest.fixture
def tenants(serve: Serve, tmp_path: Path) -> Tenants:
    return Tenants(serve, tmp_path)


@pytest.mark.soak
def test_one_good_one_broken_one_torn_one_that_comes_and_goes(tenants: Tenants) -> None:
    """What is wrong with a tenant is said of it and hurts no other; folders are followed while the server runs."""
    tenants.put("good")
    (tenants.folder / "broken.yaml").write_text("stream: {sorce: http}")
    tenants.put("torn")
    (tenants.state / "torn" / "checkpoints" / "7").mkdir(parents=True)
    server = tenants.start()
    until(lambda: tenants.is_there("good") and tenants.list()["torn"]["reason"], 60, "the tenants")
    told = tenants.push("good", records(200)).json()
    assert (told["accepted"], told["rejected"]) == (200, 0)

    tenants.put("late")
    until(lambda: tenants.is_there("late"), 30, "a tenant that has come")
    pq.write_table(pa.Table.from_batches([records(60, 1_000)]), tenants.state / "rows.parquet")
    done = streamkd("push", tenants.state / "rows.parquet", "--to", f"{server.url}/t/late")
    assert "60 records sent, 60 accepted" in done.stdout, done.stderr
    tenants.trained("good", 200)
    tenants.trained("late", 60)

    listed = tenants.list()
    assert "broken.yaml:1" in listed["broken"]["reason"]
    assert "DOES NOT FIT" in listed["torn"]["reason"]
    assert server.get("/t/broken/v2/health/ready").status_code == 503
    assert server.get("/t/nobody/v2/health/ready").status_code == 404
    good, late = (server.post(f"/t/{n}/v2/models/student/infer", json=REQUEST).json() for n in ("good", "late"))
    assert len(good["outputs"]) == len(late["outputs"])
    assert (
        server.get("/t/good/v2/models/student").json()["classes"]
        != server.get("/t/late/v2/models/student").json()["classes"]
    )
    assert server.metrics()['streamkd_tenant_records_trained{tenant="good"}'] == 200.0
    assert 'streamkd_source_records_total{source="http"} 200.0' in server.get("/t/good/metrics").text

    (tenants.folder / "late.yaml").unlink()
    until(lambda: "late" not in tenants.list(), 30, "a tenant that has gone")
    assert server.get("/t/late/v2/health/ready").status_code == 404
    assert server.stop() == 0
    assert "Traceback" not in server.err


@pytest.mark.soak
@pytest.mark.parametrize("learners", [1, 2])
def test_kills_change_no_bit_of_any_tenant(tenants: Tenants, tmp_path: Path, learners: int) -> None:
    """Workers and the whole group are killed in mid-turn: each tenant's tensors are those of a learner of its own."""
    names, rows = ("a", "b", "c"), 700
    for seed, name in enumerate(names):
        tenants.put(name, seed=seed, stream={"batch": {"size": 10, "flush_seconds": 0.05}})
    server = tenants.start(learners)
    until(lambda: all(map(tenants.is_there, names)), 60, "the tenants")
    for part in range(7):
        for place, name in enumerate(names):
            tenants.push(name, records(100, 1_000 * place + 100 * part), part)
        if part in (1, 3, 5):
            until(lambda: any(one["state"] == "learning" for one in tenants.list().values()), 60, "a turn")
            time.sleep(0.3)
            kill(server, "group" if part == 3 else "worker")
    for name in names:
        tenants.trained(name, rows, 120)
    assert server.stop() == 0
    for seed, name in enumerate(names):
        check_alone(tenants.state / name, tmp_path / f"alone-{name}", rows, seed)


def kill(server: Server, what: str) -> None:
    """kill -9 of every worker, or of everything, which is started again."""
    if what == "group":
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
        server.again()
        return
    for pid in workers(server):
        os.kill(pid, signal.SIGKILL)


def workers(server: Server) -> list[int]:
    """The processes that learn."""
    children = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if b"processes.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def check_alone(state: Path, copy: Path, rows: int, seed: int) -> None:
    """Let one learner consume a copy of the log, without a checkpoint before its end, and compare every tensor."""
    copy.mkdir()
    for file in state.glob("log.sqlite*"):
        shutil.copy(file, copy)
    tree = by_a_learner(copy, rows, merged(TENANT, {"seed": seed}))
    assert differences(learned(state), leaves(tree)) == []
    assert weights_sha256(tree["learned"]["student"])


@pytest.mark.soak
def test_a_flood_does_not_stop_a_quiet_tenant(tenants: Tenants) -> None:
    """While one has more records than can be learned, those of another are learned within a slice and a loading."""
    for name in ("flood", "quiet"):
        tenants.put(name, stream={"limits": {"queue_records": 20_000}})
    tenants.start()
    until(lambda: all(map(tenants.is_there, ("flood", "quiet"))), 60, "the tenants")
    tenants.push("flood", records(20_000))
    waits = []
    for part in range(4):
        tenants.push("quiet", records(10, 10 * part), part)
        begun = time.monotonic()
        tenants.trained("quiet", 10 * (part + 1), 60)
        waits.append(time.monotonic() - begun)
    assert tenants.list()["flood"]["lag_records"] > 0
    assert tenants.list()["flood"]["records_trained"] > 0
    assert max(waits) < 20, waits  # 5 s of the other's slice, a checkpoint, loading, on a machine that is busy
    assert tenants.server.stop() == 0


@pytest.mark.soak
def test_a_hundred_tenants_on_one_machine(tenants: Tenants, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of a hundred is learned and answered; memory is that of the learners at work, and does not grow by turns."""
    names, rows, rounds = [f"t{number:03}" for number in range(100)], 100, 3
    for seed, name in enumerate(names):
        tenants.put(name, seed=seed, stream={"batch": {"size": 20}})
    server = tenants.start(learners=2)
    until(lambda: all(map(tenants.is_there, names)), 300, "the tenants")
    figures = []
    for part in range(rounds):
        begun = time.monotonic()
        for place, name in enumerate(names):
            tenants.push(name, records(rows, 1_000 * place + rows * part), part)
        while any(one["records_trained"] < rows * (part + 1) for one in tenants.list().values()):
            time.sleep(0.5)  # looking is work for the server, too
        seconds = time.monotonic() - begun
        figures.append(
            {"records_a_second": round(len(names) * rows / seconds), "seconds": round(seconds), **memory(server)}
        )
    for name in names:
        assert server.post(f"/t/{name}/v2/models/student/infer", json=REQUEST).status_code == 200
    listed = tenants.list()
    assert not [one for one in listed.values() if one["reason"] or one["failures"]]
    longest = max(one["longest_wait_seconds"] for one in listed.values())
    with capsys.disabled():
        print(json.dumps({"rounds": figures, "longest_wait_seconds": longest, "asked": memory(server)}, indent=1))
    assert figures[-1]["workers_mb"] < figures[0]["workers_mb"] * 1.3
    assert server.stop() == 0


def memory(server: Server) -> dict[str, int]:
    """MB of memory of each kind of process, what is shared divided among those who share it."""
    at_work = workers(server)
    children = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    others = [int(pid) for file in children for pid in file.read_text().split() if int(pid) not in at_work]
    return {
        "server_mb": proportional(server.process.pid),
        "ingress_mb": sum(map(proportional, others)),
        "workers_mb": sum(map(proportional, at_work)),
    }


def proportional(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) // 1024
