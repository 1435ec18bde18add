"""Any torch module as a frozen teacher."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamkd import testing
from streamkd.api import FrozenTeacher, Kind, Options, PluginError, StateConflict, TeacherContext
from streamkd.testing.specimens import IMAGES, plain_student


class Body(nn.Module):
    """A network over records as they come."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.last = nn.Linear(64, 3)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(x.flatten(1).float())
        return answer


def context_of(*labels: Any, label_type: str = "int") -> TeacherContext:
    schema = IMAGES.model_copy(update={"label_type": label_type})
    return TeacherContext("mine", plain_student(IMAGES, 2, 0), schema, labels, torch.device("cpu"))


def test_it_keeps_the_contract_of_teachers() -> None:
    """A network of other classes, in another order, is a teacher in one line; its layers can be read."""
    kind = Kind("mine", lambda options, context: FrozenTeacher(Body(), (2, 7, 0), context), Options)
    testing.check_teacher(kind, layers=("last",))


def test_outputs_go_where_their_labels_are() -> None:
    """Known are the labels that both have; an output for a label that the stream does not have is left out."""
    teacher, x = FrozenTeacher(Body(), (2, 7, 0), context_of(0, 1)), torch.ones(2, 8, 8)
    assert teacher.known().tolist() == [True, False]
    teacher.grow([0, 1, 2])
    assert teacher.known().tolist() == [True, False, True]
    assert torch.equal(teacher.logits(x)[:, [0, 2]], Body()(x)[:, [2, 0]])
    assert not teacher.logits(x)[:, 1].any()


def test_it_holds_a_copy_at_rest() -> None:
    """The module stays the caller's: it goes on learning, and the teacher does not."""
    body, x = Body(), torch.ones(1, 8, 8)
    teacher = FrozenTeacher(body, (0, 1, 2), context_of(0, 1, 2))
    before = teacher.logits(x)
    with torch.no_grad():
        body.last.weight.zero_()
    assert torch.equal(teacher.logits(x), before)
    assert body.last.weight.requires_grad
    assert body.training


@pytest.mark.parametrize(
    ("classes", "label_type", "said"),
    [
        ((), "int", "needed the label of each output, got none"),
        ((0, 1, 0), "int", "needed each label once, got 0 twice"),
        (("0", "1", "2"), "int", "needed labels of the stream's type int, got '0'"),
        ((0, 1, 2), "string", "needed labels of the stream's type string, got 0"),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(classes: Any, label_type: str, said: str) -> None:
    """None, one that comes twice, and one of another type than the stream's are errors that name the teacher."""
    with pytest.raises(PluginError, match=said):
        FrozenTeacher(Body(), classes, context_of(label_type=label_type))


def test_outputs_that_are_not_one_for_each_class_are_an_error() -> None:
    """A module with other outputs than classes says so when it is asked."""
    teacher = FrozenTeacher(Body(), (0, 1), context_of(0, 1))
    with pytest.raises(PluginError, match=r"needed outputs \(1, 2\), got \(1, 3\)"):
        teacher.logits(torch.ones(1, 8, 8))


@pytest.mark.parametrize("other", [(Body(1), (0, 1, 2)), (Body(), (0, 2, 1))], ids=["weights", "classes"])
def test_a_checkpoint_wants_the_module_that_it_knew(other: tuple[nn.Module, tuple[int, ...]]) -> None:
    """Remembered answers came from these weights for these classes: others are refused with the way out."""
    state = FrozenTeacher(Body(), (0, 1, 2), context_of(0, 1, 2)).state_dict()
    FrozenTeacher(Body(), (0, 1, 2), context_of(0)).load_state_dict(state)
    with pytest.raises(StateConflict, match="teacher mine: needed the"):
        FrozenTeacher(*other, context_of(0, 1, 2)).load_state_dict(state)
