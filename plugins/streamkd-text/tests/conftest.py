"""A small real encoder in a directory, and streams of raw texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from streamkd_text import classifiers, joined, students
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema

torch.set_num_threads(1)

WORDS = ["card", "lost", "my", "is", "rate", "what", "the", "transfer", "late", "##s", "top", "up", "?", "##er"]
VOCABULARY = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of such an encoder under their published names."""
    g = torch.Generator().manual_seed(seed)
    width, inner = 8, 16
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), width),
        "embeddings.position_embeddings.weight": (12, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
    }
    for layer in range(2):
        at = f"encoder.layer.{layer}."
        square = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        for name, out, into in (
            *((name, width, width) for name in square),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ):
            shapes |= {f"{at}{name}.weight": (out, into), f"{at}{name}.bias": (out,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}{name}.weight": (width,), f"{at}{name}.bias": (width,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def write(folder: Path, seed: int = 0, **config: Any) -> Path:
    """An encoder's three files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}), "utf-8")
    tokens = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokens.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokens.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokens.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokens.save(str(folder / "tokenizer.json"))
    save_file(tensors(seed), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a real encoder of two layers and eight numbers."""
    return write(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def schema() -> RecordSchema:
    """Records of one raw text."""
    return RecordSchema(inputs=(InputColumn(name="text", kind="text", raw=True, shape=(48,)),), label_type="string")


@pytest.fixture
def registry() -> Registry:
    """All that is installed, and this."""
    found = Registry.load()
    for plugin, name in ((students, "text-students"), (joined, "text-rows"), (classifiers, "text-teachers")):
        if not any(status.name == name for status in found.report()):
            found.register(plugin, name)
    return found
