"""Predictions under load, by a client that knows nothing of us, while versions are swapped in behind them."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import tritonclient.http as triton
from sklearn.datasets import load_digits

from .conftest import Serve, Server, until

FAST = ("--set", "stream.source.rate=1500", "--set", "publish.every_seconds=0.001", "--set", "publish.regression=1.0")


@dataclass
class Caller:
    """A thread that asks without pause through tritonclient's defaults, and notes what it was answered."""

    address: str
    stop: threading.Event
    versions: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0

    def run(self) -> None:
        images = load_digits().images[:4].astype(np.uint8)
        with triton.InferenceServerClient(self.address) as client:
            while not self.stop.is_set():
                begun = time.monotonic()
                try:
                    self._ask(client, images)
                except Exception as fault:  # whatever it is, the request was dropped
                    self.faults.append(repr(fault))
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - begun)

    def _ask(self, client: triton.InferenceServerClient, images: np.ndarray) -> None:
        given = triton.InferInput("image", list(images.shape), "UINT8")
        given.set_data_from_numpy(images)
        answer = client.infer("student", [given])
        probability = answer.as_numpy("probability")
        assert answer.as_numpy("label").shape == (4,)
        assert np.allclose(probability.sum(1), 1, atol=1e-5)
        said = answer.get_response()["parameters"]
        assert said["lag_records"] >= 0
        assert said["published_timestamp_seconds"] <= time.time()
        self.versions.append(said["version"])


def check_swaps(serve: Serve, swaps: int) -> Server:
    """Ask from four threads until so many versions have been swapped in; no request may fail."""
    server = serve(None, *FAST)
    until(server.ready, 60, "readiness")
    stop = threading.Event()
    callers = [Caller(server.url.removeprefix("http://"), stop) for _ in range(4)]
    threads = [threading.Thread(target=caller.run) for caller in callers]
    first = server.metric("model_swaps_total")
    for thread in threads:
        thread.start()
    try:
        until(lambda: server.metric("model_swaps_total") >= first + swaps, 600, f"{swaps} swaps")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    asked = sum(len(caller.versions) for caller in callers)
    assert [fault for caller in callers for fault in caller.faults] == []
    assert all(caller.versions == sorted(caller.versions) for caller in callers)
    assert asked > swaps
    assert server.metric("predict_failures_total") == 0
    print(f"{asked} requests over {swaps} swaps, slowest {max(c.slowest_seconds for c in callers):.3f} s")
    return server


@pytest.mark.soak
def test_swaps_under_load_drop_nothing(serve: Serve) -> None:
    """20 versions are swapped in while four clients ask: every request is answered, versions only rise; tasks recur.

    200 of them in ``tests/serve/predictions/test_follower.py`` with the model alone, and below.
    """
    server = check_swaps(serve, 20)
    until(lambda: _recurred(server), 60, "a task that comes again")


def _recurred(server: Server) -> bool:
    names = [boundary["task"] for boundary in server.status()["boundaries"]]
    return len(names) > len(set(names))


@pytest.mark.soak
def test_two_hundred_swaps_under_load_drop_nothing(serve: Serve) -> None:
    """200 versions are swapped in while four clients ask: every request is answered."""
    check_swaps(serve, 200)
