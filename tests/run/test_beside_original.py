"""A run compares its result and its variants with the original on the user's rows and on a general text."""

from dataclasses import replace

import pytest

from hf_pe import BitsAndBytesQuantization, Distillation, StructuredPruning, UsageError, compress
from hf_pe.data import DataConfig
from hf_pe.recipe import StageState
from hf_pe.report import read_report
from hf_pe.run.beside_original import beside_original
from hf_pe.run.original import Original
from tests.helpers import TEXTS, shared

STORIES = [
    f"Once upon a time, there was a little {child} named {name}. {name} loved to play with {thing} in the park."
    for child, name in (("girl", "Lily"), ("boy", "Tim"), ("girl", "Mia"), ("boy", "Tom"))
    for thing in ("a ball", "the dog", "a red car", "her mom", "a big box", "the cat")
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The sentences of the tests, and stories of the kind that stories260K was trained on."""
    folder = tmp_path_factory.mktemp("texts")
    for name, lines in {"own": TEXTS * 3, "stories": STORIES}.items():
        (folder / f"{name}.txt").write_text("\n".join(f"{line} ({n})" for n, line in enumerate(lines)))
    return folder


@pytest.fixture(scope="module")
def result(texts, tmp_path_factory):
    """Of a training on labels alone, at a rate that makes a model forget what it knew."""
    data = DataConfig(train=str(texts / "own.txt"), general=str(texts / "stories.txt"), max_length=32)
    recipes = [
        StructuredPruning(keep={"ffn": 0.9}, round_to=4),
        Distillation(steps=40, losses={"task": 1.0}, learning_rate=3e-3, batch_size=8),
    ]
    folder = tmp_path_factory.mktemp("result") / "small"
    model = str(shared("models/stories260K"))
    return compress(model, recipes, data=data, variants={"nf4": BitsAndBytesQuantization()}).save(folder), folder


@pytest.mark.parametrize("name", ["main", "nf4"])
def test_a_model_that_was_trained_on_other_texts_has_forgotten_its_stories(result, name):
    made, folder = result
    report = made.report if name == "main" else made.variants[name].report
    evaluation, general = report.after.nearness
    assert (evaluation.text, general.text) == ("evaluation", "general")
    assert report.after.quality["perplexity"] < report.before.quality["perplexity"]
    assert report.after.general_quality["perplexity"] > report.before.general_quality["perplexity"]
    assert report.after.forgetting.is_clear and report.after.forgetting.measure == "perplexity"
    for record in report.after.nearness:
        assert record.predictions > record.rows > 1
        assert 0 < record.values["kl"].low < record.values["kl"].value < record.values["kl"].high
        assert 0 <= record.values["agreement"].value < 1
    card = (folder / name / "README.md").read_text("utf-8")
    assert "It has forgotten." in card and "| general text (stories.txt) |" in card
    assert read_report(folder / name) == report


def test_data_facts_name_the_general_text_without_its_folder(result, texts):
    facts = result[0].report.data
    assert (facts.general, facts.general_rows) == (("stories.txt",), len(STORIES))
    assert facts.general_fingerprint not in ("", facts.fingerprint)
    assert result[0].recipe["data"]["general"] == "stories.txt"


def test_what_the_original_does_not_know_is_left_out_and_that_is_stated(llama_folder):
    made = compress(str(llama_folder), [StructuredPruning(keep={"ffn": 0.5})], data=TEXTS)
    assert [record.text for record in made.report.after.nearness] == ["evaluation"]
    assert made.report.after.forgetting is None and not made.report.data.general
    assert any("Forgetting was not measured: on the general text (builtin:pydoc)" in w for w in made.report.warnings)


def test_embeddings_and_a_function_of_the_users(bert_folder):
    recipe, layers = StructuredPruning(keep={"ffn": 0.5}), lambda model: {"layers": 4.0}
    made = compress(str(bert_folder), [recipe], data=TEXTS, task="embedding", evaluate=layers)
    assert [set(record.values) for record in made.report.after.nearness] == [{"cosine"}] * 2
    assert made.report.after.forgetting.measure == "cosine"
    assert made.report.after.general_quality == {} and made.report.data.general == ("builtin:pydoc",)


def test_a_result_with_another_tokenizer_is_not_compared(tokenizer, llama_folder):
    from transformers import LlamaForCausalLM

    from hf_pe.data import load_examples
    from hf_pe.tasks import CausalLM

    model = LlamaForCausalLM.from_pretrained(llama_folder)
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, model.config)
    state = StageState(model, data)
    assert beside_original(Original(state, None, None), state, None)["nearness"]
    other = replace(state, task_data=replace(data, processor=object()))
    assert beside_original(Original(state, None, None), other, None) == {}


def test_a_general_text_that_does_not_exist_is_named_before_the_model_is_loaded(llama_folder, monkeypatch):
    monkeypatch.setattr("hf_pe.run.compress.load_original", lambda *_: pytest.fail("loaded"))
    (llama_folder.parent / "texts.txt").write_text("\n".join(TEXTS))
    data = DataConfig(train=str(llama_folder.parent / "texts.txt"), general="no/such/file.txt")
    with pytest.raises(UsageError, match=r"no/such/file\.txt does not exist"):
        compress(str(llama_folder), [StructuredPruning(keep={"ffn": 0.5})], data=data)
