"""Plain columns of any: structs become columns ``outer.inner``, dictionaries their values, booleans 0 and 1."""

import pyarrow as pa


def flatten(table: pa.Table) -> pa.Table:
    """The table with plain columns, as the module says."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
        elif pa.types.is_boolean(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.uint8()))
    return table
