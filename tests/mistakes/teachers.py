"""Mistakes of teachers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mistakes.mistake import ALOOF, Mistake
from streamkd.teachers.recall import RecallTeacher
from streamkd.teachers.snapshot import SnapshotTeacher
from streamkd.teachers.teacher import EmaOptions, EmaTeacher, copy_of


class Average(EmaTeacher):
    """The average, which is right."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(EmaOptions(), context)


class Holding(Average):
    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.student = context.student


class Grading(Average):
    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.student.requires_grad_(True)

    def logits(self, x: Tensor) -> Tensor:
        return self.student(x)


class Forgetful(Average):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Pickled(Forgetful):
    def state_dict(self) -> dict[str, Any]:
        return {"student": self.student}


class Noisy(Average):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) + 1e-7 * torch.randn(())


class Scaling(Average):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x.div_(2))


class Reusing(Average):
    """Answers into one tensor."""

    def logits(self, x: Tensor) -> Tensor:
        answers = super().logits(x)
        if getattr(self, "place", torch.zeros(0)).shape != answers.shape:
            self.place = torch.zeros_like(answers)
        return self.place.copy_(answers)


class Roleless(RecallTeacher):
    role = "wise"  # type: ignore[assignment]


class Halved(Average):
    """Is shown rows, and never told that a task ends: the pool does not know that it observes."""

    def observe(self, x: Tensor, y: Tensor) -> None: ...


class Stuck(SnapshotTeacher):
    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(context.key, copy_of(context.student))

    def grow(self, labels: Any) -> None: ...


class Posing(SnapshotTeacher):
    """Says that it knows whatever comes."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(context.key, copy_of(context.student))

    def known(self) -> Tensor:
        return torch.ones(self._width, dtype=torch.bool)


class Following(Stuck):
    """Frozen by name."""

    def after_step(self, student: Any) -> None:
        self.student.load_state_dict(student.state_dict())


class Counts:
    """A teacher that is right: class frequencies, solved when a task ends; its rows wait in between."""

    role, fresh = "versioned", True

    def __init__(self, options: Any, context: Any) -> None:
        self.key, self.version = context.key, 0
        self.width = len(context.labels)
        self.counts = torch.zeros(self.width)
        self.waiting: list[Tensor] = []

    def logits(self, x: Tensor) -> Tensor:
        return F.pad(self.counts, (0, self.width - len(self.counts))).expand(len(x), -1)

    def known(self) -> Tensor:
        return F.pad(self.counts, (0, self.width - len(self.counts))) > 0

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {}

    def grow(self, labels: Sequence[Any]) -> None:
        self.width = len(labels)

    def after_step(self, student: Any) -> None: ...

    def size_bytes(self) -> int:
        return 0

    def observe(self, x: Tensor, y: Tensor) -> None:
        self.waiting.append(y.clone())

    def end_task(self) -> None:
        for y in self.waiting:
            found = torch.bincount(y, minlength=self.width).float()
            self.counts = F.pad(self.counts, (0, self.width - len(self.counts))) + found
        self.version += bool(self.waiting)
        self.waiting = []

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "waiting": self.waiting, "version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.waiting, self.version = state["counts"], [*state["waiting"]], state["version"]


class Raising(Counts):
    """Cannot take a batch of one row."""

    def observe(self, x: Tensor, y: Tensor) -> None:
        x.float().var(0, correction=1).sqrt()[0].item()
        if len(y) < 2:
            raise ValueError("needed two rows")
        super().observe(x, y)


class Training(Counts):
    """Trains by gradient where there is none."""

    def observe(self, x: Tensor, y: Tensor) -> None:
        super().observe(x, y)
        weight = torch.ones((), requires_grad=True)
        (weight * x.float().sum()).backward()


class Eager(Counts):
    """Counts at once, and raises the version when the task ends."""

    def observe(self, x: Tensor, y: Tensor) -> None:
        super().observe(x, y)
        version = self.version
        self.end_task()
        self.version = version


class Falling(Counts):
    """Counts its versions down."""

    def end_task(self) -> None:
        version, some = self.version, bool(self.waiting)
        super().end_task()
        self.version = version - some


class Frozen(Counts):
    """Learns, and says that it is frozen."""

    role = "frozen"


class Chancy(Counts):
    """Learns each row by chance, from a generator of its own that nobody seeds."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.chance = torch.Generator()
        self.chance.seed()

    def observe(self, x: Tensor, y: Tensor) -> None:
        super().observe(x, y[torch.rand(len(y), generator=self.chance) < 0.5])


class Dropping(Counts):
    """The same, from torch's generator."""

    def observe(self, x: Tensor, y: Tensor) -> None:
        super().observe(x, y[torch.rand(len(y)) < 0.5])


class Aliasing(Counts):
    def observe(self, x: Tensor, y: Tensor) -> None:
        self.waiting.append(y)


class Sorting(Counts):
    def observe(self, x: Tensor, y: Tensor) -> None:
        super().observe(x, y.copy_(y.sort().values))


class Impatient(Counts):
    """Leaves the rows that wait out of its state."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "waiting": []}


class Unversioned(Counts):
    """Leaves its version out of its state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "version": 0})


class Numbered(Counts):
    """Integer keys, which JSON has not: only once something was learned."""

    def state_dict(self) -> dict[str, Any]:
        found = dict(enumerate(self.counts.tolist())) if self.version else {}
        return {**super().state_dict(), "by_class": found}


class Recalling(Counts):
    """Learns what it is asked to recall."""

    def recall(self, x: Tensor, y: Tensor) -> Tensor:
        self.counts = self.counts + 1
        return self.logits(x)


class Short(Counts):
    """Recalls only the columns that it knows."""

    def recall(self, x: Tensor, y: Tensor) -> Tensor:
        return self.logits(x)[:, :1]


class Tally:
    """A teacher that is right: class frequencies, learned record by record."""

    role, fresh = "prequential", True

    def __init__(self, options: Any, context: Any) -> None:
        self.key, self.counts = context.key, torch.zeros(len(context.labels))

    def logits(self, x: Tensor) -> Tensor:
        return self.counts.repeat(len(x), 1)

    def known(self) -> Tensor:
        return self.counts > 0

    def grow(self, labels: Sequence[Any]) -> None:
        self.counts = F.pad(self.counts, (0, len(labels) - len(self.counts)))

    def test_then_train(self, x: Tensor, y: Tensor, learn: Tensor) -> Tensor:
        answers = []
        for row in range(len(y)):
            answers.append(self.answer(x[row : row + 1], y[row]))
            if learn[row]:
                self.learn(y[row])
        return torch.cat(answers)

    def answer(self, x: Tensor, label: Tensor) -> Tensor:
        return self.logits(x)

    def learn(self, label: Tensor) -> None:
        self.counts[label] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = state["counts"]


class Twice(Tally):
    """Is shown the rows by ``observe`` too."""

    def observe(self, x: Tensor, y: Tensor) -> None: ...

    def end_task(self) -> None: ...


class Silent(Tally):
    """Answers the rows that it learns alone."""

    def test_then_train(self, x: Tensor, y: Tensor, learn: Tensor) -> Tensor:
        return super().test_then_train(x, y, learn)[learn]


class ByBatch(Tally):
    """Answers a batch as a whole, then learns it."""

    def test_then_train(self, x: Tensor, y: Tensor, learn: Tensor) -> Tensor:
        answers = self.logits(x)
        super().test_then_train(x, y, learn)
        return answers


class Peeking(Tally):
    """Looks at the label before it answers, just enough to be a little better."""

    def answer(self, x: Tensor, label: Tensor) -> Tensor:
        return self.logits(x) + 1e-6 * F.one_hot(label.clamp_min(0), len(self.counts))


class Greedy(Tally):
    """Learns every label that it sees."""

    def test_then_train(self, x: Tensor, y: Tensor, learn: Tensor) -> Tensor:
        return super().test_then_train(x, y, y >= 0)


class Deaf(Tally):
    def learn(self, label: Tensor) -> None: ...


class Orderless(RecallTeacher):
    """Says that it answers in the order of the stream, and cannot."""

    role = "prequential"


class Constant(nn.Module):
    """What is served of a teacher: the same answers to everybody."""

    teacher = "broken"

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("given", logits)
        self.register_buffer("known", torch.ones(len(logits), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return self.given.expand(len(x), -1)

    def write(self, directory: Path) -> dict[str, Any]:
        return {"given": self.given.tolist()}

    @staticmethod
    def load(directory: Path, about: Any, schema: Any, classes: int, registry: Any) -> nn.Module:
        return Constant(torch.tensor(about["given"]))


class Serving(Average):
    """An average that answers everybody the same, and may be served."""

    def logits(self, x: Tensor) -> Tensor:
        return self.student.head.bias.detach().clone().expand(len(x), -1)

    def part(self) -> Any:
        return Constant(self.student.head.bias.detach().clone())


class Elsewhere(Serving):
    """Serves other answers than it gives."""

    def part(self) -> Any:
        return Constant(self.student.head.bias.detach() + 1)


class Blank(Constant):
    """Writes zeros."""

    def write(self, directory: Path) -> dict[str, Any]:
        return {"given": [0.0] * len(self.given)}


class Unwritten(Serving):
    """Does not write what it answers."""

    def part(self) -> Any:
        return Blank(self.student.head.bias.detach().clone())


def mistake(name: str, clause: str, make: Callable[..., Any], load: Callable[..., Any] | None = None) -> Mistake:
    return Mistake("teachers", name, clause, make, load=load)


MISTAKES = (
    mistake("a role that the pool does not know", "it goes by the key of its context, and has a role", Roleless),
    mistake("observe() without end_task()", "one that learns from labels has observe() and end_task()", Halved),
    mistake("answers with a gradient", "its answers carry no gradient", Grading),
    mistake("noise in its answers", ALOOF, Noisy),
    mistake("works on its input in place", "each row is answered by itself", Scaling),
    mistake("answers into one tensor each time", "its answers stay as they were given", Reusing),
    mistake("keeps the student", "it keeps no hold of the student that it was built from", Holding),
    mistake("frozen, and follows the student", "only a live teacher follows the student's step", Following),
    mistake("does not follow the label space", "a label more widens its answers and changes no old one", Stuck),
    mistake("frozen, and knows every new label", "what is kept of its answers knows no new label", Posing),
    mistake("its weights are left out of its state", "its state brings another one to the same answers", Forgetful),
    mistake("an object in its state", "its state brings another one to the same answers", Pickled),
    mistake("observe() raises on a single row", "are taken at any time, in any order", Raising),
    mistake("observe() needs a gradient", "are taken at any time, in any order", Training),
    mistake("observe() sorts the labels in place", "learning leaves the rows that it is given as they are", Sorting),
    mistake("other answers without a new version", "changes its answers only with a new version", Eager),
    mistake("a version that falls", "changes its answers only with a new version", Falling),
    mistake("learns, and says that it is frozen", "changes its answers only with a new version", Frozen),
    mistake("learns by chance, from torch's generator", ALOOF, Dropping),
    mistake("learns by chance, from a generator without seed", "of the same rows it learns the same", Chancy),
    mistake("keeps the caller's tensors", "what it keeps of the rows it copies", Aliasing),
    mistake("forgets rows that wait", "stopped anywhere and restored, it goes on as if never stopped", Impatient),
    mistake("forgets its version", "stopped anywhere and restored, it goes on as if never stopped", Unversioned),
    mistake("integer keys in its state", "stopped anywhere and restored, it goes on as if never stopped", Numbered),
    mistake("recall() learns", "recall(x, y) gives finite logits of learned rows", Recalling),
    mistake("recall() gives fewer columns", "recall(x, y) gives finite logits of learned rows", Short),
    mistake("prequential, without test_then_train()", "it goes by the key of its context, and has a role", Orderless),
    mistake("observe() beside test_then_train()", "is not shown the rows again", Twice),
    mistake("no answer to what it does not learn", "test_then_train(x, y, learn) gives finite logits", Silent),
    mistake("learns when all is answered", "each row is answered before it is learned, and after those", ByBatch),
    mistake("looks at the label first", "no row is answered with its own label", Peeking),
    mistake("learns what is held out", "a row that is not to be learned teaches nothing", Greedy),
    mistake("never learns", "what it has learned shows", Deaf),
    mistake("serves other answers than it gives", "what is served of it answers as it does", Elsewhere, Constant.load),
    mistake("serves, and its kind loads nothing", "it is loaded with the same answers", Serving),
    mistake("does not write what it serves", "it is loaded with the same answers", Unwritten, Constant.load),
)
