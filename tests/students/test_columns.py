"""Columns: what a reader of some input columns sees, and a student that reads only its own."""

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from streamkd.hookspecs import Kind
from streamkd.records import InputColumn, RecordSchema
from streamkd.students.columns import Columns
from streamkd.students.networks import Mlp, MlpOptions, Normalise, build

SIZES = {"image": (2, 3), "text": (4,), "age": ()}


def schema(*student: str, **column: dict) -> RecordSchema:
    inputs = tuple(InputColumn(name=name, shape=shape, **column.get(name, {})) for name, shape in SIZES.items())
    return RecordSchema(inputs=inputs, student=student)


def records(count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Flat records of the schema, and each column by itself."""
    g = torch.Generator().manual_seed(0)
    parts = {name: torch.randn(count, *(shape or (1,)), generator=g) for name, shape in SIZES.items()}
    return torch.cat([part.flatten(1) for part in parts.values()], 1), parts


@given(st.lists(st.sampled_from(list(SIZES)), unique=True, min_size=1))
def test_columns_are_those_that_are_named(names: list[str]) -> None:
    """One column comes in its own shape, several flat in the order of the names, bit for bit."""
    x, parts = records(5)
    seen = Columns(schema(), names)(x)
    wanted = parts[names[0]] if len(names) == 1 else torch.cat([parts[name].flatten(1) for name in names], 1)
    assert torch.equal(seen, wanted)
    assert seen.shape[1:] == schema().only(names).shape


def test_without_names_a_record_is_what_it_was() -> None:
    """Whoever reads all columns gets the very tensor."""
    x, _ = records(3)
    assert Columns(schema())(x) is x
    assert Columns(schema(), list(SIZES))(x) is x


def test_neighbouring_columns_are_a_view() -> None:
    """Columns in the stream's order are not copied."""
    x, _ = records(3)
    assert Columns(schema(), ["text", "age"])(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize(("student", "said"), [(("imag",), "no input column"), (("text", "text"), "comes twice")])
def test_a_student_reads_columns_that_are_there(student: tuple[str, ...], said: str) -> None:
    """A name that is no input, or that comes twice, is refused with the known ones."""
    with pytest.raises(ValidationError, match=said):
        schema(*student)


def test_a_student_sees_only_its_columns() -> None:
    """Whatever stands in the others changes no logit, and its body has the shape of its own."""
    own = schema("image", image={"scale": 0.5, "mean": 0.1, "std": 2.0})
    student = build(Kind("mlp", Mlp, MlpOptions), MlpOptions(hidden=(8,)), own, 3, 0)
    x, parts = records(5)
    other = x.clone()
    other[:, 6:] = 99.0
    assert torch.equal(student(x), student(other))
    wanted = (parts["image"] * 0.5 - 0.1) / 2.0
    torch.testing.assert_close(student.normalise(x), wanted)


def test_a_published_student_needs_only_its_columns() -> None:
    """The same weights behind the narrower schema give the same logits on its own columns alone."""
    kind, options = Kind("mlp", Mlp, MlpOptions), MlpOptions(hidden=(8,))
    fitted = {"text": {"fit": 4}}
    student = build(kind, options, schema("text", **fitted), 3, 0)
    x, parts = records(6)
    student.normalise.observe(x)
    alone = build(kind, options, schema("text", **fitted).only(("text",)), 3, 1)
    alone.load_state_dict(student.state_dict())
    assert torch.equal(alone(parts["text"]), student(x))
    first = parts["text"][:4]
    wanted = (parts["text"] - first.mean(0)) / first.std(0, correction=0)
    torch.testing.assert_close(student.normalise(x), wanted, rtol=1e-4, atol=1e-5)


def test_a_student_of_one_column_is_as_before() -> None:
    """A schema that names its only column is the schema that names none."""
    plain = toys.schema_of(toys.FEATURES)
    named = plain.model_copy(update={"student": ("x",)})
    x = toys.batches(1)[0][0]
    assert torch.equal(toys.mlp(schema=plain)(x), toys.mlp(schema=named)(x))


def test_the_bytes_of_a_text_reach_the_student_as_they_are() -> None:
    """Beside a column that is scaled they are not, and what is missing moves none of them."""
    text = InputColumn(name="text", kind="text", raw=True, shape=(3,), missing="fill")
    both = RecordSchema(inputs=(text, InputColumn(name="age", scale=2.0, mean=1.0)))
    x = torch.tensor([[97.0, -61.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0, 4.0]])
    expected = torch.tensor([[97.0, -61.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0, 7.0]])
    assert torch.equal(Normalise(both)(x), expected)
