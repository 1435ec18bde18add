"""What every test has: one torch thread, deterministic kernels, shapes checked in the modules that state them (of a
function that a test calls often the first calls, and some of the later ones).

``baselines`` (the registry with streamkd-baselines in it), ``oracles`` (slow and obvious formulas), ``toys`` (small
parts to test with), ``gaussians`` (rows of known moments), ``mistakes`` (plugins that break their contract), ``pages``
(what a browser would make of one), ``devices`` (a GPU that is not there), ``kafka_brokers``, ``nats_server``,
``schema_registry``, ``object_store`` and ``google_store`` (on loopback) and ``kernels`` (a processor that rounds
otherwise, for all tests under ``STREAMKD_TEST_PRODUCTS=by-shape``) are importable by name.
"""

import functools
import importlib.util
import inspect
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import jaxtyping
import pytest
from hypothesis import settings

# before torch and OpenMP start
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# some two hundred interpreters are started: each would compile the package anew, and each worker rewrite every test
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_jaxtyped, _tests = jaxtyping.jaxtyped, itertools.count()
_test = next(_tests)
_made: Counter[CodeType] = Counter()
ALWAYS, THEN = 3, 50  # calls of a function in one test whose shapes are all checked, and after them one in so many


def _sampled(function: Callable[..., Any] | type | None = None, **options: Any) -> Any:
    """``jaxtyping.jaxtyped``, whose checks took a quarter of the time of tests that train for a thousand steps."""
    if function is None:
        return lambda function: _sampled(function, **options)
    if inspect.isfunction(function) and "<locals>" in function.__qualname__:
        _made[function.__code__] += 1
        if _made[function.__code__] > ALWAYS:  # each call of what it stands in makes it anew, and would check it anew
            return function
    checked = _jaxtyped(function, **options)
    if not inspect.isfunction(function):
        return checked
    calls, counted_in = 0, -1

    @functools.wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, counted_in
        calls, counted_in = (calls + 1 if counted_in == _test else 1), _test
        return (checked if calls <= ALWAYS or calls % THEN == 0 else function)(*args, **kwargs)

    return either


jaxtyping.jaxtyped = _sampled
_CHECKED = ("students", "gates", "losses", "replay", "teachers", "analytic", "learning", "meta", "pretraining")
jaxtyping.install_import_hook([*(f"streamkd.{room}" for room in _CHECKED), "streamkd_baselines"], "beartype.beartype")
# the same examples on every run, and no deadline on a busy machine
settings.register_profile("streamkd", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("streamkd")


NAMES = (
    "baselines",
    "devices",
    "gaussians",
    "kafka_brokers",
    "schema_registry",
    "kernels",
    "nats_server",
    "google_store",
    "object_store",
    "oracles",
    "pages",
    "toys",
)


class _Late:
    """Finds those beside this file when they are asked for: some import torch, most rooms do not."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        if name in NAMES:
            return importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        if name == "mistakes":
            return importlib.util.spec_from_file_location(name, Path(__file__).with_name(name) / "__init__.py")
        return None


sys.meta_path.append(_Late)  # type: ignore[arg-type]

if os.environ.get("STREAMKD_TEST_PRODUCTS") == "by-shape":
    from kernels import ByShape

    ByShape().__enter__()  # to the end of the process: fixtures of a module compute under it too

# rooms whose tests start processes and wait for them, and files that train for a long time
_LONG = ("tune", "endtoend", "plugins", "pretraining", "test_unlabelled.py", "test_device.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Pages that tests make: ``--write-record`` docs/hardening.md, ``--write-reference`` those of docs/reference/,
    ``--write-changelog`` CHANGELOG.md.
    """
    parser.addoption("--write-record", action="store_true", help="write docs/hardening.md of the tests' rows")
    parser.addoption("--write-changelog", action="store_true", help="gather changes/ into CHANGELOG.md, for a release")
    parser.addoption("--write-reference", action="store_true", help="write what is generated of docs/reference/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first: begun last, one would keep the others waiting at the end of a parallel run."""
    items.sort(key=lambda item: not {item.path.parent.name, item.path.name} & set(_LONG))


@pytest.fixture(autouse=True)
def _one_thread_and_deterministic() -> Iterator[None]:
    """Torch, where a test has imported it, computes on one thread and refuses kernels that are not deterministic."""
    global _test
    _test = next(_tests)
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)
