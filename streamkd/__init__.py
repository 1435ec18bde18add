"""streamkd: a continual learner that lives on a data stream.

A small student learns from live labelled records and answers predictions while it
learns; a pool of teachers, listened to through a learned gate, keeps it from forgetting.
What is offered here is imported when it is asked for: ``streamkd --help`` must answer before torch could be loaded.
"""

from typing import Any

__version__ = "0.1.0"
_OFFERED = {
    "MatchGateDistillation": "streamkd.avalanche.plugin",
    "load": "streamkd.export.published",
    "meta_train": "streamkd.pretraining.plain",
}


def __getattr__(name: str) -> Any:
    if name not in _OFFERED:
        raise AttributeError(f"module 'streamkd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_OFFERED[name]), name)
