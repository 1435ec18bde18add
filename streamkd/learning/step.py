"""One training step, in the order of the data::

    begin     arrived rows + replayed rows + those of other sources ─► StepBatch: what each counts, what teachers answer
    forward   the student's logits
    weigh     logits ─► gate ─► LossInputs: weights per sample
    loss      LossInputs ─► one number; backward
    update    the optimiser's step, between the adapter's two looks at it
    finish    teachers follow, fresh rows are offered to the memory

``take`` is that order, written once: whoever has to see or add something on the way (Avalanche's plugins) iterates
over its events, whoever has not calls ``learn``. Everything random comes from generators that are part of the state.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from streamkd.gates.gate import FixedGate, FixedOptions, Gate, GateInputs, Measured
from streamkd.learning import checked
from streamkd.learning import terms as sums
from streamkd.learning.batch import ARRIVED, NOTHING, REPLAYED, StepBatch, Taken
from streamkd.learning.contradiction import Contradiction
from streamkd.learning.held_out import HeldOut
from streamkd.learning.host import Hosted
from streamkd.learning.mixture import Mixture
from streamkd.learning.present import Present
from streamkd.learning.recent import Recent
from streamkd.learning.sharing import WeightTransfer
from streamkd.learning.terms import Term
from streamkd.losses.match_gate import LossInputs
from streamkd.records import Label
from streamkd.replay.holdout import Offer
from streamkd.replay.memory import Memory
from streamkd.replay.ring import Remembered
from streamkd.replay.rows import HeldOutFigures, RowSource, StepRows
from streamkd.replay.sources import RowSources
from streamkd.strikes import Strikes
from streamkd.students.networks import Student, at_rest
from streamkd.students.optimizers import RateDecay
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import EmaTeacher, capture


class Adapter(Protocol):
    """Whoever adapts the gate (``streamkd.meta.adaptation``): told of the two moments between which the student moves.

    A step that is not taken is told of neither.
    """

    def before_update(self, step: "Step", plan: StepBatch, evidence: GateInputs, lesson: LossInputs) -> None:
        """The gradients are there, not yet clipped, and nothing has moved: neither student nor optimiser."""
        ...

    def after_update(self, step: "Step") -> None:
        """The student has moved; teachers and memory have not followed yet."""
        ...


NO_SOURCES: Mapping[str, RowSource] = MappingProxyType({})


class Step:
    """The parts that one step moves, and the arithmetic between a batch and its loss."""

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        memory: Memory,
        pool: Pool,
        gate: Gate,
        terms: Sequence[Term],
        *,
        replay: int,
        clip_norm: float | None = None,
        transfer: WeightTransfer | None = None,
        sources: Mapping[str, RowSource] = NO_SOURCES,
        rate_decay: RateDecay | None = None,
        measure: Callable[[], Measured] | None = None,
        gate_name: str = "gate",
    ) -> None:
        self.gate_name, self._plain = gate_name, FixedGate(FixedOptions())
        self.gate_strikes, self.loss_strikes = Strikes("gate"), Strikes("loss")
        self.forgive(False)
        self.rate_decay = rate_decay or RateDecay(optimizer, 1.0, 1)
        self.transfer, self.sources = transfer, RowSources(sources)
        self.student, self.optimizer, self.memory, self.pool = student, optimizer, memory, pool
        self.gate, self.terms = gate, tuple(terms)
        self.adapter: Adapter | None = None
        self.recent = Recent()
        self.mixture = Mixture(pool)
        self.present = Present(pool, self.mixture)
        self.held_out = HeldOut(student, memory, pool, self.recent)
        self.measure = measure or self.held_out.measured  # what gates are told of the teachers
        self.contradiction = Contradiction(memory, pool, self.mixture, self.recent)
        self.replay, self.clip_norm = replay, clip_norm
        self.weighing_seconds = 0.0
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.trained = [*self.parameters, *sums.parameters_of(self.terms)]
        self._student_layers = sums.layers_of(self.terms)
        self._teacher_layers = sums.teacher_layers_of(self.terms)
        self._own_gates = any(term.gate is not None for term in self.terms)
        self._captured: dict[str, Tensor] = {}
        self._buffers: list[tuple[Tensor, Tensor]] = []  # of the student, with what they were before the step
        self._weighed: tuple[StepBatch, GateInputs, LossInputs] | None = None
        capture(student, self._student_layers, {})  # a layer that is not there is an error now, not at the first step

    def forgive(self, lenient: bool) -> None:
        """Whether a gate or a loss that fails is left out: a server goes on, a figure would not be theirs."""
        self.gate_strikes.strict = self.loss_strikes.strict = not lenient

    @property
    def strikes(self) -> list[Strikes]:
        """Of gates, losses and sources of rows."""
        return [self.gate_strikes, self.loss_strikes, self.sources.strikes]

    def grow(self, labels: Sequence[Label]) -> None:
        """New labels: heads and caches widen; a row that a shared teacher has is inherited."""
        before = self.student.classes
        self.student.grow(len(labels), self.optimizer)
        self.pool.grow(labels)
        if self.transfer is not None:
            averages = [teacher.student for teacher in self.pool.teachers if isinstance(teacher, EmaTeacher)]
            self.transfer.follow([self.student, *averages], labels, before)

    def learn(self, x: Tensor, y: Tensor, task: int = 0) -> Taken:
        """The whole step, for whoever has nothing to see or add on the way."""
        *_, (_, taken) = self.take(x, y, task)
        return taken

    def take(self, x: Tensor, y: Tensor, task: int, host: Hosted | None = None) -> Iterator[tuple[str, Taken]]:
        """The whole step on fresh rows x [batch, *shape], y [batch]: its events by Avalanche's names, as they come.

        Where loss or gradients are not finite, nothing moves: there is no update then. A ``host`` goes back after
        ``before_backward``, from ``taken.loss``, and moves the student after ``before_update``.
        """
        taken = Taken(self.begin(x, y, task, host))
        yield "before_training_iteration", taken
        for parameter in self.trained if host is None else ():  # what zero_grad does, without its bookkeeping
            parameter.grad = None
        yield "before_forward", taken
        taken.logits = self.forward(taken.plan, host)
        yield "after_forward", taken
        lesson = self.weigh(taken.plan, taken.logits)
        taken.weights = lesson.weights[: taken.plan.records]
        taken.loss = self.loss(lesson)
        yield "before_backward", taken
        if host is None:
            taken.loss.backward()
        taken.loss = taken.loss.detach()
        loss = taken.loss.item()
        yield "after_backward", taken
        taken.skipped = loss - loss != 0.0 or not self.finite()  # NaN or infinite
        if not taken.skipped:
            self.clip()
            yield "before_update", taken
            if host is None:
                self.optimizer.step()
            yield "after_update", taken
            self.finish(taken.plan, taken.logits)
            if host is None:  # a host's answers are its own model's
                self.judge(taken.plan, taken.logits)
        else:
            seen = [sums.seen(lesson, place) for place in range(len(self.terms))]
            checked.strike_who_is_not_finite(self, lesson, seen)
            self.abandon(taken.plan)
        taken.logits = taken.logits.detach()  # the graph would pin the shapes of parameters that grow
        yield "after_training_iteration", taken

    def rehearse(self, task: int) -> bool:
        """A step to which nothing arrives: student and average learn what is remembered; whether it was taken."""
        if (remembered := self.memory.sample(self.replay)) is None:
            return False
        with torch.no_grad():
            rows = StepRows.of(remembered.x, remembered.y, met=remembered.met())
            plan = self._plan(rows, {ARRIVED: 0, REPLAYED: len(rows)}, task, remembered)
        self.optimizer.zero_grad()
        loss = self.loss(self.weigh(plan, self.forward(plan)))
        loss.backward()
        self._weighed = None
        if not loss.isfinite() or not self.finite():
            self._put_back()
            return False
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        self.optimizer.step()
        self.pool.after_step(self.student)
        self.rate_decay.step()
        return True

    @torch.no_grad()
    def begin(self, x: Tensor, y: Tensor, task: int, host: Hosted | None = None) -> StepBatch:
        """Join arrived rows, replayed ones and those of other sources, and ask the teachers about all of them."""
        remembered = self.memory.sample(self.replay)
        offered, offer = len(y) if host is None else host.offered, NOTHING
        if self.student.normalise.fit:
            self.student.normalise.observe(x)
        if offered:
            offer = self.memory.hold(x[:offered], y[:offered], task, lambda rows: self._at_rest(x[rows]))
        rows, origins = StepRows.of(x, y), {ARRIVED: len(y)}
        rows.mass[offer.untaught] = 0.0
        if remembered is not None:
            rows = rows.and_(StepRows.of(remembered.x, remembered.y, met=remembered.met()))
            origins[REPLAYED] = len(remembered.y)
        return self._plan(rows, origins, task, remembered, offer)

    def _plan(
        self, rows: StepRows, origins: dict[str, int], task: int, remembered: Remembered | None, offer: Offer = NOTHING
    ) -> StepBatch:
        """These records, and behind them the rows of other sources."""
        unlabelled = bool((rows.y < 0).any())
        self.held_out.begin()
        taught = rows[rows.mass > 0] if offer.untaught else rows
        for key, drawn in self.sources.draw(taught, self.student.classes, self._figures):
            rows, origins[key] = rows.and_(drawn), len(drawn.y)
            unlabelled = unlabelled or bool((drawn.y < 0).any())
        if self.pool.asks_noise or self.pool.witnesses:
            self._figures()  # the gate's as well: it must not look while it weighs
        answers = self.pool.answers(rows.x, origins[ARRIVED], remembered, self.student.classes)
        return StepBatch(self._shared_out(rows), origins, task, answers, unlabelled, offer)

    def _figures(self) -> HeldOutFigures:
        return self.held_out.figures(self._weights, self.evidence)

    def _weights(self, evidence: GateInputs) -> Tensor:
        """The gate's; where it fails, those of a plain one."""
        weights = self.gate_strikes.call(self.gate_name, "forward", checked.weights_by, self.gate, evidence)
        return self._plain(evidence) if weights is None else weights

    def _shared_out(self, rows: StepRows) -> StepRows:
        """Masses that sum to the rows, so that the mean over the rows is the mean over what they count.

        The loss of a step in which many rows count little would be a small one, and Adam's step as small.
        """
        mass = rows.mass.to(next(self.student.parameters()).dtype)
        return replace(rows, mass=mass * (len(mass) / mass.sum().clamp_min(1e-6)))

    def _at_rest(self, x: Tensor) -> Tensor:
        with at_rest(self.student):
            return checked.logits_of(self.student, x)

    def forward(self, plan: StepBatch, host: Hosted | None = None) -> Tensor:
        """The student's logits, and the outputs of the layers that losses named; running statistics move."""
        self._buffers = [(buffer, buffer.clone()) for buffer in self.student.buffers()]
        if host is not None:
            rest = plan.x[plan.fresh :]
            return torch.cat([host.logits, self.student(rest)]) if len(rest) else host.logits
        if not self._student_layers:
            return checked.logits_of(self.student, plan.x)
        self._captured = {}
        with capture(self.student, self._student_layers, self._captured):
            return checked.logits_of(self.student, plan.x)

    def weigh(self, plan: StepBatch, logits: Tensor) -> LossInputs:
        """The gate's weights for the step; fresh rows that are held out have none."""
        evidence = self.evidence(plan, logits)
        begun = time.perf_counter()
        with torch.no_grad():
            weights = self._weights(evidence)
        weights = weights * plan.rows.mass.unsqueeze(1)
        self.weighing_seconds += time.perf_counter() - begun
        lesson = self.lesson(plan, logits, weights, evidence)
        self._weighed = plan, evidence, lesson
        return lesson

    def evidence(self, plan: StepBatch, logits: Tensor) -> GateInputs:
        """What the gate may see of the step, without gradient."""
        known = plan.answers.known
        if plan.answers.complete:
            heard = known[:, :, 0]
        else:
            columns = plan.y.clamp_min(0).view(-1, 1, 1).expand(-1, known.shape[1], 1)
            heard = known.gather(2, columns).squeeze(2)
            if plan.unlabelled:
                heard = torch.where((plan.y < 0).unsqueeze(1), _able(known), heard)
        facts = self.pool.facts(plan.y.device)
        return GateInputs(
            logits.detach(),
            plan.y,
            plan.answers.logits,
            known,
            heard,
            facts,
            self.pool.keys,
            plan.answers.complete,
            self.measure,
            plan.rows.met,
            self.pool.stale(plan.y.device),
            self.present.worth(),
        )

    def lesson(
        self, plan: StepBatch, logits: Tensor, weights: Tensor, evidence: GateInputs | None = None
    ) -> LossInputs:
        """What the losses see of the step; terms with a gate of their own are weighed by it, from ``evidence``."""
        own: dict[int, Tensor] = {}
        if self._own_gates:
            with torch.no_grad():
                own = sums.own_weights(self.terms, evidence or self.evidence(plan, logits), self.gate_strikes)
                own = {place: weights * plan.rows.mass.unsqueeze(1) for place, weights in own.items()}
        theirs = self.pool.features(plan.x[: plan.fresh], self._teacher_layers) if self._teacher_layers else {}
        return LossInputs(
            logits,
            plan.y,
            plan.answers.logits,
            plan.answers.known,
            weights,
            plan.fresh,
            self.pool.keys,
            plan.answers.complete,
            self._captured,
            theirs,
            own,
        )

    def loss(self, lesson: LossInputs) -> Tensor:
        """Σ weight · mean over the rows, of every term."""
        return sums.total(self.terms, lesson, self.loss_strikes)

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether gradients and running statistics are finite, and so small that their squares are.

        A moment of infinity would stay one. A buffer that was infinite before, a mask say, is none of ours.
        """
        gradients = [p.grad for p in self.trained if p.grad is not None]
        pairs = [(buffer, before) for buffer, before in self._buffers if buffer.is_floating_point()]
        if not _finite(gradients).all():
            return False
        return bool((_finite([b for b, _ in pairs]) >= _finite([before for _, before in pairs])).all())

    def clip(self) -> None:
        """Gradients are there: the adapter looks at them, then their global norm is clipped where that is asked for."""
        if self.adapter is not None and self._weighed is not None:
            self._adapt(self.adapter.before_update, self, *self._weighed)
        self._weighed = None
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, self.clip_norm)

    def _adapt(self, told: Callable[..., None], *arguments: Any) -> None:
        """Tell the adapter; it moves no gate that is off, and where it fails itself the gate stays as it is."""
        if self.gate_strikes.strict:
            told(*arguments)
        elif not self.gate_strikes.off(self.gate_name):
            self.gate_strikes.call(f"adaptation of {self.gate_name}", told.__name__, told, *arguments)

    @torch.no_grad()
    def finish(self, plan: StepBatch, logits: Tensor) -> None:
        """Teachers follow the update; fresh rows are remembered with the logits that they met.

        Without a label they are not: what is remembered is balanced by label, and measured by it. Who is held out no
        more teaches those that learn whenever rows come, and the student from memory.
        """
        if self.adapter is not None:
            # before memory takes the rows: they must not be their own query
            self._adapt(self.adapter.after_update, self)
        self.memory.remember(plan.offer, plan.x, plan.y, plan.task, logits.detach())
        x, y = plan.x[: plan.fresh], plan.y[: plan.fresh]
        self.pool.heard(logits[: plan.fresh].detach(), plan.answers, _unless(y, plan.offer.again))
        learn = y >= 0
        learn[plan.offer.untaught] = False
        then = self.mixture.then
        self.pool.observe(x, y, learn, then.opinions if then else {})
        if (released := plan.offer.released) is not None:
            self.pool.observe_released(released.x, released.y)
        self.pool.after_step(self.student)
        self.rate_decay.step()

    @torch.no_grad()
    def judge(self, plan: StepBatch, logits: Tensor) -> None:
        """By what everybody said of the fresh rows: who is worth how much, and what of the memory is still true."""
        self.mixture.test(plan, logits, self.held_out.said)
        fresh = slice(plan.fresh)
        labels = _unless(plan.y[fresh], plan.offer.again)
        self.pool.keep_former(self.mixture.now.weights, int((labels >= 0).sum()))
        self.recent.add(plan.x[fresh], labels)
        self.contradiction.after_step(labels)
        self.present.after_step(labels, self.held_out.said)

    @torch.no_grad()
    def abandon(self, plan: StepBatch) -> None:
        """The step was not taken, for its loss or gradients were not finite: nothing of its fresh rows is kept."""
        self._weighed = None
        self.pool.prequential, self.mixture.last, self.mixture.then = {}, None, None
        self.memory.withdraw(plan.offer)
        self._put_back()

    def _put_back(self) -> None:
        for buffer, before in self._buffers:  # one infinite activation would stay in a running mean for ever
            buffer.copy_(before)


def _finite(tensors: list[Tensor]) -> Tensor:
    """[tensors] whether the norm of each is a finite number: one look at the device for all of them."""
    if not tensors:
        return torch.ones(0, dtype=torch.bool)
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]).isfinite()


def _unless(y: Tensor, rows: Sequence[int]) -> Tensor:
    """Labels [batch], none on these rows: what is said of records that were learned before tells nothing of labels."""
    if not rows:
        return y
    y = y.clone()
    y[list(rows)] = -1
    return y


def _able(known: Tensor) -> Tensor:
    """Who may speak of a row without label, [batch, teachers]: who knows every class, or where nobody does, any.

    The row may be of a class that a teacher does not know, which it would take for one of its own.
    """
    whole = known.all(2)
    return torch.where(whole.any(1, keepdim=True), whole, known.any(2))
