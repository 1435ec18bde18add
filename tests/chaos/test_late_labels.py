"""Labels that come later, under blows at every process: each prediction is learned once, or counted as what it is.

asks under keys of its own, and labels: after, before, twice, for nobody ─► over both doors, again until there is an ack
KILL of learner, ingress, supervisor, the whole group ───────────────────►
at the end each record has the inputs that were asked, the first label and the answer that was given; every label is
joined, repeated, late or unknown; and the learner has the bits of one that nobody disturbed
"""

import contextlib
import json
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from streamkd.streams.log.log import Log

from ..endtoend.conftest import Serve, Server, merged, records, serve, until
from .test_processes import CONFIG, check_learned, strike

__all__ = ["serve"]
LATE = merged(
    CONFIG,
    {"stream": {"labels": {"early_seconds": 10}, "records": {**CONFIG["stream"]["records"], "id": "key"}}},
)
FIRST = 100  # records with their labels, so that there is a version
INFER = "/v2/models/student/infer"


class Client(threading.Thread):
    """Asks about one record after the other and labels them; ``unlabelled`` are those that it has left out."""

    def __init__(self, server: Server, seed: int) -> None:
        super().__init__(daemon=True)
        self.url, self.flight = server.url, server.flight
        self.asked = self.sequence = self.labels = 0
        self.told: dict[str, tuple[int, int]] = {}  # by key: label and version, where the first answer was heard
        self.unlabelled: list[int] = []
        self.joined: set[str] = set()  # as the acks say
        self.fault = ""
        self._labelled: set[int] = set()
        self._random = random.Random(seed)
        self._rows = records(5_000, FIRST)
        self._done = threading.Event()

    def run(self) -> None:
        try:
            while not self._done.is_set():
                self.step(self.asked)
                self.asked += 1
                time.sleep(0.02)
        except Exception as fault:  # told by the test
            self.fault = repr(fault)

    def step(self, n: int) -> None:
        """One record: of five one has its label before it is asked about, of eleven one has none."""
        early = n % 5 == 0
        if early:
            self.label([n])
        self.ask(n)
        if n % 11 == 0 and not early:
            self.unlabelled.append(n)
            return
        batch = [] if early else [n]
        batch += [n - 1] if n % 3 == 0 and n and n - 1 not in self.unlabelled else []
        self.label(batch, nobody=n % 7 == 0)

    def ask(self, n: int) -> None:
        """Until there is an answer."""
        x = self._rows["x"][n].as_py()
        inputs = [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": x}]
        tries = 0
        while not self._done.is_set():
            tries += 1
            with contextlib.suppress(httpx.TransportError):
                asked = {"inputs": inputs, "parameters": {"prediction_id": f"p{n}"}}
                reply = httpx.post(self.url + INFER, json=asked, timeout=5)
                if reply.status_code == 200:
                    assert reply.json()["parameters"]["kept"] is True
                    if tries == 1:
                        version = reply.json()["parameters"]["version"]
                        self.told[f"p{n}"] = (reply.json()["outputs"][0]["data"][0], version)
                    return
                assert reply.status_code in (429, 503), reply.text
            time.sleep(0.1)

    def label(self, which: Sequence[int], nobody: bool = False) -> None:
        """A numbered batch, over one door and then the other until there is an ack; a second label is another one."""
        keys = [f"p{n}" for n in which] + ["nobody"] * nobody
        if not keys:
            return
        values = [self.label_of(n) + (n in self._labelled) for n in which] + [0] * nobody
        self._labelled |= {*which}
        rows = pa.record_batch({"prediction_id": keys, "label": values, "task": ["t"] * len(keys)})
        while (accepted := (self._put if self._random.random() < 0.5 else self._post)(rows)) is None:
            time.sleep(0.1)
        assert accepted <= len(keys)
        self.sequence += 1
        self.labels += len(keys)

    def label_of(self, n: int) -> int:
        return int(self._rows["label"][n].as_py())

    def _post(self, rows: pa.RecordBatch) -> int | None:
        headers = {"Content-Type": "application/x-ndjson", "Streamkd-Producer": "l"}
        lines = "\n".join(json.dumps(row) for row in rows.to_pylist())
        with contextlib.suppress(httpx.TransportError):
            sent = {**headers, "Streamkd-Sequence": str(self.sequence)}
            reply = httpx.post(self.url + "/v1/labels", content=lines, headers=sent, timeout=5)
            if reply.status_code in (200, 422):
                said = reply.json()
                if not said["duplicate"] and not said["rejected"] and not said["waiting"]:
                    self.joined |= set(rows["prediction_id"].to_pylist())
                return int(said["accepted"])
            assert reply.status_code in (429, 502, 503, 504), reply.text
        return None

    def _put(self, rows: pa.RecordBatch) -> int | None:
        note = json.dumps({"producer": "l", "sequence": self.sequence}).encode()
        try:
            with fl.connect(self.flight) as client:
                place = fl.FlightDescriptor.for_path("main", "labels")
                writer, acks = client.do_put(place, rows.schema, fl.FlightCallOptions(timeout=5))
                with contextlib.closing(writer):
                    writer.write_with_metadata(rows, note)
                    writer.done_writing()
                    ack = acks.read()
        except (fl.FlightUnavailableError, fl.FlightTimedOutError, fl.FlightCancelledError, fl.FlightInternalError):
            return None
        return None if ack is None else int(json.loads(ack.to_pybytes())["accepted"])

    def end(self) -> None:
        """Wait for what is under way."""
        self._done.set()
        self.join(60)
        assert not self.is_alive()
        assert not self.fault, self.fault


def counts(server: Server) -> dict[str, Any]:
    """How the labels stand, as the server says it."""
    labels: dict[str, Any] = server.status().get("labels") or {}
    return {**labels, **labels.get("unmatched", {})}


def settled(server: Server, labels: int) -> bool:
    """Whether every label that was sent is one of the four."""
    said = counts(server)
    fates = sum(said.get(what, 0) for what in ("joined", "repeated", "late", "unknown"))
    return fates == labels and said.get("waiting") == 0


def further(client: Client, steps: int) -> None:
    goal = client.asked + steps
    until(lambda: client.asked >= goal or client.fault, 90, f"{goal} predictions")


def campaign(
    serve: Serve, folder: Path, mild: Sequence[str], hard: Sequence[str], steps: int, seed: int, late: bool
) -> None:
    """Blows that leave the supervisor alone lose nothing; after others what it held may be unknown, and no more."""
    moments = random.Random(seed)
    server = serve(LATE)
    rows = records(FIRST)
    body = [json.dumps({**row, "key": f"r{n}"}).encode() for n, row in enumerate(rows.to_pylist())]
    sent = {"Content-Type": "application/x-ndjson"}
    assert server.post("/v1/streams/main", content=b"\n".join(body), headers=sent).status_code == 200
    until(server.ready, 60, "a version")
    client = Client(server, seed)
    client.start()
    try:
        further(client, steps)
        for blow in (*mild, *hard):
            time.sleep(moments.uniform(0.0, 0.5))
            if blow == hard[0]:
                before = client.asked - len(client.unlabelled) - 1
                until(lambda goal=before: counts(server).get("joined", 0) >= goal, 60, f"{before} joined predictions")
                assert counts(server)["unknown"] <= client.asked // 7 + 1
            strike(server, blow)
            further(client, steps)
    finally:
        client.end()
    until(lambda: settled(server, client.labels), 60, f"a fate of each of {client.labels} labels")
    if late:
        label_the_rest(server, client)
    said = counts(server)
    acknowledged = FIRST + said["joined"]
    server.trained(acknowledged, 120)
    assert server.stop() == 0
    assert "Traceback" not in server.err
    check_records(server.state, client, said)
    check_learned(server, folder / "undisturbed", acknowledged, LATE)


def label_the_rest(server: Server, client: Client) -> None:
    """Half of the predictions without a label have theirs now; for the others, and for all again, it is too late."""
    rest, late = client.unlabelled[::2], client.unlabelled[1::2]
    unknown = counts(server)["unknown"]
    client.label(rest)
    until(lambda: settled(server, client.labels), 60, "the labels of the rest")
    assert server.stop() == 0
    server.arguments = [*server.arguments, "--set", "stream.labels.keep_seconds=0.001"]
    server.again()
    until(lambda: counts(server).get("pending") == 0, 60, "predictions to expire")
    client.label(late)
    until(lambda: settled(server, client.labels), 60, "labels that are too late")
    assert counts(server)["late"] + counts(server)["unknown"] - unknown >= len(late)


def check_records(state: Path, client: Client, said: dict[str, Any]) -> None:
    """Every record of the log, by its key: there once, with inputs, label and answer of its prediction."""
    with contextlib.closing(Log(state / "log.sqlite", read_only=True)) as log:
        rows, answers = log.read(0, log.end()).rows.to_pylist(), log.answers(0, log.end())
    keys = [row["key"] for row in rows[FIRST:]]
    assert len(keys) == len(set(keys)) == said["joined"] == len(answers)
    assert client.joined - set(keys) == set()
    for at, row in enumerate(rows[FIRST:], FIRST):
        n = int(row["key"][1:])
        assert row["x"] == client._rows["x"][n].as_py()
        assert row["label"] == client.label_of(n)
        if row["key"] in client.told:
            assert (answers[at].label, answers[at].version) == client.told[row["key"]]


@pytest.mark.timeout(300)
def test_joins_survive_kills(serve: Serve, tmp_path: Path) -> None:
    """The ingress, then everything is killed: each label has one fate, each record its inputs and its bits.

    To the learner a joined record is like any other: its kills are in `test_processes`, and in the long campaigns.
    """
    campaign(serve, tmp_path, ["ingress KILL"], ["group KILL"], 15, 0, late=False)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_long_campaigns_join_each_label_once(serve: Serve, tmp_path: Path, seed: int) -> None:
    """Kills, stops and ends of every process, in an order of the seed."""
    order = random.Random(seed)
    mild = order.choices(["ingress KILL", "ingress STOP", "learner KILL", "learner STOP"], k=8)
    hard = order.choices(["supervisor KILL", "supervisor TERM", "group KILL", "group TERM", *mild], k=10)
    campaign(serve, tmp_path, mild, hard, 150, seed, late=True)
