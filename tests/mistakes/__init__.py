"""Deliberate mistakes: plugins that are right but for one thing, each with the clause that finds it."""

from mistakes import (
    admissions,
    gates,
    losses,
    optimizers,
    policies,
    rows,
    selectors,
    sources,
    students,
    teachers,
    watchers,
)
from mistakes.mistake import Mistake

MISTAKES: tuple[Mistake, ...] = (
    *students.MISTAKES,
    *teachers.MISTAKES,
    *losses.MISTAKES,
    *gates.MISTAKES,
    *optimizers.MISTAKES,
    *rows.MISTAKES,
    *sources.MISTAKES,
    *watchers.MISTAKES,
    *policies.MISTAKES,
    *selectors.MISTAKES,
    *admissions.MISTAKES,
)
