"""The names that a plugin may import. What is not here may change without notice; what is here changes with a hook's
version, or with a line in the changelog.

    from streamkd.api import Kind, Options, hookimpl

A name is imported when it is asked for, so that a source does not load torch. ``streamkd.testing`` has the checks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamkd.errors import (
    ConfigError,
    MissingExtra,
    PluginError,
    RecordError,
    SchemaMismatch,
    SourceError,
    StateConflict,
    StateError,
    StreamkdError,
)
from streamkd.hookspecs import Group, Kind, Options, SourceKind, Stateful, TeacherKind, hookimpl

if TYPE_CHECKING:
    from streamkd.gates.gate import Gate, GateInputs, Hedging, Mixing, at_labels, log_answers, share, weights_of
    from streamkd.gates.likelihood import LikelihoodGate, LikelihoodOptions
    from streamkd.gates.per_sample import PerSampleGate, PerSampleOptions
    from streamkd.losses.match_gate import (
        Gated,
        Loss,
        LossInputs,
        Relating,
        Shapes,
        Trained,
        cross_entropy,
        soft_answers,
        soft_of,
        source_losses,
    )
    from streamkd.meta.adaptation import Beginning
    from streamkd.meta.optimizers import Ruled
    from streamkd.observe import Observer
    from streamkd.records import Chunk, InputColumn, Label, Records, RecordSchema, Repeating, Source
    from streamkd.replay.policy import Accounting, Contents, Offered, Policy, Yielding
    from streamkd.replay.rows import HeldOutFigures, RowsContext, RowSource, StepRows
    from streamkd.students.columns import Columns
    from streamkd.students.networks import Student
    from streamkd.tasks.boundary import Boundary, Detector, FindsChanges, Scored
    from streamkd.teachers.admission import Admission, Applicant
    from streamkd.teachers.frozen import FrozenTeacher
    from streamkd.teachers.served import Candidates, Selector, Served
    from streamkd.teachers.teacher import (
        Following,
        Incremental,
        Layered,
        Observing,
        Part,
        Recalling,
        Role,
        Servable,
        Sized,
        Teacher,
        TeacherContext,
        Versioned,
        capture,
        copy_of,
        layer_outputs,
        module_bytes,
    )
    from streamkd.teachers.worth import Assessment

__all__ = [
    "Accounting",
    "Admission",
    "Applicant",
    "Assessment",
    "Beginning",
    "Boundary",
    "Candidates",
    "Chunk",
    "Columns",
    "ConfigError",
    "Contents",
    "Detector",
    "FindsChanges",
    "Following",
    "FrozenTeacher",
    "Gate",
    "GateInputs",
    "Gated",
    "Group",
    "Hedging",
    "HeldOutFigures",
    "Incremental",
    "InputColumn",
    "Kind",
    "Label",
    "Layered",
    "LikelihoodGate",
    "LikelihoodOptions",
    "Loss",
    "LossInputs",
    "MissingExtra",
    "Mixing",
    "Observer",
    "Observing",
    "Offered",
    "Options",
    "Part",
    "PerSampleGate",
    "PerSampleOptions",
    "PluginError",
    "Policy",
    "Recalling",
    "RecordError",
    "RecordSchema",
    "Records",
    "Relating",
    "Repeating",
    "Role",
    "RowSource",
    "RowsContext",
    "Ruled",
    "SchemaMismatch",
    "Scored",
    "Selector",
    "Servable",
    "Served",
    "Shapes",
    "Sized",
    "Source",
    "SourceError",
    "SourceKind",
    "StateConflict",
    "StateError",
    "Stateful",
    "StepRows",
    "StreamkdError",
    "Student",
    "Teacher",
    "TeacherContext",
    "TeacherKind",
    "Trained",
    "Versioned",
    "Yielding",
    "at_labels",
    "capture",
    "copy_of",
    "cross_entropy",
    "hookimpl",
    "layer_outputs",
    "log_answers",
    "module_bytes",
    "share",
    "soft_answers",
    "soft_of",
    "source_losses",
    "weights_of",
]

_LATER = {
    "streamkd.gates.gate": (
        "GateInputs",
        "Gate",
        "Hedging",
        "Mixing",
        "at_labels",
        "log_answers",
        "share",
        "weights_of",
    ),
    "streamkd.gates.likelihood": ("LikelihoodGate", "LikelihoodOptions"),
    "streamkd.gates.per_sample": ("PerSampleGate", "PerSampleOptions"),
    "streamkd.losses.match_gate": (
        "Gated",
        "LossInputs",
        "Loss",
        "Relating",
        "Shapes",
        "Trained",
        "cross_entropy",
        "soft_answers",
        "soft_of",
        "source_losses",
    ),
    "streamkd.meta.adaptation": ("Beginning",),
    "streamkd.meta.optimizers": ("Ruled",),
    "streamkd.observe": ("Observer",),
    "streamkd.records": ("Chunk", "InputColumn", "Label", "RecordSchema", "Records", "Repeating", "Source"),
    "streamkd.replay.policy": ("Accounting", "Contents", "Offered", "Policy", "Yielding"),
    "streamkd.replay.rows": ("HeldOutFigures", "RowSource", "RowsContext", "StepRows"),
    "streamkd.students.columns": ("Columns",),
    "streamkd.students.networks": ("Student",),
    "streamkd.tasks.boundary": ("Boundary", "Detector", "FindsChanges", "Scored"),
    "streamkd.teachers.admission": ("Admission", "Applicant"),
    "streamkd.teachers.frozen": ("FrozenTeacher",),
    "streamkd.teachers.served": ("Candidates", "Selector", "Served"),
    "streamkd.teachers.teacher": (
        "Following",
        "Incremental",
        "Layered",
        "Observing",
        "Part",
        "Recalling",
        "Role",
        "Servable",
        "Versioned",
        "Sized",
        "Teacher",
        "TeacherContext",
        "capture",
        "copy_of",
        "layer_outputs",
        "module_bytes",
    ),
    "streamkd.teachers.worth": ("Assessment",),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _LATER.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'streamkd.api' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
