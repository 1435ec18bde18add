"""The terms of the loss: gates of their own, parameters of their own, what they need and what a checkpoint keeps."""

from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import toys
from streamkd_baselines.features import Feature, FeatureOptions
from torch import Tensor

from streamkd.errors import PluginError
from streamkd.gates.gate import FixedGate, FixedOptions
from streamkd.hookspecs import Options
from streamkd.learning import terms
from streamkd.learning.step import Step
from streamkd.learning.terms import Term
from streamkd.losses.match_gate import Gated, MatchGate, MatchGateOptions, Trained
from streamkd.plugins import Registry
from streamkd.replay.memory import Memory
from streamkd.teachers.pool import Pool
from streamkd.teachers.recall import RecallTeacher
from streamkd.teachers.teacher import EmaOptions, EmaTeacher
from streamkd.testing.specimens import lesson_for, shapes_of

REGISTRY = Registry.load()
LAYERS = {"student": "body.layer", "teacher": {"ema": "its.layer"}}


class Sees:
    """A loss that keeps what it was shown."""

    layers: tuple[str, ...] = ()
    teacher_layers: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def __call__(self, lesson: Any) -> Tensor:
        self.seen = lesson
        return lesson.logits.square().mean(1)


def feature(student: str = "body.hidden.0", **teacher: str) -> Feature:
    return Feature(FeatureOptions(student=student, teacher=teacher or {"ema": "body.hidden.1"}))


def step_with(*given: Term, clip_norm: float | None = None) -> Step:
    """A student of two hidden layers, 8 and 5 wide, taught by its average and its memory."""
    student = toys.mlp(hidden=(8, 5))
    memory = Memory(20, 0.0, 8, 0)
    teachers = [
        EmaTeacher(EmaOptions(), toys.context_of("ema", student)),
        RecallTeacher(Options(), toys.context_of("memory", student)),
    ]
    pool = Pool(teachers, None, memory, limit=8, limit_bytes=1 << 30)
    adapters = terms.prepare(given, student, pool, toys.schema_of(toys.FEATURES))
    optimizer = torch.optim.SGD([*student.parameters(), *adapters], lr=0.1)
    gate = FixedGate(FixedOptions(hard=0.5))
    return Step(student, optimizer, memory, pool, gate, given, replay=5, clip_norm=clip_norm)


def test_a_term_sees_the_weights_of_its_own_gate() -> None:
    """Beside it, another term sees those of the step's gate."""
    ours, others = Sees(), Sees()
    step = step_with(Term(ours, 1.0, FixedGate(FixedOptions(hard=0.1))), Term(others, 1.0))
    for x, y in toys.batches(3):
        toys.train(step, x, y)
    for loss, hard in ((ours, 0.1), (others, 0.5)):
        torch.testing.assert_close(loss.seen.weights[:, 0], torch.full((13,), hard))
        torch.testing.assert_close(loss.seen.weights.sum(1), torch.ones(13))


def test_the_loss_is_the_sum_of_its_terms_under_their_gates() -> None:
    """Σ weight · mean over rows, each under the weights that it sees."""
    own, loss = FixedGate(FixedOptions(hard=0.0)), MatchGate(MatchGateOptions())
    step = step_with(Term(loss, 0.5), Term(feature(), 2.0, own))
    x, y = toys.batches(1)[0]
    plan = step.begin(x, y, 0)
    logits = step.forward(plan)
    lesson = step.weigh(plan, logits)
    second = toys.replace(lesson, weights=own(step.evidence(plan, logits)))
    wanted = 0.5 * loss(lesson).mean() + 2.0 * step.terms[1].loss(second).mean()
    torch.testing.assert_close(step.loss(lesson), wanted)


def test_adapters_learn_with_the_student_and_are_none_of_its_parameters() -> None:
    """They move with the optimiser's steps; what is published, and derived for the gate, has none of them."""
    step = step_with(Term(MatchGate(MatchGateOptions()), 1.0), Term(feature(), 1.0))
    own = terms.parameters_of(step.terms)
    before = [p.detach().clone() for p in own]
    for x, y in toys.batches(4):
        toys.train(step, x, y)
    assert [tuple(p.shape) for p in own] == [(5, 8), (5,)]
    assert not any(torch.equal(p, b) for p, b in zip(own, before, strict=True))
    assert len(step.trained) == len(step.parameters) + 2
    assert not {id(p) for p in own} & {id(p) for p in step.parameters}


def test_clipping_counts_the_adapters() -> None:
    """The global norm is that of everything that the optimiser moves."""
    step = step_with(Term(MatchGate(MatchGateOptions()), 1.0), Term(feature(), 100.0), clip_norm=0.01)
    x, y = toys.batches(1)[0]
    plan = step.begin(x, y, 0)
    step.loss(step.weigh(plan, step.forward(plan))).backward()
    step.clip()
    norm = torch.stack([p.grad.norm() for p in step.trained]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (feature("body.hidden.7"), "no layer 'body.hidden.7'"),
        (feature(ema="body.tail"), "no layer 'body.tail'"),
        (feature(absent="body.head"), "'absent', which is not in the pool"),
        (feature(memory="body.head"), "'memory' shows no layer 'body.head'"),
        (feature(ema="body.head"), "no adapter would stay fit"),
        (feature("body.head", ema="body.hidden.1"), "no adapter would stay fit"),
    ],
)
def test_layers_that_are_not_there_are_refused_when_the_parts_are_wired(loss: Feature, said: str) -> None:
    """The student's, a teacher's, those of a teacher that is not in the pool or shows nothing."""
    with pytest.raises(PluginError, match=said):
        step_with(Term(loss, 1.0))


def test_preparing_changes_nothing() -> None:
    """One record of zeros is looked at in evaluation mode: no weight, statistic or generator moves."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    step = step_with(Term(feature(), 1.0))
    assert torch.equal(torch.get_rng_state(), before)
    assert step.student.training
    torch.testing.assert_close(step.student.state_dict(), toys.mlp(hidden=(8, 5)).state_dict())


def test_terms_come_back_from_their_state() -> None:
    """Adapters get their values, in the parameters that the optimiser holds."""
    stopped, resumed = (step_with(Term(feature(), 1.0, toys.scorer())) for _ in range(2))
    for x, y in toys.batches(4):
        toys.train(stopped, x, y)
    assert terms.restore(resumed.terms, terms.state_of(stopped.terms))
    for one, other in zip(terms.parameters_of(resumed.terms), terms.parameters_of(stopped.terms), strict=True):
        assert torch.equal(one, other)


def test_adapters_of_other_layers_begin_anew(caplog: pytest.LogCaptureFixture) -> None:
    """A teacher whose layer has another width since is said, and its adapter is fresh."""
    wide, narrow = step_with(Term(feature(), 1.0)), step_with(Term(feature("body.hidden.1", ema="body.hidden.0"), 1.0))
    fresh = [p.detach().clone() for p in terms.parameters_of(narrow.terms)]
    assert not terms.restore(narrow.terms, terms.state_of(wide.terms))
    assert all(torch.equal(p, b) for p, b in zip(terms.parameters_of(narrow.terms), fresh, strict=True))
    assert "begins anew" in caplog.text


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", REGISTRY.names("losses"))
def test_every_gated_loss_has_a_forward_mode(name: str) -> None:
    """Its table along a direction, by dual numbers, is the central difference's: so engines can read any of them."""
    kind = REGISTRY.kind("losses", name)
    if "student" not in kind.options.model_fields and any(f.is_required() for f in kind.options.model_fields.values()):
        pytest.skip("a plugin's loss that needs options of its own")
    loss = kind.make(kind.options.model_validate(LAYERS if "student" in kind.options.model_fields else {}))
    assert isinstance(loss, Gated)
    lesson = lesson_for(loss, (2, 4, 4), teachers=2)
    if isinstance(loss, Trained):
        loss.prepare(shapes_of(lesson.features), {k: shapes_of(v) for k, v in lesson.teacher_features.items()})
        for parameter in loss.parameters():
            parameter.data = parameter.data.double()
    generator = torch.Generator().manual_seed(1)
    values = {"logits": lesson.logits, **lesson.features}
    ways = {key: torch.randn(v.shape, generator=generator, dtype=v.dtype) for key, v in values.items()}

    def at(moved: dict[str, Tensor]) -> Tensor:
        return loss.per_source(toys.replace(lesson, logits=moved.pop("logits"), features=moved))

    with forward_ad.dual_level(), torch.no_grad():
        table = at({key: forward_ad.make_dual(v, ways[key]) for key, v in values.items()})
        slope = forward_ad.unpack_dual(table).tangent
    sides = [at({key: v + sign * 1e-5 * ways[key] for key, v in values.items()}) for sign in (1, -1)]
    torch.testing.assert_close(slope, (sides[0] - sides[1]) / 2e-5, rtol=1e-5, atol=1e-7)
