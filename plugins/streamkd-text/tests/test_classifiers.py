"""The teacher ``text-classifier``: a real small classifier in a directory, against transformers itself."""

import json
from pathlib import Path

import pytest
import torch

from streamkd import testing
from streamkd.api import PluginError, StateConflict, TeacherContext
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.testing.specimens import plain_student

from .conftest import VOCABULARY, write

transformers = pytest.importorskip("transformers", reason="needs transformers")
from streamkd_text import classifiers, reading  # noqa: E402 - after what it needs

TEXTS = ["my card is lost", "what is the rate?", "the top up is late", ""]
LABELS = {0: "lost", 1: "rate", 2: "late"}
KINDS = {
    "bert": ("Bert", {"intermediate_size": 16, "max_position_embeddings": 14}),
    "distilbert": ("DistilBert", {"hidden_dim": 16, "max_position_embeddings": 14}),
    "roberta": ("Roberta", {"intermediate_size": 16, "max_position_embeddings": 14, "pad_token_id": 0}),
}


def made(folder: Path, kind: str = "bert", seed: int = 0) -> Path:
    """A classifier of three labels, as `save_pretrained` writes it, beside a tokenizer."""
    write(folder)
    name, sizes = KINDS[kind]
    common = {"vocab_size": len(VOCABULARY), "num_hidden_layers": 2, "num_attention_heads": 2, "id2label": LABELS}
    width = {"dim": 8, "n_layers": 2, "n_heads": 2} if kind == "distilbert" else {"hidden_size": 8}
    config = getattr(transformers, f"{name}Config")(**common, **sizes, **width)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(folder)
    return folder


@pytest.fixture
def rows(schema: RecordSchema) -> torch.Tensor:
    return reading.rows_of(TEXTS, torch.zeros(1, *schema.shape, dtype=torch.int8))


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_transformers_says(kind: str, tmp_path: Path, rows: torch.Tensor) -> None:
    """Of every architecture, of each text alone; an empty text and one of too many tokens too."""
    mine = classifiers.load(made(tmp_path, kind))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokens = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert mine.classes == ("lost", "rate", "late")
    with torch.no_grad():
        for text, said in zip(TEXTS, mine.eval()(rows), strict=True):
            inputs = tokens(text, return_tensors="pt", truncation=True, max_length=12, return_token_type_ids=False)
            assert torch.equal(said, theirs(**inputs).logits[0])
    assert mine(rows[:0]).shape == (0, 3)


def test_it_keeps_the_contract_of_a_teacher(tmp_path: Path, registry: Registry, schema: RecordSchema) -> None:
    """With its own labels, of which the stream has some."""
    options = {"model": str(made(tmp_path)), "classes": ["a", "b", "c"]}
    testing.check_teacher(registry.kind("teachers", "text-classifier"), options, schema)


def test_other_weights_are_refused_by_a_state(tmp_path: Path, schema: RecordSchema) -> None:
    """A state of one classifier is none of another: answers that are remembered were the first one's."""
    student = plain_student(schema, 3, 0)
    context = TeacherContext("words", student, schema, ["late", "lost", "new"], torch.device("cpu"))
    one, other = (
        classifiers._teacher(classifiers.ClassifierOptions(model=made(tmp_path / str(seed), seed=seed)), context)
        for seed in range(2)
    )
    assert one.known().tolist() == [True, True, False]
    one.load_state_dict(one.state_dict())
    with pytest.raises(StateConflict, match="weights_sha256"):
        one.load_state_dict(other.state_dict())


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    """An encoder without a head, which would get one of chance; no directory; a pickle in place of safetensors."""
    with pytest.raises(PluginError, match=r"got none of its own for .*classifier\.bias"):
        classifiers.load(write(tmp_path / "encoder"))
    with pytest.raises(PluginError, match="no classifier can be read"):
        classifiers.load(tmp_path / "nothing")
    folder = made(tmp_path / "pickled")
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(PluginError, match="no classifier can be read"):
        classifiers.load(folder)


def test_no_chance_is_drawn(tmp_path: Path) -> None:
    """Loading leaves the caller's random numbers where they were, and its log as loud."""
    made(tmp_path)
    before, level = torch.get_rng_state(), transformers.utils.logging.get_verbosity()
    classifiers.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert transformers.utils.logging.get_verbosity() == level
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {str(k): v for k, v in LABELS.items()}
