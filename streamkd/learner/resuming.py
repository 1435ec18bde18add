"""The parts that learn as a tree for a checkpoint, and the same parts from one.

What a configuration may change between two starts (losses, gate, optimiser) begins anew, and is said; what it may not
change was refused before (``wiring.refuse_conflicts``).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamkd.config import Config
from streamkd.errors import StateConflict
from streamkd.learning import terms
from streamkd.learning.step import Step
from streamkd.meta.adaptation import GateAdapter
from streamkd.meta.artefact import Artefact
from streamkd.records import Label
from streamkd.students import optimizers
from streamkd.students.networks import Student

CHANGEABLE = ("optimizer", "gate", "teachers", "pool", "losses", "adapt", "vicinal", "rows")
FORM = (
    3  # of the tree; 1 weighed sources without exponents, and had no teachers of the present; 2 a `linear` without bins
)
EVIDENCE = ("held_out", "mixture", "contradiction", "recent", "present")  # is gathered again within a thousand records
PRESENT = {1: ("linear", "forgetting"), 2: ("linear",)}  # their tables had other columns
logger = logging.getLogger("streamkd.learner")


def today(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree of a checkpoint in the form of today; what has no place in it begins anew, and is said.

    Raises:
        StateConflict: a newer streamkd wrote it.
    """
    form, learned = tree.get("form", 1), tree["learned"]
    if form > FORM:
        raise StateConflict(
            f"needed a checkpoint of form {FORM}, got {form}", where="checkpoint", fix="upgrade streamkd"
        )
    if form == FORM or learned is None:
        return tree
    evidence = EVIDENCE if form == 1 else ()
    logger.warning(
        "an older streamkd wrote the checkpoint: %steachers of the present (%s) begin anew",
        "weights of sources, and " if evidence else "",
        ", ".join(PRESENT[form]),
    )
    pool = learned["pool"]
    teachers = {key: state for key, state in pool["teachers"].items() if key not in PRESENT[form]}
    kept = {name: state for name, state in learned.items() if name not in evidence}
    for group in tree.get("measures", {}).get("pending", {}).get("groups", []):
        for key in PRESENT[form]:  # what its heads said of records that still wait for their labels
            group["evidence"].pop(key, None)
    return {**tree, "learned": {**kept, "pool": {**pool, "teachers": teachers}}}


def state_of(step: Step, adapter: GateAdapter, begun: Artefact | None) -> dict[str, Any]:
    """Everything of them that decides what is learned next."""
    return {
        "student": step.student.state_dict(),
        "optimizer": optimizers.state_of(step.optimizer),
        "memory": step.memory.state_dict(),
        "rows": step.sources.state_dict(),
        "held_out": step.held_out.state_dict(),
        "mixture": step.mixture.state_dict(),
        "contradiction": step.contradiction.state_dict(),
        "recent": step.recent.state_dict(),
        "present": step.present.state_dict(),
        "settling": step.rate_decay.state_dict(),
        "pool": step.pool.state_dict(),
        "gate": step.gate.state_dict(),
        "begun": begun and begun.state_dict(),
        "heritage": step.transfer.state_dict() if step.transfer else {},
        "losses": terms.state_of(step.terms),
        "strikes": {each.kind: dict(each.counts) for each in (step.gate_strikes, step.loss_strikes)},
        "adapter": adapter.state_dict(),
    }


def restore(
    step: Step,
    adapter: GateAdapter,
    learned: Mapping[str, Any],
    saved: Config,
    now: Config,
    labels: Sequence[Label],
    fresh_student: Callable[[int], Student],
) -> None:
    """Bring fresh parts of the configuration ``now`` to where they were under ``saved``."""
    device = next(step.student.parameters()).device
    step.student.load_state_dict(learned["student"])
    if step.transfer is not None:
        step.transfer.load_state_dict(learned["heritage"])
    _restore_optimizer(step, learned, saved, now)
    step.memory.load_state_dict(learned["memory"], device)
    if "rows" in learned:
        step.sources.load_state_dict(learned["rows"])
    if "held_out" in learned:
        step.held_out.load_state_dict(learned["held_out"])
    if "mixture" in learned:
        step.mixture.load_state_dict(learned["mixture"])
        step.contradiction.load_state_dict(learned["contradiction"])
        step.recent.load_state_dict(learned["recent"], device)
    if "present" in learned:
        step.present.load_state_dict(learned["present"])
    if "settling" in learned:
        step.rate_decay.load_state_dict(learned["settling"])
    step.pool.load_state_dict(learned["pool"], fresh_student, labels)
    for each in (step.gate_strikes, step.loss_strikes):
        each.counts = dict(learned.get("strikes", {}).get(each.kind, {}))
    if saved.gate == now.gate:
        step.gate.load_state_dict(learned["gate"])
        _restore_adapter(adapter, learned["adapter"], saved, now)
    for what in CHANGEABLE:
        before, after = getattr(saved, what), getattr(now, what)
        if before != after:
            logger.warning("%s has changed since the checkpoint: was %s, is %s", what, before, after)


def _restore_optimizer(step: Step, learned: Mapping[str, Any], saved: Config, now: Config) -> None:
    adapters = saved.losses == now.losses and terms.restore(step.terms, learned.get("losses", []))
    if saved.optimizer.name == now.optimizer.name:
        # behind the student's parameters come those of the losses: of other losses than now, they say nothing
        first = None if adapters else len([*step.student.parameters()])
        optimizers.restore(step.optimizer, learned["optimizer"], first)


def _restore_adapter(adapter: GateAdapter, kept: Mapping[str, Any], saved: Config, now: Config) -> None:
    """Where losses have changed, the steps that it kept are of no use; nor is the rest, if some had gates.

    Another optimiser has no use for the moments of the one before.
    """
    if saved.adapt.optimizer != now.adapt.optimizer:
        kept = {**kept, "optimizer": {}}
    if saved.losses == now.losses:
        adapter.load_state_dict(dict(kept))
    elif not any(choice.gate for choice in (*saved.losses, *now.losses)):
        adapter.load_state_dict({**kept, "trail": {"steps": []}})
