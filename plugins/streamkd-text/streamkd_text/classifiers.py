"""The teacher ``text-classifier``: a classifier of texts that was trained elsewhere, of any architecture, frozen.

    raw bytes ─► text ─► tokenizer.json ─► the network as Hugging Face's transformers builds it ─► outputs, by label

A directory of ``config.json``, ``tokenizer.json`` and ``model.safetensors``; nothing is fetched, nothing unpickled, and
no code of a directory is run. One text at a time: with others beside it, padded, answers would differ in the last bits.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn

from streamkd.api import FrozenTeacher, Kind, MissingExtra, Options, PluginError, TeacherContext, hookimpl
from streamkd_text import reading

FIX = (
    "name a directory that save_pretrained of model and tokenizer wrote: config.json, tokenizer.json, model.safetensors"
)
MARGIN = 2  # places that RoBERTa and its kin number from


class ClassifierOptions(Options):
    """Which classifier, and what its outputs mean."""

    model: Path = Field(description="a directory with config.json, tokenizer.json and model.safetensors")
    classes: tuple[int | str, ...] | None = Field(
        default=None,
        min_length=1,
        description="labels in the order of the outputs; None: `id2label` of its config.json",
    )
    tokens: int = Field(default=256, gt=0, description="so many of a text are read")


class Classifier(nn.Module):
    """Raw texts [batch, bytes] to outputs [batch, classes of its own]."""

    def __init__(self, network: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.network, self._tokenizer = network, tokenizer

    @property
    def classes(self) -> tuple[str, ...]:
        """What its configuration calls its outputs."""
        names: dict[int, str] = self.network.config.id2label  # type: ignore[union-attr, assignment]
        return tuple(names[output] for output in range(len(names)))

    def forward(self, x: Tensor) -> Float[Tensor, "batch outputs"]:
        said = [self._read(text, x.device) for text in reading.texts(x)]
        return torch.cat(said) if said else torch.zeros(0, len(self.classes), device=x.device)

    def _read(self, text: str, device: torch.device) -> Tensor:
        tokens = torch.tensor([self._tokenizer.encode(text).ids], device=device)
        logits: Tensor = self.network(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        return logits


def load(folder: Path, tokens: int = 256) -> Classifier:
    """The classifier in a directory.

    Raises:
        MissingExtra: transformers is not installed. PluginError: no classifier lies there, or not all of one.
    """
    try:
        import transformers
    except ImportError as fault:
        said = f"needed transformers for the teacher text-classifier, got: {fault}"
        fix = 'pip install "./plugins/streamkd-text[classifiers]"'
        raise MissingExtra(said, extra="classifiers", where=str(folder), fix=fix) from fault
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with torch.random.fork_rng(devices=[]), _quiet(transformers):
            network, found = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **local
            )
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8"))
    except Exception as fault:  # transformers and tokenizers raise anything
        raise PluginError(f"no classifier can be read: {fault}".split("\n")[0], where=str(folder), fix=FIX) from fault
    if lacking := sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}):
        said = f"needed a classifier with all of its weights, got none of its own for {', '.join(lacking[:3])}"
        raise PluginError(
            said, where=str(folder), fix="train it for its classes before; an encoder alone is no classifier"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(
        min(tokens, getattr(network.config, "max_position_embeddings", tokens + MARGIN) - MARGIN)
    )
    return Classifier(network, tokenizer)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without bars and advice; as it was after."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity(logs.CRITICAL)
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def _teacher(options: ClassifierOptions, context: TeacherContext) -> FrozenTeacher:
    reading.require_text(context.schema.shape, f"teacher {context.key}")
    classifier = load(options.model, options.tokens)
    return FrozenTeacher(classifier, options.classes or classifier.classes, context)


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """A classifier of texts as a frozen teacher."""
    yield Kind(
        "text-classifier", _teacher, ClassifierOptions, "a classifier of texts by transformers, from a directory"
    )
