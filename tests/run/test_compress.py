import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import hf_pe
from hf_pe import (
    BackboneSwap,
    BitsAndBytesQuantization,
    Distillation,
    StructuredPruning,
    UsageError,
    compress,
    cut_checkpoint,
    progress,
)
from hf_pe.checkpoints.source import Source, resolve
from hf_pe.data import DataConfig
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.hub import Publish, prepare
from hf_pe.quantize import dequantize_checkpoint, quantize_checkpoint
from hf_pe.recipe import StageState
from hf_pe.recipe_file import read_recipe
from hf_pe.report import Measurement
from hf_pe.run import compress as pipeline
from hf_pe.run import side_by_side
from hf_pe.run.inputs import local_inputs
from hf_pe.run.order import check_order, fitted
from hf_pe.tasks import TextClassification
from hf_pe.tasks.infer import find_task
from tests.helpers import TEXTS, bert_config, shared

PRUNE = StructuredPruning(keep={"ffn": 0.5, "layers": 3})
DISTIL = Distillation(steps=5)
NOWHERE = Source(name="some", path="")
QUANTIZE = BitsAndBytesQuantization()


@pytest.fixture(scope="module")
def result(bert_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result") / "small"
    made = compress(str(bert_folder), [PRUNE, DISTIL], data=TEXTS, task="embedding", variants={"nf4": QUANTIZE})
    return made.save(folder), folder


def test_every_folder_loads_with_stock_classes_and_is_what_was_reported(result, monkeypatch):
    made, folder = result
    monkeypatch.chdir(folder.parent)
    for name, each in {"main": made, "nf4": made.variants["nf4"]}.items():
        assert f'from_pretrained("{folder.name}/{name}")' in (folder / name / "README.md").read_text("utf-8")
        model = AutoModel.from_pretrained(f"{folder.name}/{name}").eval()
        inputs = example_inputs(model)
        assert difference(outputs_of(each.model, inputs), outputs_of(model, inputs)) == 0
        assert each.report.reload.status == "native"
        assert each.report.reload.parameters == each.report.after.parameters
    assert made.model.config.num_hidden_layers == 3
    assert made.model.config.intermediate_size == 64
    assert made.report.after.parameters == made.model.num_parameters()


def test_the_papers_lie_beside_the_model(result):
    _made, folder = result
    names = {p.name for p in (folder / "main").iterdir()}
    assert {
        "README.md",
        "report.json",
        "plan.json",
        "recipe.yaml",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    } <= names
    for file in ("report.json", "plan.json"):
        assert json.loads((folder / "main" / file).read_text())["format_version"] == 1
    assert yaml.safe_load((folder / "main" / "recipe.yaml").read_text())["format_version"] == 1
    assert [s["recipe"] for s in json.loads((folder / "nf4" / "plan.json").read_text())["stages"]] == [
        "prune",
        "distil",
        "quantize",
    ]


def test_nothing_written_names_this_machine(result):
    _, folder = result
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".md", ".yaml"):
            text = file.read_text("utf-8")
            assert str(folder.parent) not in text, file
            assert str(Path.home()) not in text, file


def test_before_and_after_are_both_measured(result):
    report = result[0].report
    for measured in (report.before, report.after):
        assert measured.flops > 0
        assert measured.disk_bytes > 0
        assert measured.peak_memory_bytes > 0
        assert {t.batch for t in measured.latency} == {1, 32}
        assert set(measured.quality) == {"spearman"}
    assert report.after.flops < report.before.flops
    assert report.before.quality["spearman"] == pytest.approx(1)


def test_the_original_is_not_touched(bert_folder, tokenizer):
    model = BertModel.from_pretrained(bert_folder).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = compress(
        model,
        [PRUNE],
        data=TEXTS,
        task="embedding",
        processor=tokenizer,
        evaluate=lambda m: {"layers": len(m.encoder.layer)},
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert made.report.before.quality == {"layers": 4.0}
    assert made.report.after.quality == {"layers": 3.0}
    assert made.report.metric == "layers"


def test_a_broken_card_of_the_original_is_no_card_and_is_read_before_work(bert_folder, tmp_path, monkeypatch):
    measured = Measurement(parameters=1, parameters_without_embeddings=1, dtype="float32")
    monkeypatch.setattr("hf_pe.run.side_by_side.measure", lambda models, *rest, **more: dict.fromkeys(models, measured))
    monkeypatch.setattr("hf_pe.run.compress.with_folder_facts", lambda measured, *rest: measured)
    original = shutil.copytree(bert_folder, tmp_path / "original")
    (original / "README.md").write_bytes("---\nlanguage: fr\n---\n# modèle\n".encode("latin-1"))

    def layers(model):
        (original / "README.md").write_text("---\nlicense: mit\n---\n")
        return {"layers": len(model.encoder.layer)}

    recipe, said = BitsAndBytesQuantization(refit="none"), []
    with progress.listen(lambda what, done, total: said.append(what)):
        made = compress(str(original), [recipe], data=TEXTS, task="embedding", evaluate=layers)
    (warning,) = [each for each in made.report.warnings if "card of the original" in each]
    assert "it is not in UTF-8. Licence, languages" in warning
    assert made.report.base.license is None and made.report.base.language == ()
    assert said.index(f"Warning: {warning}") < said.index("stage 1-quantize")


def test_a_result_is_not_saved_over_what_was_read_or_is_in_use(result, bert_folder, tmp_path, monkeypatch):
    made, folder = result
    with pytest.raises(UsageError, match="is the model's own folder"):
        made.save(bert_folder, overwrite=True)
    with pytest.raises(UsageError, match="not empty"):
        made.save(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not written by hf-pe"):
        made.save(tmp_path / "mine", overwrite=True)
    (tmp_path / ".out.hf_pe.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 0}))
    with pytest.raises(UsageError, match="in use by process 1 on elsewhere"):
        made.save(tmp_path / "out")
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(UsageError, match=r"the result takes about .* MB, and that disk has 0\.0 MB free"):
        made.save(tmp_path / "small")
    with pytest.raises(UsageError, match=r"what the stages write takes about .* free"):
        compress(str(bert_folder), [PRUNE], data=TEXTS, task="embedding", work=tmp_path / "work")
    assert not (tmp_path / "small").exists() and not (tmp_path / "work").exists()


def test_a_classifier_from_a_file_that_is_no_better_than_chance(classifier_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TextClassification, "chance", lambda *_: 1.0)
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *(f"{t},{i % 2}" for i, t in enumerate(TEXTS))]))
    data = DataConfig(train=str(tmp_path / "a.csv"), label="label")
    said = []
    with progress.listen(lambda what, done, total: said.append(what)):
        made = compress(str(classifier_folder), [PRUNE, DISTIL, QUANTIZE], data=data).save(tmp_path / "small")
    (warning,) = [each for each in made.report.warnings if "no better than guessing" in each]
    assert said.index(f"Warning: {warning}") < said.index("stage 1-prune"), "before any work"
    assert warning in (tmp_path / "small" / "README.md").read_text("utf-8")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert made.report.task == "text_classification"
    assert model.config.intermediate_size == 64


def test_a_run_that_was_stopped_goes_on_after_the_last_finished_stage(bert_folder, tmp_path, monkeypatch):
    steps = [PRUNE, DISTIL]
    call = {"data": TEXTS, "task": "embedding", "work": tmp_path / "work"}

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "apply", stop)
        with pytest.raises(KeyboardInterrupt):
            compress(str(bert_folder), steps, **call)
    assert len(list((tmp_path / "work").glob("1-prune-*/stage.json"))) == 1
    other = shutil.copytree(bert_folder, tmp_path / "other")
    BertModel(BertModel.from_pretrained(bert_folder).config).save_pretrained(other)
    with monkeypatch.context() as patch:
        patch.setattr("hf_pe.checkpoints.load._require_loadable", lambda *_, **__: pytest.fail("weights were loaded"))
        with pytest.raises(UsageError, match=r"none of this run: they were made with another model \(its weights"):
            compress(str(other), steps, resume=True, **call)
        with pytest.raises(UsageError, match=r"made with another recipe\. Undo the change"):
            compress(str(bert_folder), [StructuredPruning(keep={"ffn": 0.25}), DISTIL], resume=True, **call)

    pruned = []
    monkeypatch.setattr("hf_pe.prune.execute.cut", lambda *a: pruned.append(a))
    made = compress(str(bert_folder), steps, resume=True, **call)
    assert not pruned
    assert [s.plan.recipe for s in made.report.stages] == ["prune", "distil"]


def test_what_a_distillation_cannot_do_is_said_before_anything_is_cut(bert_folder, tmp_path):
    steps = [StructuredPruning(keep={"ffn": 0.5}), Distillation(steps=1, losses={"kl": 1.0})]
    with pytest.raises(UsageError, match=r"distil\.losses\.kl: task 'embedding' has no logits"):
        compress(str(bert_folder), steps, data=TEXTS, task="embedding", work=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_distillation_goes_on_in_the_middle(bert_folder, tmp_path, monkeypatch):
    steps = [Distillation(steps=6, batch_size=8, checkpoint_every=2)]
    call = {"data": TEXTS, "task": "embedding", "work": tmp_path}
    from hf_pe.distill import training as module

    recorded_steps = []

    class Stopping(module.Progress):
        def on_step_end(self, args, state, control, **rest):
            recorded_steps.append(state.global_step)
            if len(recorded_steps) == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "Progress", Stopping)
    with pytest.raises(KeyboardInterrupt):
        compress(str(bert_folder), steps, **call)
    compress(str(bert_folder), steps, resume=True, **call)
    assert recorded_steps == [1, 2, 3, 4, 5, 5, 6]
    (stage,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert stage.name.startswith("1-distil-") and (stage / "stage.json").is_file()


def test_a_swapped_backbone_is_another_class_from_then_on(classifier_folder, tmp_path):
    rows = "\n".join(["text,label", *(f"{text},{number % 2}" for number, text in enumerate(TEXTS))])
    (tmp_path / "a.csv").write_text(rows)
    data = DataConfig(train=str(tmp_path / "a.csv"), label="label")
    small = {"dim": 64, "n_heads": 2, "n_layers": 1, "hidden_dim": 64}
    steps = [
        BackboneSwap(to="distilbert", config=small),
        Distillation(steps=2, batch_size=4, losses={"features": 1.0, "kl": 1.0}),
        BitsAndBytesQuantization(),
    ]
    call = {"data": data, "task": "text_classification", "work": tmp_path / "work"}
    made = compress(str(classifier_folder), steps, **call).save(tmp_path / "small")
    assert made.report.after.parameters < made.report.before.parameters
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert type(again).__name__ == "DistilBertForSequenceClassification"
    resumed = compress(str(classifier_folder), steps, resume=True, **call)
    assert [type(m) for m in (resumed.model, made.model)] == [type(again)] * 2


def test_half_precision_variants_of_a_llama_are_saved_after_a_resume(tmp_path, monkeypatch):
    """Both load the weights that were finished, and nothing that a forward pass on this machine made of them."""
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    changes = [f"model={shared('models/stories260K')}", f"data.train={tmp_path / 'text.txt'}"]
    recipe = read_recipe(shared("cases/recipes/half_precision_llama.yaml"), changes)
    call = {"data": recipe.data, "task": recipe.task, "variants": recipe.variants, "work": tmp_path / "work"}
    call["evaluate"] = lambda model: {"parameters": model.num_parameters()}

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(side_by_side, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            compress(recipe.source(), recipe.recipes, **call)
    monkeypatch.setattr(side_by_side, "measure", partial(side_by_side.measure, batches=(1,)))
    monkeypatch.setattr(pipeline, "with_folder_facts", lambda measured, *_: measured)
    monkeypatch.setattr(BitsAndBytesQuantization, "apply", lambda *_: pytest.fail("quantized again"))
    made = compress(recipe.source(), recipe.recipes, resume=True, **call).save(tmp_path / "small")
    half, quantized = made.variants["half"].report, made.variants["nf4"].report
    assert half.after.dtype == "bfloat16"
    assert quantized.reload.max_difference == half.reload.max_difference == 0


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([], "at least one"),
        (
            [QUANTIZE, PRUNE],
            r"Recipe 1 \(quantize\) comes before recipe 2 \(prune\): a quantized model cannot be cut. Put prune first",
        ),
        (
            [PRUNE, QUANTIZE, DISTIL],
            r"Recipe 2 \(quantize\) comes before recipe 3 \(distil\): quantized weights cannot be trained",
        ),
        ([QUANTIZE, QUANTIZE], "both quantize"),
        (
            [Distillation(lora={"base": "nf4", "merge": False}), QUANTIZE],
            r"Recipe 1 \(distil\) leaves its adapters on quantized weights .* recipe 2 \(quantize\) comes after it",
        ),
    ],
)
def test_orders_that_cannot_work(recipes, message):
    with pytest.raises(UsageError, match=message):
        check_order(recipes)


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "", ".hidden", "-x", "Main", "BEFORE", "a..b", "half.", "a.lock", "a\n"]
)
def test_names_of_variants_that_cannot_be_folders_are_refused(bert_folder, name):
    with pytest.raises(UsageError, match="variants: '"):
        compress(str(bert_folder), [PRUNE], data=TEXTS, task="embedding", variants={name: QUANTIZE})


def test_names_of_variants_differ_by_more_than_case():
    check_order([PRUNE], ["nf4", "half-1.5_b", "4bit"])
    with pytest.raises(UsageError, match="'NF4' is the name of the variant 'nf4' already"):
        check_order([PRUNE], ["nf4", "NF4"])


def test_variants_of_a_quantized_result_are_refused(bert_folder):
    with pytest.raises(UsageError, match=r"variants \(small\) are copies .* recipe 2 \(quantize\) lowers its"):
        compress(str(bert_folder), [PRUNE, QUANTIZE], data=TEXTS, task="embedding", variants={"small": QUANTIZE})


def test_a_quantized_model_is_refused(bert_folder, tokenizer, tmp_path):
    model = BertModel.from_pretrained(bert_folder)
    QUANTIZE.carry_out(StageState(model, None)).model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for step in (PRUNE, DISTIL, QUANTIZE):
        with pytest.raises(UsageError, match=r"quantized already \(bitsandbytes\).*Give its 16- or 32-bit original"):
            compress(str(tmp_path), [step], data=TEXTS, task="embedding")


def test_widths_are_rounded_for_what_follows():
    assert fitted([PRUNE])[0].round_to == 8
    assert fitted([PRUNE, DISTIL, QUANTIZE])[0].round_to == 64
    assert fitted([PRUNE], [QUANTIZE])[0].round_to == 64
    given = StructuredPruning(keep={"ffn": 0.5}, round_to=3)
    assert fitted([given, QUANTIZE])[0].round_to == 3


def test_nothing_heavy_starts_before_all_is_checked(bert_folder, monkeypatch):
    monkeypatch.setattr("hf_pe.checkpoints.load._require_loadable", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match="expected 1 to 4"):
        compress(str(bert_folder), [StructuredPruning(keep={"layers": 99})], data=TEXTS, task="embedding")
    with pytest.raises(UsageError, match="does not exist"):
        compress(str(bert_folder), [PRUNE], data="no/such/file.csv", task="embedding")
    with pytest.raises(UsageError, match="expected one of embedding"):
        compress(str(bert_folder), [PRUNE], data=TEXTS, task="tagging")


def test_the_task_is_inferred_from_the_model(bert_folder):
    with pytest.raises(UsageError, match="cannot be inferred from BertModel"):
        compress(str(bert_folder), [PRUNE], data=TEXTS)


def test_a_loaded_model_needs_its_tokenizer(bert_folder):
    with pytest.raises(UsageError, match="processor"):
        compress(BertModel.from_pretrained(bert_folder), [PRUNE], data=TEXTS, task="embedding")


class Reached(Exception):  # noqa: N818  a signal, not an error
    """Carries what `prepare` was given."""


def test_a_processor_may_lie_elsewhere(bert_folder, tokenizer, tmp_path, monkeypatch):
    def prepared(task, examples, processor, config):
        raise Reached(processor)

    monkeypatch.setattr(pipeline, "prepare", prepared)
    model, words = tmp_path / "model", tmp_path / "words"
    BertModel.from_pretrained(bert_folder).save_pretrained(model)
    tokenizer.save_pretrained(words)
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    content = {
        "model": str(model),
        "processor": str(words),
        "task": "embedding",
        "data": {"train": str(tmp_path / "text.txt")},
    }
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(content | {"recipes": [{"recipe": "prune", "keep": {"ffn": 0.5}}]})
    )
    recipe = read_recipe(tmp_path / "recipe.yaml")
    settings = {"data": recipe.data, "task": recipe.task}
    with pytest.raises(Reached) as reached:
        compress(recipe.source(), recipe.recipes, processor=recipe.processor, **settings)
    assert reached.value.args[0].get_vocab() == tokenizer.get_vocab()
    with pytest.raises(UsageError, match="has no tokenizer or processor"):
        compress(recipe.source(), recipe.recipes, **settings)
    with pytest.raises(UsageError, match=r"processor: the folder .* does not exist"):
        compress(recipe.source(), recipe.recipes, processor=str(tmp_path / "none"), **settings)
    assert local_inputs(recipe.source(), recipe.recipes, recipe.data, recipe.processor)["the processor words"] == words


def test_the_version_is_printed():
    assert hf_pe.__version__


@pytest.fixture
def novel_folder(tokenizer, tmp_path):
    """A model of a type that transformers does not know, with its code."""
    folder = tmp_path / "novel"
    shutil.copytree(Path(__file__).parents[1] / "novel", folder, ignore=shutil.ignore_patterns("__pycache__"))
    places = {"AutoConfig": "configuration_novel.NovelConfig", "AutoModel": "modeling_novel.NovelModel"}
    content = {"model_type": "novel", "architectures": ["NovelModel"], "auto_map": places, "vocab_size": 200}
    (folder / "config.json").write_text(json.dumps(content), "utf-8")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = randomize_weights_(AutoModel.from_config(config, trust_remote_code=True))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_with_code_of_its_own_is_cut_and_its_code_comes_along(novel_folder, tmp_path):
    with pytest.raises(UsageError, match="needs its own code"):
        compress(str(novel_folder), [PRUNE], data=TEXTS, task="embedding")
    source = resolve(str(novel_folder), trust_remote_code=True)
    source_keys = AutoModel.from_pretrained(novel_folder, trust_remote_code=True).state_dict().keys()
    recipes = [StructuredPruning(keep={"ffn": 0.5, "layers": 2}), DISTIL]
    made = compress(source, recipes, data=TEXTS, task="embedding", variants={"nf4": QUANTIZE}).save(tmp_path / "small")
    cut_checkpoint(str(novel_folder), tmp_path / "cut", {"hidden": 16}, trust_remote_code=True)
    quantize_checkpoint(str(novel_folder), tmp_path / "quantized", trust_remote_code=True)
    dequantize_checkpoint(str(tmp_path / "quantized"), tmp_path / "plain", trust_remote_code=True)
    shutil.rmtree(novel_folder)
    quantized, plain = (AutoModel.from_pretrained(tmp_path / n, trust_remote_code=True) for n in ("quantized", "plain"))
    assert quantized.is_quantized and plain.state_dict().keys() == source_keys
    on_disk = AutoModel.from_pretrained(tmp_path / "cut", trust_remote_code=True)
    assert on_disk.config.hidden_size == on_disk.embed.embedding_dim == 16
    for name, each in {"main": made, "nf4": made.variants["nf4"]}.items():
        folder = tmp_path / "small" / name
        assert {"configuration_novel.py", "modeling_novel.py"} <= {path.name for path in folder.iterdir()}
        model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 64)
        inputs = example_inputs(model)
        assert difference(outputs_of(each.model, inputs), outputs_of(model, inputs)) == 0
        assert each.report.loading_lines.count("trust_remote_code=True") == 2
        with pytest.raises(UsageError, match=r"comes with custom code.*--trust-remote-code"):
            prepare(folder, Publish(repo="someone/novel"))
        prepare(folder, Publish(repo="someone/novel", trust_remote_code=True))


@pytest.mark.parametrize(
    ("kind", "named", "message"),
    [
        (
            "whisper",
            "WhisperForConditionalGeneration",
            r"does not turn a text into a text.*hf-pe cut, hf-pe quantize and",
        ),
        ("llava", "LlavaForConditionalGeneration", r"models that read sound or images.*are not supported yet"),
        ("gemma3", "Gemma3ForConditionalGeneration", r"For its text model alone: task: causal_lm"),
        (
            "wav2vec2",
            "Wav2Vec2ForCTC",
            r"cannot be inferred from Wav2Vec2ForCTC.*hf-pe cut, hf-pe quantize and hf-pe export",
        ),
    ],
)
def test_what_no_task_does_is_refused_with_what_works(kind, named, message):
    config = AutoConfig.for_model(kind, architectures=[named])
    with pytest.raises(UsageError, match=message):
        find_task(None, NOWHERE, config)


def test_a_rerankers_score_is_refused_before_data_are_read(bert_folder):
    config = bert_config(num_labels=1, architectures=["BertForSequenceClassification"])
    for task in (None, "text_classification"):
        with pytest.raises(UsageError, match=r"a reranker's score.*hf-pe cut, hf-pe quantize and hf-pe export work"):
            find_task(task, NOWHERE, config)
    model = BertForSequenceClassification(config)
    with pytest.raises(UsageError, match="a reranker's score"):
        compress(model, [PRUNE], data="does/not/exist.csv", processor=object())


@pytest.mark.parametrize(
    ("kind", "named"), [("t5", "T5ForConditionalGeneration"), ("bart", "BartForConditionalGeneration")]
)
def test_text_to_text_models_are_known(kind, named):
    assert find_task(None, NOWHERE, AutoConfig.for_model(kind, architectures=[named])).name == "seq2seq"


def test_what_no_task_does_is_quantized_and_cut_nonetheless(tmp_path):
    sizes = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8, "vocab_size": 60}
    ids = {"pad_token_id": 3, "bos_token_id": 3, "eos_token_id": 3, "decoder_start_token_id": 4}
    config = WhisperConfig(**sizes, **heads, **ids, max_source_positions=16, max_target_positions=32)
    randomize_weights_(WhisperForConditionalGeneration(config)).save_pretrained(tmp_path / "whisper")
    quantize_checkpoint(str(tmp_path / "whisper"), tmp_path / "nf4")
    cut_checkpoint(str(tmp_path / "whisper"), tmp_path / "cut", {"ffn": 0.5})
    for name in ("nf4", "cut"):
        assert json.loads((tmp_path / name / "config.json").read_text())["architectures"] == [
            "WhisperForConditionalGeneration"
        ]
