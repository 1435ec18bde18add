"""The predictor: batching, bounds, swaps under load; real students."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from streamkd.errors import LimitExceeded, NotReady, Overloaded
from streamkd.serve.predictions.predictor import Predictor
from streamkd.students.networks import LoadedVersion
from streamkd.telemetry import Exposition, Recorder

from ..conftest import SCHEMA, make_student


def published(version: int) -> LoadedVersion:
    return LoadedVersion(make_student(version), [7, 3, 5], version, SCHEMA, 0.0, 100 * version)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 3), np.uint8)


def answer_of(version: int, inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return torch.softmax(make_student(version)(torch.from_numpy(inputs)), 1).numpy()


class Gated:
    """A version whose forward pass waits for a key; the student behind it is real."""

    def __init__(self, version: int) -> None:
        self._real = published(version)
        self.classes, self.version, self.schema = self._real.classes, version, SCHEMA
        self.published_at, self.records = 0.0, 0
        self.open = threading.Event()
        self.entered = threading.Event()
        self.sizes: list[int] = []

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        self.sizes.append(len(inputs))
        self.entered.set()
        assert self.open.wait(10)
        return self._real.predict(inputs)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def predictor(recorder: Recorder) -> Iterator[Predictor]:
    predictor = Predictor(batch_rows=8, queue_rows=32, recorder=recorder)
    yield predictor
    predictor.close()


def test_each_request_gets_its_own_rows(predictor: Predictor) -> None:
    """Requests that share a forward pass, and those larger than one, get the answers of their own rows."""
    version = published(1)
    asked = [images(count, seed) for seed, count in enumerate((1, 3, 2, 8, 1, 5, 10))]

    async def all_at_once() -> list[np.ndarray]:
        return await asyncio.gather(*(predictor.predict(version, inputs) for inputs in asked))

    for inputs, got in zip(asked, asyncio.run(all_at_once()), strict=True):
        assert np.allclose(got, answer_of(1, inputs), atol=1e-6)


async def waiting(predictor: Predictor, rows: int) -> None:
    """Until so many rows wait."""
    while predictor.waiting_rows != rows:
        await asyncio.sleep(0)


def test_waiting_requests_share_a_forward_pass_up_to_its_rows(predictor: Predictor) -> None:
    """While one forward pass runs, what comes meanwhile is gathered, up to batch_rows."""
    gated = Gated(1)

    async def scenario() -> None:
        first = asyncio.create_task(predictor.predict(gated, images(1)))
        await asyncio.to_thread(gated.entered.wait, 5)
        rest = [asyncio.create_task(predictor.predict(gated, images(3))) for _ in range(4)]
        await waiting(predictor, 12)
        gated.open.set()
        await asyncio.gather(first, *rest)

    asyncio.run(scenario())
    assert gated.sizes == [1, 6, 6]


def test_a_full_queue_is_refused_at_once(predictor: Predictor) -> None:
    """Rows beyond the queue's are Overloaded with a time to come again; those waiting are answered."""
    gated = Gated(1)

    async def scenario() -> None:
        tasks = [asyncio.create_task(predictor.predict(gated, images(1)))]
        await asyncio.to_thread(gated.entered.wait, 5)
        tasks += [asyncio.create_task(predictor.predict(gated, images(8))) for _ in range(4)]
        await waiting(predictor, 32)
        with pytest.raises(Overloaded) as refused:
            await predictor.predict(gated, images(1))
        assert refused.value.retry_after_seconds > 0
        gated.open.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_request_that_can_never_fit_is_too_large(predictor: Predictor) -> None:
    """More rows than the whole queue are LimitExceeded, since coming again would not help."""
    with pytest.raises(LimitExceeded):
        asyncio.run(predictor.predict(published(1), images(33)))


def test_a_request_finishes_on_the_version_it_began_with(predictor: Predictor) -> None:
    """A swap between a request's arrival and its forward pass changes nothing for it."""
    old, new = Gated(1), published(2)
    predictor.swap(old)

    async def scenario() -> tuple[np.ndarray, np.ndarray]:
        first = asyncio.create_task(predictor.predict(predictor.current(), images(2)))
        waiting = asyncio.create_task(predictor.predict(predictor.current(), images(2)))
        await asyncio.to_thread(old.entered.wait, 5)
        predictor.swap(new)
        after = asyncio.create_task(predictor.predict(predictor.current(), images(2)))
        await asyncio.sleep(0)
        old.open.set()
        await first
        return await waiting, await after

    waiting, after = asyncio.run(scenario())
    assert np.allclose(waiting, answer_of(1, images(2)), atol=1e-6)
    assert np.allclose(after, answer_of(2, images(2)), atol=1e-6)


def test_an_old_version_is_freed_after_its_last_request(predictor: Predictor) -> None:
    """When a version was swapped out and its requests are answered, nothing holds it."""
    version = published(1)
    predictor.swap(version)
    asyncio.run(predictor.predict(predictor.current(), images(2)))
    watched = weakref.ref(version)
    predictor.swap(published(2))
    del version
    deadline = time.monotonic() + 5
    while watched() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert watched() is None


def test_a_failing_forward_pass_fails_its_requests_alone(predictor: Predictor) -> None:
    """An exception in a forward pass reaches the requests of that pass; the next ones are answered."""
    gated = Gated(1)
    gated.classes = [1]  # the student answers three
    gated.open.set()
    with pytest.raises(ValueError, match="probabilities"):
        asyncio.run(predictor.predict(gated, images(2)))
    assert asyncio.run(predictor.predict(published(1), images(2))).shape == (2, 3)


def test_closing_answers_what_waits_and_refuses_what_comes(recorder: Recorder) -> None:
    """Close finishes the queue; a later request is NotReady."""
    predictor = Predictor(8, 32, recorder)
    gated = Gated(1)

    async def scenario() -> None:
        tasks = [asyncio.create_task(predictor.predict(gated, images(3))) for _ in range(4)]
        await asyncio.to_thread(gated.entered.wait, 5)
        closing = asyncio.create_task(asyncio.to_thread(predictor.close))
        while not predictor._closed:
            await asyncio.sleep(0)
        gated.open.set()
        await asyncio.gather(*tasks, closing)
        with pytest.raises(NotReady):
            await predictor.predict(gated, images(1))

    asyncio.run(scenario())


def test_nothing_published_is_not_ready(predictor: Predictor) -> None:
    """Before the first swap there is no version."""
    with pytest.raises(NotReady, match="no version is published"):
        predictor.current()


def test_200_swaps_under_load_drop_no_request(predictor: Predictor, recorder: Recorder) -> None:
    """While versions are swapped 200 times, every request is answered, by the version it was bound to."""
    predictor.swap(published(0))
    versions = [published(i) for i in range(1, 201)]
    inputs = images(2)
    done = threading.Event()

    def swap_all() -> None:
        for version in versions:
            predictor.swap(version)
            time.sleep(0.004)
        done.set()

    async def client() -> int:
        answered = 0
        while not done.is_set():
            bound = predictor.current()
            got = await predictor.predict(bound, inputs)
            if answered % 25 == 0:
                assert np.allclose(got, answer_of(bound.version, inputs), atol=1e-6)
            answered += 1
        return answered

    async def clients() -> list[int]:
        return await asyncio.gather(*(client() for _ in range(6)))

    swapper = threading.Thread(target=swap_all)
    swapper.start()
    answered = asyncio.run(clients())
    swapper.join()
    assert predictor.version == 200
    assert min(answered) > 0
    exposition = Exposition()
    exposition.apply(recorder.drain())
    assert exposition.expose()[0].count(b"predict_queue_duration_seconds_count " + str(sum(answered)).encode()) == 1
