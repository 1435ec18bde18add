"""The tree: whatever a learner's state holds comes back as it was, bit for bit."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkd.errors import StateError
from streamkd.state.tree import Parts, pack, unpack


def _through_disk(tree: Any) -> Any:
    """What comes back after the parts went through bytes."""
    parts = pack(tree)
    document = json.loads(json.dumps(parts.document, allow_nan=False))
    tensors = safetensors.torch.load(safetensors.torch.save(parts.tensors))
    return unpack(Parts(document, tensors, parts.tables))


def _same_bits(got: torch.Tensor, sent: torch.Tensor) -> bool:
    if (got.dtype, got.shape) != (sent.dtype, sent.shape):
        return False
    return (
        got.contiguous().reshape(-1).view(torch.uint8).tolist()
        == sent.contiguous().reshape(-1).view(torch.uint8).tolist()
    )


_KEYS = st.one_of(st.text(max_size=6), st.integers(-3, 3), st.sampled_from(["a.b", "a/b", "$tensor", "$items", ""]))
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(st.characters())
)
_TREES = st.recursive(
    _LEAVES,
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.lists(below, max_size=3).map(tuple),
        st.dictionaries(_KEYS, below, max_size=4),
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(_TREES)
def test_plain_trees_come_back_equal_and_of_the_same_types(tree: Any) -> None:
    """Any nest of lists, tuples and dicts keeps values, types, key types and order."""
    assert repr(_through_disk(tree)) == repr(tree)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (0, 7), (3, 5)])
def test_tensors_of_every_type_come_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Each element type and shape, 0-dim and empty included, keeps all bits."""
    generator = torch.Generator().manual_seed(1)
    tensor = (torch.randn(shape, generator=generator) * 50).to(dtype)
    assert _same_bits(_through_disk({"t": tensor})["t"], tensor)


def test_special_float_bits_survive() -> None:
    """NaN payloads, negative zero and denormals in tensors keep their bits."""
    bits = torch.tensor([0x7FC01234, 0x80000000 - 2**32, 1, 0x7F800000], dtype=torch.int64).to(torch.int32)
    tensor = bits.view(torch.float32)
    assert torch.equal(_through_disk([tensor])[0].view(torch.int32), bits)


def test_numbers_that_are_not_finite_come_back() -> None:
    """JSON has no infinity or NaN; the tree has."""
    got = _through_disk({"inf": math.inf, "minus": -math.inf, "nan": math.nan, "zero": -0.0})
    assert (got["inf"], got["minus"], str(got["zero"])) == (math.inf, -math.inf, "-0.0")
    assert math.isnan(got["nan"])


def test_shared_storage_does_not_confuse() -> None:
    """Views of one storage, tied tensors and transposes are stored as values of their own."""
    storage = torch.arange(12, dtype=torch.float32)
    tree = {"whole": storage, "tied": storage, "part": storage[3:7], "turned": storage.view(3, 4).t()}
    got = _through_disk(tree)
    assert all(_same_bits(got[name], tree[name]) for name in tree)
    got["whole"].zero_()
    assert torch.equal(got["tied"], storage)


def test_a_view_does_not_drag_its_storage_along() -> None:
    """Ten rows of a large tensor take the bytes of ten rows."""
    parts = pack([torch.zeros(100_000, 8)[:10]])
    assert parts.tensors["/0"].untyped_storage().nbytes() == 10 * 8 * 4


def test_loaded_tensors_can_be_written() -> None:
    """What comes back is memory of its own, not a read-only window."""
    got = _through_disk({"t": torch.ones(3)})["t"]
    got.add_(1)
    assert got.tolist() == [2, 2, 2]


def test_an_optimisers_state_comes_back() -> None:
    """torch's own state_dict (integer keys, tuples, 0-dim steps) goes through and is accepted again."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.8, 0.99))
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    got = _through_disk(optimizer.state_dict())
    assert got["param_groups"] == optimizer.state_dict()["param_groups"]
    assert _same_bits(got["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    optimizer.load_state_dict(got)


def test_keys_that_look_alike_stay_apart() -> None:
    """The keys 1 and "1", "a/b" and nested a, b, and dots do not meet."""
    tree = {1: torch.tensor(1), "1": torch.tensor(2), "a/b": torch.tensor(3), "a": {"b": torch.tensor(4)}, "a.b": 5}
    got = _through_disk(tree)
    assert {repr(key): value if key == "a" else int(value) for key, value in got.items() if key != "a"} == {
        "1": 1,
        "'1'": 2,
        "'a/b'": 3,
        "'a.b'": 5,
    }
    assert int(got["a"]["b"]) == 4


def test_a_dict_that_looks_like_a_reference_is_data() -> None:
    """A user's own {"$tensor": ...} comes back as that dict."""
    tree = {"$tensor": "/0", "$float": ["nan"]}
    assert _through_disk(tree) == tree


def test_parameters_are_stored_as_values() -> None:
    """A Parameter that needs a gradient comes back as a plain tensor."""
    got = _through_disk(torch.nn.Parameter(torch.ones(2)))
    assert type(got) is torch.Tensor
    assert not got.requires_grad


def test_tables_are_leaves() -> None:
    """An Arrow table is handed on under its key."""
    table = pa.table({"x": [1, 2]})
    parts = pack({"log": {"rows": table}})
    assert list(parts.tables) == ["/log/rows"]
    assert unpack(parts)["log"]["rows"].equals(table)


@pytest.mark.parametrize(
    ("leaf", "kind"), [(np.zeros(2), "ndarray"), (b"x", "bytes"), ({1, 2}, "set"), (np.int64(3), "int64")]
)
def test_other_leaves_are_refused_with_their_place(leaf: Any, kind: str) -> None:
    """A leaf that is no tree is named with its type and where it sits."""
    with pytest.raises(StateError, match=rf"at /gate/0/bad: needed JSON values.* got {kind}"):
        pack({"gate": [{"bad": leaf}]})


@pytest.mark.parametrize("key", [None, 1.5, True, (1, 2)])
def test_other_keys_are_refused(key: Any) -> None:
    """Only strings and integers are keys."""
    with pytest.raises(StateError, match="string or integer as key"):
        pack({key: 1})


def test_sparse_tensors_are_refused() -> None:
    """A layout that safetensors does not know is refused by us, with its place."""
    with pytest.raises(StateError, match=r"at /w: needed a dense tensor, got torch\.sparse_coo"):
        pack({"w": torch.eye(3).to_sparse()})
