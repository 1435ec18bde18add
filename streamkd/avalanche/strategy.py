"""The door to Avalanche: a ``SupervisedTemplate`` whose experiences are tensor batches and whose loop is ``Step``'s.

    strategy.train(experience) ─► hooks of plugins around: begin ─► forward ─► loss ─► backward ─► update ─► finish

Avalanche's plugins, metrics and loggers see the events and attributes that they know. Plugins that work once a
task (EWC and the like) go in through ``AtBoundaries``: an experience here is one batch, and a task spans many.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from streamkd.avalanche.deferred import AVALANCHES, deferred
from streamkd.learning.batch import Taken
from streamkd.learning.step import Step
from streamkd.replay.ring import Ring
from streamkd.tasks.experience import TensorBatch
from streamkd.tasks.labels import NONE

with deferred(*AVALANCHES):
    from avalanche.benchmarks import OnlineCLExperience
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
    from avalanche.core import SupervisedPlugin
    from avalanche.logging import BaseLogger
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates import SupervisedTemplate
    from avalanche.training.templates.base_sgd import PeriodicEval

EVENTS = (
    "before_training",
    "before_training_exp",
    "before_train_dataset_adaptation",
    "after_train_dataset_adaptation",
    "before_training_epoch",
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
    "after_training_epoch",
    "after_training_exp",
    "after_training",
)


class TensorExperience:
    """One batch in the form that Avalanche's plugins read: ``dataset``, classes, task labels, origin stream."""

    origin_stream = SimpleNamespace(name="train")

    def __init__(self, batch: TensorBatch, number: int) -> None:
        self.batch = batch
        self.current_experience = number
        self.task_labels = [0]
        self.task_label = 0
        self._dataset: AvalancheDataset | None = None

    def logging(self) -> "TensorExperience":
        """What metrics may read of it: everything."""
        return self

    @property
    def classes_in_this_experience(self) -> list[int]:
        return sorted(set(self.batch.y.tolist()) - {NONE})

    @property
    def dataset(self) -> AvalancheDataset:
        """The batch's labelled records as an Avalanche dataset, made only if a plugin asks."""
        if self._dataset is None:
            labelled = self.batch.y >= 0
            self._dataset = dataset_of(self.batch.x[labelled], self.batch.y[labelled])
        return self._dataset


def dataset_of(x: Tensor, y: Tensor) -> AvalancheDataset:
    """An Avalanche dataset over tensors, task label 0."""
    targets = DataAttribute(y.tolist(), "targets")
    tasks = DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True)
    return AvalancheDataset([TensorDataset(x, y)], data_attributes=[targets, tasks])


class AtBoundaries(SupervisedPlugin):
    """Lets a plugin that works once an experience work once a task instead.

    ``after_training_exp`` and ``before_training_exp`` reach the plugin only at boundaries, with the remembered
    samples of the finished task as ``strategy.experience.dataset``; every other event passes when it comes.
    While the plugin is called, ``strategy.clock.train_exp_counter`` counts finished tasks: plugins file by it.
    """

    def __init__(self, plugin: Any) -> None:
        super().__init__()
        self.plugin = plugin
        self.tasks = 0
        for event in EVENTS:
            if event not in ("before_training_exp", "after_training_exp") and _implements(plugin, event):
                setattr(self, event, partial(self._tell, event))

    def task_ended(self, strategy: "StreamStrategy", experience: TensorExperience) -> None:
        """Deliver the two task events that Avalanche would have sent."""
        before, strategy.experience = strategy.experience, experience
        self._tell("after_training_exp", strategy)
        self.tasks += 1
        self._tell("before_training_exp", strategy)
        strategy.experience = before

    def _tell(self, event: str, strategy: "StreamStrategy", **kwargs: Any) -> None:
        if not _implements(self.plugin, event):
            return
        clock = strategy.clock
        batches, clock.train_exp_counter = clock.train_exp_counter, self.tasks
        try:
            getattr(self.plugin, event)(strategy, **kwargs)
        finally:
            clock.train_exp_counter = batches


class MetricsLogger(BaseLogger):
    """An Avalanche logger that hands every number to ``sink(name, value)``: our metrics, and so Prometheus."""

    def __init__(self, sink: Callable[[str, float], None]) -> None:
        super().__init__()
        self._sink = sink

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Pass on numbers; Avalanche's images and histograms have no place in a time series."""
        if isinstance(value, int | float):
            self._sink(name, float(value))


def _implements(plugin: Any, event: str) -> bool:
    method = getattr(plugin, event, None)
    return method is not None and getattr(method, "__func__", method) is not getattr(SupervisedPlugin, event, None)


class StreamStrategy(SupervisedTemplate):
    """Avalanche's face of a ``Step``; ``learn`` trains on one batch, ``end_task`` closes a task.

    ``train`` also takes Avalanche's own experiences, labels being columns: each is a task (sub-experiences of an online
    stream belong to their origin, where it can be seen), cut into steps of ``train_mb_size``, the head growing as
    labels come.
    """

    def __init__(
        self,
        *,
        step: Step,
        device: torch.device,
        plugins: Sequence[Any] = (),
        evaluator: EvaluationPlugin | None = None,
        train_mb_size: int = 1,
    ) -> None:
        self.step = step
        self.taken: Taken | None = None
        self._listeners: dict[str, list[Callable[..., None]]] = {}
        self._listened: tuple[int, ...] = ()
        super().__init__(
            model=step.student,
            optimizer=step.optimizer,
            criterion=torch.nn.functional.cross_entropy,
            train_mb_size=train_mb_size,
            train_epochs=1,
            eval_mb_size=256,
            device=device,
            plugins=list(plugins),
            evaluator=evaluator or quiet_evaluator(),
            eval_every=-1,
        )
        self._number = 0
        self._task = -1  # of Avalanche's own experiences

    def learn(self, batch: TensorBatch) -> Taken:
        """Train on one batch; the step as it was taken."""
        self.train(TensorExperience(batch, self._number), eval_streams=[])
        self._number += 1
        assert self.taken is not None
        return self.taken

    def end_task(self, task: int) -> None:
        """Tell task-wise plugins that a task is over."""
        plugins = [plugin for plugin in self.plugins if isinstance(plugin, AtBoundaries)]
        rows = _rows_of_task(self.step.memory.replayed, task) if plugins else None
        for plugin in plugins:
            if rows is not None:
                experience = TensorExperience(TensorBatch(*rows, task), task)
                plugin.task_ended(self, experience)

    # Avalanche's own machinery, at the price of a batch: no dataset, no loader, no regrouping of parameters

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """The head grows by the label space, with the optimiser's state; evaluation never grows it."""

    def model_adaptation(self, model: torch.nn.Module | None = None) -> torch.nn.Module:
        return self.model if model is None else model

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        if not isinstance(experiences, TensorExperience):
            # Avalanche would read the whole stream before the first step, unless told that none is for evaluation
            return super().train(experiences, eval_streams=eval_streams or [], **kwargs)
        self.is_training = True
        if not self.model.training:
            self.model.train()
        self.experience = experiences
        for event in EVENTS[:5]:
            self._tell(event)
        self._iterate(experiences.batch)
        for event in EVENTS[-3:]:
            self._tell(event)
        self.experience = None  # type: ignore[assignment]
        return self.evaluator.get_last_metrics() if self._listeners["after_training_iteration"] else {}

    def _before_training_exp(self, **kwargs: Any) -> None:
        if begins_task(self.experience):
            self._next_task()
        super()._before_training_exp(**kwargs)

    def _next_task(self) -> None:
        if self._task >= 0:
            self.step.pool.end_task(self.step.student)
            self.end_task(self._task)
        self._task += 1

    def training_epoch(self, **kwargs: Any) -> None:
        """Avalanche's own experiences take the same step, batch by batch."""
        for x, y, *_ in self.dataloader:
            classes = int(y.max()) + 1
            if classes > self.step.student.classes:
                self.step.grow(range(classes))
            self._iterate(TensorBatch(x.to(self.device), y.to(self.device), self._task))

    def forward(self) -> Tensor:
        """Logits in evaluation; a class that was never learned has probability e⁻³⁰, and no column in the head."""
        logits = super().forward()
        unseen = max(int(self.mb_y.max()) + 1 - logits.shape[1], 0)
        return torch.cat([logits, (logits.logsumexp(1, keepdim=True) - 30).expand(-1, unseen)], 1)

    def _iterate(self, batch: TensorBatch) -> None:
        for event, taken in self.step.take(batch.x, batch.y, batch.task):
            self._show(event, taken)
            self._tell(event)
            if event == "before_backward":
                taken.loss = self.loss  # plugins add to it

    def _show(self, event: str, taken: Taken) -> None:
        """Let Avalanche's plugins and metrics see what they know by their names."""
        self.taken = taken
        if event == "before_training_iteration":
            x, y = taken.plan.x, taken.plan.y
            self.mbatch = [x, y, torch.zeros_like(y)] if self._heard() else [x, y, y]
        elif event in ("after_forward", "after_training_iteration"):
            self.mb_output = taken.logits
        if event in ("before_backward", "after_backward"):
            self.loss = taken.loss

    def _heard(self) -> bool:
        """Whether anyone listens to iterations; refreshes the lists of listeners when plugins came or went."""
        present = tuple(map(id, self.plugins))
        if present != self._listened:
            self._listened = present
            loud = [plugin for plugin in self.plugins if not _silent(plugin)]
            self._listeners = {e: [getattr(p, e) for p in loud if _implements(p, e)] for e in EVENTS}
        return bool(self._listeners["before_forward"] or self._listeners["before_training_iteration"])

    def _tell(self, event: str) -> None:
        if tuple(map(id, self.plugins)) != self._listened:
            self._heard()
        for listener in self._listeners[event]:
            listener(self)


def quiet_evaluator(*metrics: Any, sink: Callable[[str, float], None] = lambda name, value: None) -> EvaluationPlugin:
    """An evaluator that keeps no values for ever, and whose metrics go to ``sink``."""
    return EvaluationPlugin(*metrics, loggers=[MetricsLogger(sink)], collect_all=False)


def begins_task(experience: Any) -> bool:
    """Every experience but the later parts of one that an online stream has cut; that stream may hide its tasks."""
    # not by the end of a task: Avalanche 0.6.0 leaves is_last_subexp false where the parts are all of one size
    if isinstance(experience, OnlineCLExperience):
        return bool(experience.access_task_boundaries and experience.is_first_subexp)
    return True


def _silent(plugin: Any) -> bool:
    """Avalanche's own defaults that would do nothing, at the price of a call per event."""
    if isinstance(plugin, EvaluationPlugin):
        return not plugin.metrics and all(isinstance(logger, MetricsLogger) for logger in plugin.loggers)
    return isinstance(plugin, PeriodicEval) and plugin.eval_every < 0


def _rows_of_task(ring: Ring, task: int) -> tuple[Tensor, Tensor] | None:
    if ring.x is None:
        return None
    mine = ring.task[: ring.filled] == task
    return (ring.x[: ring.filled][mine], ring.y[: ring.filled][mine]) if mine.any() else None
