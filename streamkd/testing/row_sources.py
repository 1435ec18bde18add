"""The contract of sources of rows: what a step can learn, the same from the same state."""

from collections.abc import Callable

import torch
from torch import Tensor

from streamkd.hookspecs import Kind
from streamkd.records import InputColumn, RecordSchema
from streamkd.replay.rows import HeldOutFigures, RowsContext, RowSource, StepRows
from streamkd.replay.sources import refuse_unfit
from streamkd.testing.clauses import Clause, Given, begin, carried, needs, same
from streamkd.testing.specimens import IMAGES, rows_of

BYTES = RecordSchema(inputs=(InputColumn(name="image", shape=(8, 8), dtype="uint8"),))
CLASSES = 3
KNOWN = HeldOutFigures(0.5, 0.9)


def check_rows(kind: Kind, options: Given = None, schema: RecordSchema = IMAGES) -> None:
    """A source of rows: rows that fit those of the step, from its state and them alone; ``schema`` is the stream's.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("rows", kind, options)

    def made(of: RecordSchema = schema, seed: int = 5) -> RowSource:
        return kind.make(chosen, RowsContext("mine", of, seed))

    with clause(
        "`make(options, context)` gives a source of rows",
        "methods draw(rows, held_out), state_dict() and load_state_dict(state)",
    ):
        source = made()
        needs(isinstance(source, RowSource), "a RowSource", repr(source))
    _fits(clause, source, schema)
    if schema == IMAGES:
        _fits(clause, made(BYTES), BYTES)
    _changes_nothing(clause, made(), schema)
    _goes_on(clause, made, schema)


def _fits(clause: Clause, source: RowSource, schema: RecordSchema) -> None:
    with clause(
        f"what it draws fits the step's rows ({schema.dtype.name}): streamkd.api.StepRows in their type and shape, "
        "columns that are known or -1, finite, of mass 0 or more; or None",
        "StepRows.of(x.to(rows.x.dtype), y, mass)",
    ):
        for count in (0, 1, 2, 30, 30):
            for held_out in (HeldOutFigures, lambda: KNOWN):
                rows = _step(schema, count)
                drawn = source.draw(rows, held_out)
                if drawn is not None:
                    refuse_unfit(drawn, rows, CLASSES)


def _changes_nothing(clause: Clause, source: RowSource, schema: RecordSchema) -> None:
    with clause("it leaves the step's rows as they are", "work on a copy: index, or clone() them"):
        for _ in range(3):
            rows, before = _step(schema, 30), _step(schema, 30)
            drawn = source.draw(rows, lambda: KNOWN)
            for name in ("x", "y", "mass", "met"):
                same(getattr(rows, name), getattr(before, name), 0)
    with clause("what it has drawn stays as it was given", "give away rows that nothing else writes to"):
        if drawn is not None:
            kept = drawn.x.clone()
            source.draw(_step(schema, 30, seed=1), lambda: KNOWN)
            same(drawn.x, kept, 0)


def _goes_on(clause: Clause, made: Callable[..., RowSource], schema: RecordSchema) -> None:
    with clause(
        "a restored source draws what the other one draws",
        "put all that decides it into state_dict(), the generator's get_state() too, and take it back",
    ):
        one, other = made(), made(seed=6)
        for seed in range(4):
            one.draw(_step(schema, 30, seed), lambda: KNOWN)
        other.load_state_dict(carried(one.state_dict()))
        for seed in range(4, 10):
            same(_drawn(one, schema, seed), _drawn(other, schema, seed), 0)
    with clause("two of one seed draw alike", "take all chance from a generator with context.seed"):
        one, other = made(), made()
        for seed in range(6):
            same(_drawn(one, schema, seed), _drawn(other, schema, seed), 0)


def _drawn(source: RowSource, schema: RecordSchema, seed: int) -> Tensor:
    """All there is of the rows that are drawn, side by side."""
    drawn = source.draw(_step(schema, 30, seed), lambda: KNOWN)
    if drawn is None:
        return torch.zeros(0)
    columns = (drawn.x.flatten(1), *(part.unsqueeze(1) for part in (drawn.y, drawn.mass, drawn.met)))
    return torch.cat([column.double() for column in columns], 1)


def _step(schema: RecordSchema, count: int, seed: int = 0) -> StepRows:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(-1, CLASSES, (count,), generator=generator)
    return StepRows.of(rows_of(schema, count, seed), y)
