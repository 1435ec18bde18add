"""Questions to an Arrow type for which pyarrow has several words."""

import pyarrow as pa


def is_number(kind: pa.DataType) -> bool:
    """Whether it is whole or floating."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether it is a string, of either size of offsets."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a list, fixed-size or not. A tensor of fixed shape is none: its storage is."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
