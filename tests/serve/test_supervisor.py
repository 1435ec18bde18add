"""The supervisor as a process: its children, its end, its refusals. The children speak the channel and no more."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamkd import config as configuration
from streamkd.errors import ConfigError
from streamkd.plugins import Registry
from streamkd.serve import supervisor
from streamkd.serve.http.listen import bind, check_exposure, is_loopback
from streamkd.serve.http.server import GRACEFUL_SECONDS
from streamkd.streams.ingest.tokens import create

from .conftest import Publisher, until

REPLAY: dict[str, Any] = {"stream": {"source": {"name": "replay", "dataset": "digits"}}}
PUSH: dict[str, Any] = {
    "stream": {"source": {"name": "flight"}, "records": {"inputs": [{"name": "x", "shape": [4]}]}},
}
MAIN = """
import json, sys
from pathlib import Path
from streamkd import config
from streamkd.plugins import Registry
from streamkd.serve.processes import server_status
from streamkd.serve import supervisor
from streamkd.serve.predictions import predictor
predictor._one_thread = lambda: None  # torch comes with the first version, and most of these tests have none
supervisor.LEARNER, supervisor.INGRESS = "fake_learner", "fake_ingress"
supervisor.HURRIED_SECONDS, supervisor.HUNG_SECONDS, server_status.GRACE_SECONDS = 1.0, 1.0, 0.5
registry = Registry.load(["replay", "flight", *sys.argv[3:]])
sys.exit(supervisor.serve(config.from_tree(json.loads(sys.argv[1])), Path(sys.argv[2]), registry))
"""


@dataclass
class Server:
    """A supervisor process with its state directory."""

    process: subprocess.Popen[str]
    state: Path
    url: str

    def heard(self, name: str = "heard") -> list[str]:
        file = self.state / name
        return file.read_text().split("\n")[:-1] if file.exists() else []

    def starts(self) -> list[int]:
        return [int(pid) for pid in self.heard("starts")]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=10, verify=False)  # no TLS, and 20 ms less

    def status(self) -> Any:
        return self.get("/v1/status").json()["server"]

    def end(self, name: signal.Signals = signal.SIGTERM, seconds: float = 20) -> int:
        self.process.send_signal(name)
        return self.process.wait(seconds)


def command(tree: dict[str, Any], state: Path, port: int = 0) -> list[str]:
    serve = {"port": port, "flight_port": 0, "drain_seconds": 0.1, **tree.get("serve", {})}
    resolved = configuration.dump(configuration.from_tree({**tree, "serve": serve}))
    students = ["students"] if (state / "published").exists() else []  # they import torch: 1.5 s of the processor
    return [sys.executable, "-c", MAIN, json.dumps(resolved), str(state), *students]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[subprocess.Popen[str]] = []

    def run(tree: dict[str, Any] = REPLAY, manner: str = "") -> Server:
        state = tmp_path / "state"
        state.mkdir(exist_ok=True)
        environment = {**os.environ, "FAKE": manner, "PYTHONPATH": str(Path(__file__).parent)}
        process = subprocess.Popen(command(tree, state), stdout=subprocess.PIPE, env=environment, text=True)
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert url, said
        return Server(process, state, url[0])

    yield run
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_one_signal_ends_in_order_with_a_checkpoint(launch: Callable[..., Server]) -> None:
    """SIGTERM: not ready, the learner is asked for a checkpoint, exit 0; messages that nobody knows change nothing."""
    server = launch()
    until(lambda: "streamkd_train_steps_total 5.0" in server.get("/metrics").text)
    assert server.get("/v1/status").json()["records_trained"] == 50
    assert server.status()["processes"]["learner"]["state"] == "running"
    assert server.end() == 0
    assert server.heard() == ["stop True"]
    assert not is_running(server.starts()[0])


def test_it_answers_until_the_learner_has_stopped(launch: Callable[..., Server]) -> None:
    """While the learner takes its last checkpoint, health is answered: alive, and no longer ready."""
    server = launch(manner="slow")
    until(server.starts)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.heard() == ["stop True"])
    assert server.get("/v2/health/live").status_code == 200
    assert server.get("/v2/health/ready").json()["reason"] == "the server is stopping"
    assert server.end() == 0


def test_a_second_signal_skips_the_checkpoint(launch: Callable[..., Server]) -> None:
    """A learner that is busy with its checkpoint is told to leave it, by a second signal of either kind."""
    server = launch(manner="slow")
    until(server.starts)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.heard() == ["stop True"])
    assert server.end(signal.SIGINT) == 0
    assert server.heard() == ["stop True", "stop False"]


def test_a_learner_that_does_not_stop_is_killed(launch: Callable[..., Server]) -> None:
    """After the second signal's time a stuck learner is killed, and the exit code is still 0."""
    server = launch(manner="stuck")
    until(server.starts)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.heard() == ["stop True"])
    assert server.end() == 0
    assert not is_running(server.starts()[0])


def test_a_killed_learner_is_started_again_and_counted(launch: Callable[..., Server]) -> None:
    """kill -9 of the learner: a new one is there within a moment, said and counted; its sums go on."""
    server = launch()
    until(lambda: "streamkd_train_steps_total 5.0" in server.get("/metrics").text)
    os.kill(server.starts()[0], signal.SIGKILL)
    until(lambda: "streamkd_train_steps_total 10.0" in server.get("/metrics").text)
    assert 'streamkd_process_restarts_total{process="learner"} 1.0' in server.get("/metrics").text
    assert server.status()["processes"]["learner"]["restarts"] == 1
    assert len(server.starts()) == 2


def test_children_end_with_a_killed_supervisor(launch: Callable[..., Server]) -> None:
    """kill -9 of the supervisor takes its children with it."""
    server = launch(PUSH)
    until(lambda: "flight" in server.status()["urls"])
    pids = [p["pid"] for p in server.status()["processes"].values()]
    assert len(pids) == 2
    assert all(map(is_running, pids))
    server.end(signal.SIGKILL)
    until(lambda: not any(map(is_running, pids)))


def test_an_ingress_hears_of_the_checkpoint_that_came_before_it(launch: Callable[..., Server]) -> None:
    """Told while no ingress was there to hear it, also after a kill -9: each ingress knows what makes room."""
    server = launch(PUSH)
    until(lambda: "flight" in server.status()["urls"])
    until(lambda: "committed" in server.heard("ingress-heard"))
    told = len(server.heard("ingress-heard"))
    os.kill(server.status()["processes"]["ingress"]["pid"], signal.SIGKILL)
    until(lambda: server.heard("ingress-heard")[told:] == ["committed"])


def test_children_leave_the_groups_signals_to_the_supervisor(launch: Callable[..., Server]) -> None:
    """SIGTERM to every process at once, as service managers send it, still ends in order."""
    server = launch()
    until(lambda: server.get("/v1/status").json().get("records_trained"))
    os.kill(server.starts()[0], signal.SIGTERM)
    assert server.end() == 0
    assert server.heard() == ["stop True"]


def test_a_fatal_message_ends_the_server_with_its_code(tmp_path: Path) -> None:
    """A learner that can never work is not started again: its message is printed, its exit code is ours."""
    (tmp_path / "state").mkdir()
    ended = subprocess.run(
        command(REPLAY, tmp_path / "state"),
        env={**os.environ, "FAKE": "fatal", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 2
    assert "error: the state directory is another's" in ended.stderr
    assert len((tmp_path / "state" / "starts").read_text().split()) == 1


def test_a_learner_that_has_finished_is_left_finished(launch: Callable[..., Server]) -> None:
    """After the end of a finite stream the server goes on answering without a learner."""
    server = launch(manner="finished")
    until(lambda: server.status()["processes"]["learner"]["state"] == "stopped")
    assert len(server.starts()) == 1
    assert server.end() == 0


def test_the_ingress_keeps_its_port_over_a_restart_and_is_drained_first(launch: Callable[..., Server]) -> None:
    """The ingress starts once the learner is ready, comes back on its port, and drains before the learner stops."""
    server = launch(PUSH)
    until(lambda: "flight" in server.status()["urls"])
    before = server.status()["urls"]["flight"]
    pid = server.status()["processes"]["ingress"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: server.status()["processes"]["ingress"]["pid"] not in (pid, None))
    assert server.status()["urls"]["flight"] == before
    until(lambda: server.status()["processes"]["ingress"]["doing"] == "taking records")
    assert server.end() == 0
    assert server.heard("ingress-heard")[-1] == "drain"
    assert (server.state / "ingress-heard").stat().st_mtime <= (server.state / "heard").stat().st_mtime


def test_nobody_reads_what_is_printed(launch: Callable[..., Server]) -> None:
    """`streamkd serve | head -1`: the children are kept as before, and the end is clean."""
    server = launch(PUSH)
    assert server.process.stdout is not None
    server.process.stdout.close()
    until(lambda: "flight" in server.status()["urls"])
    pid = server.status()["processes"]["ingress"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: server.status()["processes"]["ingress"]["pid"] not in (pid, None))
    assert server.end() == 0


def test_the_lag_of_a_learner_that_hangs_rises(launch: Callable[..., Server]) -> None:
    """The supervisor measures it: what the ingress says of the log's end, less where the learner was heard last."""
    server = launch(PUSH)
    until(lambda: (server.get("/v1/status").json()["lag_records"] or 0) > 4)
    os.kill(server.starts()[0], signal.SIGSTOP)
    before = server.get("/v1/status").json()["lag_records"]
    until(lambda: server.get("/v1/status").json()["lag_records"] > before + 5)
    until(lambda: server.status()["processes"]["learner"]["silent_seconds"] > 0.5)
    text = server.get("/metrics").text
    assert re.search(r'streamkd_source_lag_records\{source="flight"\} [1-9]', text)
    assert re.search(r'streamkd_process_heartbeat_age_seconds\{process="learner"\} \d', text)
    server.process.kill()


def test_a_learner_that_hangs_does_not_hold_up_the_end(launch: Callable[..., Server]) -> None:
    """SIGTERM, and the learner does not even say that it stops: it is killed, and the exit code is 0."""
    server = launch()
    until(lambda: server.status()["processes"]["learner"].get("doing") == "learning")
    os.kill(server.starts()[0], signal.SIGSTOP)
    begun = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - begun < 15  # 0.1 s to drain, 1 s to be heard, 1 s to hurry


def test_a_hung_servers_end_is_within_the_promise() -> None:
    """Drain, a hung ingress, a hung learner, open requests: within 45 s together, less than service managers wait."""
    learner = supervisor.HUNG_SECONDS + supervisor.HURRIED_SECONDS
    drain = configuration.Serve().drain_seconds
    assert drain + supervisor.INGRESS_SECONDS + learner + GRACEFUL_SECONDS <= 45


def test_a_learner_that_saves_is_waited_for(launch: Callable[..., Server]) -> None:
    """One that has said that it stops has the time that its checkpoint takes."""
    server = launch(manner="saves")
    until(lambda: server.status()["processes"]["learner"].get("doing") == "learning")
    assert server.end() == 0
    assert server.heard() == ["stop True"]


def test_a_hangup_drains_and_never_hurries(launch: Callable[..., Server]) -> None:
    """SIGHUP ends in order as SIGTERM does, also where the terminal says it to the whole group, and twice."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have it ignored
    try:
        server = launch(manner="slow-hangup")
    finally:
        signal.signal(signal.SIGHUP, before)
    until(server.starts)
    until(lambda: server.status()["processes"]["learner"].get("doing") == "learning")
    os.kill(server.starts()[0], signal.SIGHUP)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.heard() == ["stop True"])
    assert server.end(signal.SIGHUP) == 0
    assert server.heard() == ["stop True"]


def test_nohup_is_respected(launch: Callable[..., Server]) -> None:
    """A server that was started with SIGHUP ignored goes on when its terminal goes."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = launch()
    finally:
        signal.signal(signal.SIGHUP, before)
    until(server.starts)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    assert ignored >> (signal.SIGHUP - 1) & 1
    server.process.send_signal(signal.SIGHUP)
    assert server.get("/v2/health/live").status_code == 200
    assert server.heard() == []


@pytest.fixture
def published(tmp_path: Path) -> None:
    """A version in the state directory of ``launch``."""
    publisher = Publisher(tmp_path / "state")
    publisher.publish(seed=1)
    publisher.close()


def ready(server: Server) -> tuple[int, str]:
    """The readiness, and the reason where it is not."""
    reply = server.get("/v2/health/ready")
    return reply.status_code, reply.json().get("reason", "")


@pytest.mark.usefixtures("published")
def test_ready_is_every_door(launch: Callable[..., Server]) -> None:
    """A version that answers is not enough where records are to be pushed: the ingress must listen, now and later.

    The restart of a learner closes nothing; an ingress that is stopped makes the server not ready, and is replaced.
    Predictions are ready all the time.
    """
    server = launch({**PUSH, "serve": {"hang_seconds": 10}}, manner="late")
    until(lambda: server.get("/v2/models/student/ready").status_code == 200)
    assert ready(server) == (503, "records are not taken yet: the learner has not loaded")
    (server.state / "go").touch()
    until(lambda: ready(server)[0] == 200)
    os.kill(server.starts()[0], signal.SIGKILL)
    until(lambda: len(server.starts()) == 2)
    assert ready(server)[0] == 200
    os.kill(server.status()["processes"]["ingress"]["pid"], signal.SIGSTOP)
    until(lambda: "has been silent" in ready(server)[1])
    assert server.get("/v2/models/student/ready").status_code == 200
    until(lambda: ready(server)[0] == 200 and server.status()["processes"]["ingress"]["restarts"] == 1)


@pytest.mark.usefixtures("published")
def test_an_ingress_that_cannot_start_again_ends_nothing(launch: Callable[..., Server]) -> None:
    """A fault that is fatal at the first start is said and tried again at a later one; predictions go on."""
    server = launch(PUSH)
    until(lambda: ready(server)[0] == 200)
    (server.state / "broken").touch()
    os.kill(server.status()["processes"]["ingress"]["pid"], signal.SIGKILL)
    until(lambda: "the tokens cannot be read" in ready(server)[1])
    assert "the tokens cannot be read" in server.status()["processes"]["ingress"]["reason"]
    assert server.get("/v2/models/student/ready").status_code == 200
    (server.state / "broken").unlink()
    until(lambda: ready(server)[0] == 200, 20)


def test_a_log_that_is_found_damaged_later_ends_the_server_once(launch: Callable[..., Server]) -> None:
    """Another ingress would open its door and meet the same page: one error and an end, not a loop of restarts."""
    server = launch(PUSH)
    until(lambda: "flight" in server.status()["urls"])
    (server.state / "damaged").touch()
    assert server.process.wait(20) == 1


def test_a_push_while_the_ingress_is_down_is_503(launch: Callable[..., Server]) -> None:
    """Until the ingress listens, pushes are told when to come again."""
    server = launch(PUSH)
    reply = httpx.post(server.url + "/v1/streams/main", content=b"x", timeout=10)
    assert reply.status_code == 503
    assert reply.headers["Retry-After"] == "1"


def test_the_supervisor_never_meets_avalanche() -> None:
    """Neither the module nor any built-in that it loads imports Avalanche: this process does not train."""
    code = (
        "import sys, streamkd.serve.supervisor as s; from streamkd.plugins import Registry; r = Registry.load();"
        "import streamkd.students.networks; sys.exit('avalanche' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_taken_port_is_said_with_the_way_out(tmp_path: Path) -> None:
    """A port that another server has is a configuration error that names the port and how to pick another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = configuration.from_tree({**REPLAY, "serve": {"port": port}})
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 is taken(?s:.)*--port 0") as refused:
            supervisor.serve(config, tmp_path, Registry.load(["replay"]))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"host": "127.0.0.1"}, True),
        ({"host": "localhost"}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "::"}, False),
        ({"host": ""}, False),
        ({"host": "0.0.0.0", "insecure": True}, True),
        ({"host": "0.0.0.0", "tokens": "t.json"}, False),
        ({"host": "0.0.0.0", "tls": {"certificate": "c", "key": "k"}}, False),
        ({"host": "0.0.0.0", "tokens": "t.json", "tls": {"certificate": "c", "key": "k"}}, True),
    ],
)
def test_a_bind_beyond_loopback_needs_tls_and_tokens(settings: dict[str, Any], allowed: bool) -> None:
    """Beyond loopback both are needed, unless `insecure` takes the risk."""
    serve = configuration.Serve.model_validate(settings)
    if allowed:
        check_exposure(serve)
    else:
        with pytest.raises(ConfigError, match="insecure"):
            check_exposure(serve)


def test_an_address_of_nobody_is_said() -> None:
    """A host that does not resolve, and an address that is not this machine's, are configuration errors."""
    with pytest.raises(ConfigError, match=r"serve\.host"):
        is_loopback("no.such.host.invalid")
    with pytest.raises(ConfigError, match=r"serve\.port"):
        bind("192.0.2.1", 0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    pair = {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", pair["key"], "-out", pair["certificate"], "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*request, *files, *names], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return pair


def test_tls_is_served_and_checked(launch: Callable[..., Server], certificate: dict[str, str], tmp_path: Path) -> None:
    """With a certificate the port speaks TLS, and tokens hold there too."""
    tokens = tmp_path / "tokens.json"
    token = create(tokens, "a", ["predict"])
    process = subprocess.Popen(
        command({**REPLAY, "serve": {"tls": certificate, "tokens": str(tokens)}}, tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert process.stdout is not None
    url = re.search(r"https://127\.0\.0\.1:\d+", process.stdout.readline())
    assert url
    context = ssl.create_default_context(cafile=certificate["certificate"])
    with httpx.Client(base_url=url[0], verify=context) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v1/status").status_code == 401
        assert client.get("/v1/status", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()


def test_a_certificate_that_cannot_be_used_is_said(tmp_path: Path, certificate: dict[str, str]) -> None:
    """A missing or wrong certificate is a configuration error before anything starts."""
    (tmp_path / "wrong.pem").write_text("no certificate")
    for name in ("missing.pem", "wrong.pem"):
        tls = {**certificate, "certificate": str(tmp_path / name)}
        config = configuration.from_tree({**REPLAY, "serve": {"port": 0, "tls": tls}})
        with pytest.raises(ConfigError, match=r"serve\.tls"):
            supervisor.serve(config, tmp_path, Registry.load(["replay"]))
