"""From the configuration to parts: whatever a ``Choice`` names, built and joined.

    parts      a choice ─► the part that it names; what a plugin raises, with the place
    sources    stream ─► schema, and the source or the log of what is pushed
    device     device ─► torch's
    beginning  meta ─► the gate and the start that were learned before the stream
    step       student, teachers, gate, losses, memory, ... ─► what one training step moves
    rehearsal  all of these, built once at start and let go
    sample     the first records, and one of them as the student sees it
    conflicts  what a state directory was written under and may not change

Only this room, ``streamkd.learner`` and the commands read the configuration; the parts take plain arguments.
"""

from streamkd.wiring.beginning import artefact_of, begun_from, learned_for
from streamkd.wiring.conflicts import refuse_conflicts
from streamkd.wiring.device import device_of
from streamkd.wiring.parts import make, make_all
from streamkd.wiring.rehearsal import rehearse, rehearse_source
from streamkd.wiring.sample import sample
from streamkd.wiring.sources import open_source, schema_of, source_kind
from streamkd.wiring.step import step_of, student_of

__all__ = [
    "artefact_of",
    "begun_from",
    "device_of",
    "learned_for",
    "make",
    "make_all",
    "open_source",
    "refuse_conflicts",
    "rehearse",
    "rehearse_source",
    "sample",
    "schema_of",
    "source_kind",
    "step_of",
    "student_of",
]
