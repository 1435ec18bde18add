"""The contract of a stream: which columns a state was written with, and what of them is another now, column by column.

    pinned at the first start ──┐
    the configuration of now  ──┴─► differences ─► refused, each named
    columns as they are sent  ────► news ─► taken all the same: further columns, other types that fit; told once

What a batch must have is said by ``canonical.check_schema``, whatever was sent before it.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from streamkd.records import RecordSchema

COLUMNS, TYPES, CHARACTERS = 256, 8, 200  # that are remembered: columns, types of one, of a name or a type
KEEP = (
    "go back to the columns as they were, or begin elsewhere with --state DIR; new columns and wider numbers can be"
    " taken into the state with `streamkd migrate STATE CONFIG`; what nobody reads need not stand in stream.records:"
    " further columns may be sent, and are left out"
)
Types = dict[str, list[str]]
"""Of each column the types that it was sent in, in the order in which they came."""


def differences(before: pa.Schema, after: pa.Schema) -> list[str]:
    """What of the canonical columns is another; in words, none where they are the same."""
    then, now = ({field.name: str(field.type) for field in schema} for schema in (before, after))
    found = list(_of(then, now))
    return found or ([] if before == after else [f"the order was {', '.join(then)}, is {', '.join(now)}"])


def of_inputs(before: RecordSchema, after: RecordSchema) -> list[str]:
    """The same of the input columns, with all that makes numbers of them."""
    then, now = (
        {column.name: column.model_dump(exclude={"name"}) for column in schema.inputs} for schema in (before, after)
    )
    found = list(_of(dict.fromkeys(then, ""), dict.fromkeys(now, "")))
    for name in [name for name in then if name in now]:
        pairs = ((key, then[name][key], now[name][key]) for key in then[name])
        found += [f"column {name!r}: {key} was {was}, is {is_now}" for key, was, is_now in pairs if was != is_now]
    return found or ([] if [*then] == [*now] else [f"the order was {', '.join(then)}, is {', '.join(now)}"])


def _of(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*then, *now]):
        if name not in now:
            yield f"column {name!r} is gone"
        elif name not in then:
            yield f"column {name!r} is new"
        elif then[name] != now[name]:
            yield f"column {name!r}: was {then[name]}, is {now[name]}"


def news(sent: pa.Schema, known: Types) -> Types:
    """``known`` with the columns of a batch as it came; the same object where there is nothing new."""
    more = {name: [*types] for name, types in known.items()}
    for field in sent:
        name, kind = field.name[:CHARACTERS], str(field.type)[:CHARACTERS]
        if name not in more and len(more) == COLUMNS:
            continue
        types = more.setdefault(name, [])
        if kind not in types and len(types) < TYPES:
            types.append(kind)
    return known if more == known else more


def in_words(types: Mapping[str, Sequence[str]], schema: RecordSchema) -> list[str]:
    """What is sent and not read, and what in several types."""
    read = {*(c.name for c in schema.inputs), schema.label, schema.task, schema.producer, schema.id, schema.event_time}
    unread = [f"{name} ({', '.join(found)})" for name, found in types.items() if name not in read]
    changed = [f"{name} ({', '.join(found)})" for name, found in types.items() if name in read and len(found) > 1]
    lines = [f"sent, and not read: {', '.join(unread)}"] if unread else []
    return [*lines, f"sent in several types: {', '.join(changed)}"] if changed else lines
