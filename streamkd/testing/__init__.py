"""Contract checks for plugin authors: each runs a kind and raises ``ContractBroken``, which names the broken clause.

    from streamkd.testing import check_gate
    def test_it_keeps_the_contract():
        check_gate(Kind("mine", MyGate, MyOptions))

``options`` are an instance of the kind's options class, a mapping, or nothing where the defaults are enough. Every
built-in passes these checks. They run on small random data from fixed seeds, in a second or two. A
``ContractBroken`` has ``clause``, ``seen`` and ``mend``; plugins/README.md lists mistakes and what is told of each.
"""

from collections.abc import Callable

from streamkd.hookspecs import Group, Kind
from streamkd.testing.admissions import check_admission
from streamkd.testing.clauses import ContractBroken, Given
from streamkd.testing.gates import check_gate
from streamkd.testing.losses import check_loss
from streamkd.testing.optimizers import check_optimizer
from streamkd.testing.policies import check_policy
from streamkd.testing.row_sources import check_rows
from streamkd.testing.selectors import check_selector
from streamkd.testing.sources import check_source
from streamkd.testing.streaming import check_detector, check_observer
from streamkd.testing.students import check_student
from streamkd.testing.teachers import check_teacher

__all__ = [
    "ContractBroken",
    "check",
    "check_admission",
    "check_detector",
    "check_gate",
    "check_loss",
    "check_observer",
    "check_optimizer",
    "check_policy",
    "check_rows",
    "check_selector",
    "check_source",
    "check_student",
    "check_teacher",
]


def check(group: Group, kind: Kind, options: Given = None) -> None:
    """The check of that group, with its defaults.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    checks: dict[Group, Callable[..., None]] = {
        "students": check_student,
        "teachers": check_teacher,
        "losses": check_loss,
        "gates": check_gate,
        "optimizers": check_optimizer,
        "rows": check_rows,
        "sources": check_source,
        "detectors": check_detector,
        "observers": check_observer,
        "policies": check_policy,
        "admissions": check_admission,
        "selectors": check_selector,
    }
    checks[group](kind, options)
