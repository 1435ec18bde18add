"""Desks: predictions of many tenants from one process, while there is room."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from streamkd import config as configuration
from streamkd.plugins import Registry
from streamkd.serve.http.ingest_proxy import IngestProxy
from streamkd.serve.predictions.reader import Reader
from streamkd.serve.tenants.desks import Desks
from streamkd.serve.tenants.folder import TenantFile
from streamkd.serve.tenants.tenant import Tenant
from streamkd.settings import Serve

from ..conftest import Publisher

TREE = {"stream": {"source": {"name": "http"}, "records": {"inputs": [{"name": "x", "shape": [2]}]}}}


@pytest.fixture
def tenants(tmp_path: Path) -> list[Tenant]:
    """Three, each with a published version of its own."""
    made = []
    for seed, name in enumerate("abc"):
        publisher = Publisher(tmp_path / name)
        publisher.publish(seed=seed)
        publisher.close()
        file = TenantFile(tmp_path / f"{name}.yaml", ())
        made.append(Tenant(name, file, tmp_path / name, configuration.from_tree(TREE)))
    return made


@pytest.fixture
def open_desks(registry: Registry) -> Iterator[Callable[[int], Desks]]:
    made: list[Desks] = []

    def make(room_bytes: int) -> Desks:
        made.append(Desks(Serve(), registry, IngestProxy(None, "http", 1 << 20), Reader(), room_bytes))
        return made[-1]

    yield make
    for desks in made:
        for name in "abc":
            desks.close(name)


def test_each_answers_from_its_own_version(tenants: list[Tenant], open_desks: Callable[[int], Desks]) -> None:
    """Three tenants have three models: the same input has three answers, and a desk is opened once."""
    desks = open_desks(1 << 30)

    async def ask(tenant: Tenant) -> bytes:
        predictor = desks.open(tenant).predictor
        return (await predictor.predict(predictor.current(), np.ones((1, 2, 3), np.float32))).tobytes()

    for tenant in tenants:
        assert desks.open(tenant).follower.looked.wait(10)
    assert len({asyncio.run(ask(tenant)) for tenant in tenants}) == 3
    assert desks.open(tenants[0]) is desks.open(tenants[0])
    assert desks.surplus() == []


def test_who_was_not_asked_for_longest_gives_way(tenants: list[Tenant], open_desks: Callable[[int], Desks]) -> None:
    """With room for two versions the third desk closes that asked least lately; it opens again when asked."""
    desks = open_desks(1 << 30)
    first, second, third = (desks.open(tenant) for tenant in tenants)
    for desk in (first, second, third):
        assert desk.follower.looked.wait(10)
    desks._room_bytes = first.bytes + third.bytes
    desks.open(tenants[0])
    (gone,) = desks.surplus()
    assert gone is second
    gone.close()
    assert len(desks) == 2
    assert desks.open(tenants[1]) is not second


def test_one_desk_stays_however_large(tenants: list[Tenant], open_desks: Callable[[int], Desks]) -> None:
    """The newest is never closed: a model larger than all the room still answers."""
    desks = open_desks(0)
    assert desks.open(tenants[0]).follower.looked.wait(10)
    assert desks.surplus() == []
