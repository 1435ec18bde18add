"""A running server that is taught by streamkd-vision, from the installed wheel."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SIZE = 32
IMAGENET = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
DIGITS = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "repeat": True}
# digits' own scale of 0..16
TEACHER = {"name": "torchvision", "id": "eye", "network": "mobilenet_v3_small", "size": SIZE, "scale": 1 / 16}
TRANSFER = {"name": "attention-transfer", "teacher": "eye", "pairs": [["body.convolutions.0", "features.1"]]}


@torch.no_grad()
def trained() -> nn.Module:
    """A network that knows digits: random layers below, and a last layer solved by ridge regression on 600 images."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.get_model("mobilenet_v3_small", weights=None, num_classes=10).eval()
    images, labels = load_digits(return_X_y=True)
    x = torch.nn.functional.interpolate(
        torch.tensor(images[:600], dtype=torch.float32).view(-1, 1, 8, 8) / 16, (SIZE, SIZE), mode="bilinear"
    )
    x = (x - IMAGENET[0].view(-1, 1, 1)) / IMAGENET[1].view(-1, 1, 1)
    last = network.classifier[3]
    inputs: list[Tensor] = []
    handle = last.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    network.train()  # the statistics of its normalisation become those of digits
    for _ in range(3):
        network(x)
    network.eval()
    inputs.clear()
    network(x)
    handle.remove()
    seen = inputs[0].double()
    centre, spread = seen.mean(0), seen.std(0).clamp_min(1e-9)
    seen = torch.cat([(seen - centre) / spread, torch.ones(len(seen), 1)], 1)
    targets = 10 * torch.nn.functional.one_hot(torch.tensor(labels[:600]), 10).double()
    solved = torch.linalg.solve(seen.T @ seen + torch.eye(seen.shape[1]).double(), seen.T @ targets)
    last.weight.copy_((solved[:-1] / spread.unsqueeze(1)).T)
    last.bias.copy_(solved[-1] - (solved[:-1] / spread.unsqueeze(1)).T @ centre)
    return network


@dataclass
class Server:
    """A server of its own process, and what it said."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""
    seen: dict[str, Any] = field(default_factory=dict)

    def until(self, what: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 90) -> dict[str, Any]:
        """The first status for which something holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            self.url = self.url or "".join(re.findall(r"http://127\.0\.0\.1:\d+", self.log.read_text("utf-8"))[:1])
            if self.url:
                self.seen = httpx.get(f"{self.url}/v1/status", verify=False).json()  # no TLS, and 20 ms less
                if self.seen.get("records_trained") and holds(self.seen):
                    return self.seen
            time.sleep(0.2)
        pytest.fail(f"{what}: not within {seconds} s\n{self.seen}\n{self.log.read_text('utf-8')[-3000:]}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits for ever, a convolutional student, the trained network as teacher, attention transfer from it."""
    folder = tmp_path_factory.mktemp("served")
    network = trained()
    weights = folder / "digits.safetensors"
    save_file(network.state_dict(), weights, {"classes": json.dumps(list(range(10)))})
    tree = {
        "name": "vision",
        "stream": {
            # short tasks: three are over after 240 records
            "source": {**DIGITS, "per_class": 40, "rate": 200}
        },
        "student": {"name": "convnet", "channels": [8], "hidden": 32},
        "teachers": [{"name": "ema"}, {**TEACHER, "weights": str(weights)}],
        "losses": [{"name": "match-gate"}, {**TRANSFER, "weight": 0.5}],
        "checkpoint": {"every_seconds": 1},
    }
    path = folder / "vision.yaml"
    path.write_text(yaml.safe_dump(tree), "utf-8")
    return path


@pytest.fixture
def serve(python: Path, configuration: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on free ports and ends what is left of them."""
    started: list[Server] = []

    def start(*more: str, state: str = "state") -> Server:
        log = tmp_path / f"{len(started)}.log"
        command = [python, "-m", "streamkd", "serve", configuration, "--state", tmp_path / state, "--port", "0"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*map(str, command), "--flight-port", "0", *more],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
        started.append(Server(process, log))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def listed(python: Path, state: Path) -> list[dict[str, Any]]:
    """The teachers of a state directory, as the command lists them."""
    command = [python, "-m", "streamkd", "teachers", "list", "--state", state, "--json"]
    done = subprocess.run([*map(str, command)], cwd=state.parent, capture_output=True, timeout=60, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def teacher(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next((t for t in status["teachers"] or [] if t["name"] == name), {})


@pytest.mark.soak
def test_a_server_is_taught_by_it_and_resumes(serve: Callable[..., Server], python: Path, tmp_path: Path) -> None:
    """The network is heard by the gate, is missed on held-out records, and a restart goes on with the same teacher."""
    first = serve()
    status = first.until("two tasks with the teacher", lambda s: len(s["tasks"]) >= 3 and bool(s["version"]))
    eye = teacher(status, "eye")
    assert eye["weight"] > 0.01
    assert eye["marginal_gain"] is not None
    assert eye["classes"] == len(status["classes"])
    assert eye["bytes"] > 1_000_000
    metrics = httpx.get(f"{first.url}/metrics").text
    assert 'streamkd_gate_weight_ratio{teacher="eye"}' in metrics
    request = {"inputs": [{"name": "image", "shape": [1, 8, 8], "datatype": "UINT8", "data": [0] * 64}]}
    answer = httpx.post(f"{first.url}/v2/models/student/infer", json=request)
    assert answer.status_code == 200, answer.text
    trained_before = first.until("a status", lambda s: True)["records_trained"]
    assert first.stop() == 0
    known = {row["name"]: row for row in listed(python, tmp_path / "state")}
    assert known["eye"]["accuracy"] > 0.8
    second = serve()
    second.until(
        "more records, weighed with the teacher",
        lambda s: s["records_trained"] > trained_before + 100 and (teacher(s, "eye").get("weight") or 0) > 0.01,
    )
    assert second.stop() == 0


def test_a_server_refuses_weights_that_are_not_there(serve: Callable[..., Server]) -> None:
    """A file that is not there ends the start with the reason, instead of a learner that is started again and again."""
    server = serve("--set", "teachers.1.weights=/nowhere/digits.safetensors")
    code = server.process.wait(60)
    log = server.log.read_text("utf-8")
    assert code in (1, 2), log
    assert "/nowhere/digits.safetensors: weights cannot be read" in log
    assert "Traceback" not in log
