"""Phase 2 of the gate, over episodes of the real step."""

import torch
from streamkd_baselines.learned_optimizer import LearnedOptimizer, Rule
from toys import adapter_of, make_step, mlp, scorer

from streamkd.pretraining.episodes import EpisodeShape, KnownTask
from streamkd.pretraining.outer_loop import Played, train_gate
from streamkd.pretraining.synthetic import NATURES, stranger
from streamkd.pretraining.teachers import fit

CLASSES, FEATURES = 6, 6


def _known(seed: int = 0) -> KnownTask:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(CLASSES).repeat(60)
    centres = 1.5 * torch.randn(CLASSES, FEATURES, generator=g)
    return KnownTask(centres[y] + torch.randn(len(y), FEATURES, generator=g), y, [(0, 1, 2), (3, 4, 5)], seed)


def _expert(known: KnownTask):
    student = mlp(CLASSES)
    x, y = known.support_rows()
    fit(student, torch.optim.Adam(student.parameters(), 0.02), x, y, 15, 32, 0)
    return student.eval().requires_grad_(False)


def _play(gate, episodes: int, noise: float, **settings) -> list[Played]:
    """Episodes of expert and permuted teacher beside the usual pool."""
    known, draw = _known(), torch.Generator().manual_seed(0)
    expert = _expert(known)
    adapter = adapter_of(gate, every=4, horizon=4, on_task_steps=0, anchor=0.0, learning_rate=0.03, **settings)

    def each():
        for number in range(episodes):
            course = known.draw(EpisodeShape(records=60), noise)
            step = make_step(classes=len(course[0].classes), seed=number, gate=gate, adapter=adapter)
            for nature in ("expert", "permuted"):
                guest = stranger(nature, nature, expert, mlp(CLASSES, seed=9), course[-1].classes, draw)
                guest.grow(course[0].classes)
                step.pool.teachers.append(guest)
                step.pool.ages[nature] = 0
            yield course, step

    return train_gate(adapter, each(), batch=10)


def test_a_gate_learns_whom_to_trust() -> None:
    """Episodes with wrong labels and an expert: the trained gate ends them better than the one that began."""
    gate = scorer()
    played = _play(gate, 30, noise=0.5)
    frozen = _play_frozen(scorer()), _play_frozen(gate)
    assert frozen[1] > frozen[0]
    assert all(torch.isfinite(torch.tensor(one.accuracy)) for one in played)


def _play_frozen(gate) -> float:
    """Mean accuracy over episodes in which the gate stays as it is."""
    for parameter in gate.parameters():
        parameter.requires_grad_(False)
    return sum(one.accuracy for one in _play(gate, 10, noise=0.5)) / 10


def test_a_learned_optimiser_is_trained_on_the_way() -> None:
    """The rule has moved, and its graph ends with the episode."""
    rule = Rule()
    made = []

    def optimizer(parameters, rate):
        made.append(LearnedOptimizer(parameters, rule))
        return made[0]

    _play(scorer(), 3, noise=0.3, optimizer=optimizer)
    assert rule.out.weight.abs().sum() > 0
    assert made[0]._surrogate is None


def test_natures_of_strangers() -> None:
    """An expert is right, a permuted one right nowhere, a half one on half of the labels, a random one by chance."""
    known, draw = _known(), torch.Generator().manual_seed(0)
    expert, order = _expert(known), (5, 3, 1, 0, 2, 4)
    x, numbers = known.support_rows()
    y = torch.tensor([order.index(number) for number in numbers.tolist()])
    right = {}
    for nature in NATURES:
        guest = stranger(nature, nature, expert, mlp(CLASSES, seed=9), order, draw)
        hit = guest.logits(x).argmax(1) == y
        right[nature] = [float(hit[y == column].float().mean()) for column in range(CLASSES)]
    assert min(right["expert"]) > 0.5
    assert max(right["permuted"]) < 0.5
    assert sum(share > 0.5 for share in right["half"]) == CLASSES // 2
    assert sum(right["random"]) / CLASSES < 0.6


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    """The step is left out, as the stream leaves it out."""
    step = make_step()
    before = {name: value.clone() for name, value in step.student.state_dict().items()}
    step.learn(torch.full((4, FEATURES), float("inf")), torch.tensor([0, 1, 2, 0]))
    assert all(torch.equal(before[name], value) for name, value in step.student.state_dict().items())
