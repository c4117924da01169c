"""Small real things to test on: tiny models with a tokenizer."""

import os
import string
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the loopback Hub speaks LFS
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

from hf_pe import BitsAndBytesQuantization, Distillation, StructuredPruning, compress
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.prune.criteria import CRITERIA, Criterion
from tests.helpers import TEXTS, bert_config, saved
from tests.images import images  # noqa: F401 - a fixture

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="rewrite the files of tests/snapshots/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that two processes end at the same time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup() -> None:
    """What a test draws does not hang on the tests before it."""
    torch.manual_seed(0)


def pytest_runtest_call() -> None:
    """Nor on which fixtures were there already."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What hf_pe remembers of this machine (hashes, work folders) is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def random_criterion(monkeypatch):
    """Let recipes choose units at random, the control."""
    score = Criterion(lambda statistics: torch.rand(statistics.consumer.shape[1]), (), "random choice", None)
    monkeypatch.setitem(CRITERIA, "random", score)


@pytest.fixture(scope="session", autouse=True)
def short_timing():
    """Times in reports are real, but of few passes: most of a test's own time went there."""
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["hf_pe.measure.latency"]
        patch.setattr(module, "SECONDS", 0.05)
        patch.setattr(module, "WARM_UP_MS", 0.0)
        yield


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Knows the words of TEXTS, and letters. Not trained: the trainer breaks ties differently from run to run."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase
    words = sorted({word for text in TEXTS for word in text.lower().strip(".").split()})
    vocabulary = [*special, ".", *letters, *(f"##{letter}" for letter in letters), *words]
    raw = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="[SEP]", **names)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory, tokenizer) -> Path:
    """A tiny BertModel with its tokenizer."""
    return saved(
        tmp_path_factory.mktemp("models") / "tiny-bert", randomize_weights_(BertModel(bert_config())), tokenizer
    )


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory, tokenizer) -> Path:
    """A tiny classifier with the labels negative and positive."""
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    model = randomize_weights_(BertForSequenceClassification(bert_config(**names)))
    return saved(tmp_path_factory.mktemp("models") / "tiny-classifier", model, tokenizer)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory, tokenizer) -> Path:
    """A tiny causal language model with tied embeddings."""
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return saved(
        tmp_path_factory.mktemp("models") / "tiny-llama", randomize_weights_(LlamaForCausalLM(config)), tokenizer
    )


@pytest.fixture(scope="session")
def result(bert_folder, tmp_path_factory):
    """A pruned and distilled tiny model with an NF4 variant, and the folder it was saved in; not to be changed."""
    recipes = [StructuredPruning(keep={"ffn": 0.5, "layers": 3}), Distillation(steps=5)]
    made = compress(
        str(bert_folder),
        recipes,
        data=TEXTS,
        task="embedding",
        variants={"nf4": BitsAndBytesQuantization()},
        base_model="someone/tiny-bert",
        license="mit",
    )
    folder = tmp_path_factory.mktemp("result") / "small"
    return made.save(folder), folder
