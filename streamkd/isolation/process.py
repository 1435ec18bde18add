"""The process of one teacher: it builds it, and answers what it is asked until nobody is there any more.

    a file with what to build ─► facts ─► (call, arguments) ─► what the teacher says, facts ─► ...
                                  any error ─► its reason, its words ─► the process ends

Started by ``streamkd.isolation.worker`` as ``python -m`` this module ``--fd N``.
"""

import contextlib
import socket
import traceback
from pathlib import Path
from typing import Any

import torch

from streamkd import logs, threads
from streamkd.cores import compute_on
from streamkd.errors import PluginError
from streamkd.hookspecs import Stateful
from streamkd.isolation import frames
from streamkd.plugins import Registry
from streamkd.process import bound_memory, descriptor, follow_parent, lacks_memory
from streamkd.records import RecordSchema
from streamkd.students import networks
from streamkd.teachers.teacher import (
    Following,
    Incremental,
    Observing,
    Recalling,
    Sized,
    Teacher,
    TeacherContext,
    Versioned,
)

CAN = {"observe": Observing, "test_then_train": Incremental, "recall": Recalling, "state": Stateful}
WORDS = 4_000  # of a traceback that are told, the last ones


def main() -> int:
    """On the descriptor that the learner has left."""
    logs.to_stderr("%(asctime)s teacher %(levelname)s %(message)s")
    follow_parent()
    with contextlib.suppress(OSError):  # where memory runs out, this process goes before the learner
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    return live(socket.socket(fileno=descriptor()))


def live(end: socket.socket) -> int:
    """From what is to be built to the end of the socket; the exit code."""
    try:
        teacher = _built(_what_to_build(end))
        can = [name for name, kind in CAN.items() if isinstance(teacher, kind)]
        frames.send(end, {"role": teacher.role, "fresh": teacher.fresh, "can": can, **_facts(teacher)})
        with torch.no_grad():
            while True:
                asked = frames.receive(end)
                said = _said(teacher, asked["call"], asked["arguments"])
                frames.send(end, {"said": said, **_facts(teacher)})
    except (EOFError, ConnectionError):
        return 0
    except BaseException as fault:  # noqa: BLE001 - a teacher is a stranger's code; what it exits with, too
        reason = "memory" if lacks_memory(fault) else "raised"
        said = {"reason": reason, "fault": f"{type(fault).__name__}: {fault}", "trace": traceback.format_exc()[-WORDS:]}
        with contextlib.suppress(OSError):
            frames.send(end, said)
        return 1
    finally:
        end.close()


def _what_to_build(end: socket.socket) -> dict[str, Any]:
    _, (file, *_), *_ = socket.recv_fds(end, 1, 1)
    with open(file, "rb") as whole:  # noqa: PTH123 - by its descriptor
        whole.seek(0)
        about: dict[str, Any] = frames.decode(whole.read())
    return about


def _built(about: dict[str, Any]) -> Teacher:
    compute_on(about["threads"])
    registry, schema = Registry.load(about["entries"]), RecordSchema.model_validate(about["schema"])
    mine, kind = about["student"], registry.kind("teachers", about["teacher"]["name"])
    body = registry.kind("students", mine["name"])
    options = body.options.model_validate(mine["options"])
    student = networks.build(body, options, schema, len(about["labels"]), about["seed"])
    student.load_state_dict(mine["weights"])
    device = torch.device(about["device"])
    bound_memory(about["memory_bytes"])
    context = TeacherContext(about["key"], student.to(device), schema, about["labels"], device, registry)
    teacher = kind.make(kind.options.model_validate(about["teacher"]["options"]), context)
    _refuse_followers(teacher, kind.name)
    return teacher


def _refuse_followers(teacher: Any, name: str) -> None:
    """Who is made of the student, or of what the learner remembers, cannot be elsewhere.

    Raises:
        PluginError: it is one of them.
    """
    if not isinstance(teacher, Teacher) or isinstance(teacher, Following) or teacher.role == "remembered":
        raise PluginError(
            f"needed a teacher of its own, got {type(teacher).__name__}, which is made of the student or its memory",
            where=f"teacher {name}",
            fix="leave `isolate` out",
        )


def _facts(teacher: Teacher) -> dict[str, Any]:
    """What is read of a teacher without asking it."""
    facts: dict[str, Any] = {"known": teacher.known()}
    if isinstance(teacher, Versioned):
        facts["version"] = teacher.version
    if isinstance(teacher, Sized):
        facts["bytes"] = teacher.size_bytes()
    return facts


def _said(teacher: Any, call: str, arguments: list[Any]) -> Any:
    if call == "state":
        return teacher.state_dict()
    if call == "begin":
        state, labels = arguments
        if state is not None:
            teacher.load_state_dict(state)
        teacher.grow(labels)
        return None
    return getattr(teacher, call)(*arguments)


if __name__ == "__main__":
    threads.run_process(main)
