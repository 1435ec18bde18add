"""The contract of admissions: yes or no, of any applicant and any pool."""

import copy
from collections.abc import Iterator

import torch

from streamkd.hookspecs import Kind
from streamkd.teachers.admission import Admission, Applicant
from streamkd.teachers.worth import Assessment, assessment
from streamkd.testing.clauses import Given, begin, needs, same


def check_admission(kind: Kind, options: Given = None) -> None:
    """An admission: with room and without, in a pool of several and of nobody, on labels that it knows or not.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("admission", kind, options)
    with clause("`make(options)` gives an admission", "give an object with `admits(applicant)`"):
        admission = kind.make(chosen)
        needs(isinstance(admission, Admission), "all that `Admission` names", repr(admission))
    for about, applicant in _applicants():
        shown = copy.deepcopy(applicant)
        with clause(f"admits(applicant) says yes or no, {about}", "a bool; leaving is None where there is room"):
            said = admission.admits(shown)
            needs(isinstance(said, bool), "True or False", repr(said))
        with clause(f"it leaves what it is shown as it is, {about}", "work on copies"):
            for mine, its in ((shown.alone, applicant.alone), (shown.pool, applicant.pool)):
                for name in ("likelihood", "heard", "right"):
                    same(getattr(mine, name).float(), getattr(its, name).float(), 0)
        with clause(f"of the same applicant it says the same, {about}", "hang on the applicant alone"):
            again = [one.admits(copy.deepcopy(applicant)) for one in (admission, kind.make(chosen))]
            needs(again == [said, said], repr([said, said]), repr(again))


def _applicants() -> Iterator[tuple[str, Applicant]]:
    keys = ("first", "second", "third")
    for rate in (0.0, 0.5, 1.0):
        alone, pool, nobody = _assessed(1, rate), _assessed(3, 0.5), _assessed(0, 0.0)
        yield f"{rate:.0%} right, with room", Applicant(alone, 4, pool, keys, None)
        yield f"{rate:.0%} right, for a place", Applicant(alone, 4, pool, keys, "second")
        yield f"{rate:.0%} right, in a pool of nobody", Applicant(alone, 4, nobody, (), None)
    yield "of labels that it does not know", Applicant(_assessed(1, 0.5, heard=False), 4, pool, keys, "third")


def _assessed(teachers: int, rate: float, heard: bool = True) -> Assessment:
    """Of twelve records of four classes, as good as ``rate`` says."""
    labels = torch.arange(12) % 4
    right = torch.arange(12) < 12 * rate
    said = torch.where(right, labels, (labels + 1) % 4)
    logits = 2.0 * torch.nn.functional.one_hot(said, 4).float().unsqueeze(1).repeat(1, teachers, 1)
    known = torch.full(logits.shape, heard)
    return assessment(logits, known, labels)
