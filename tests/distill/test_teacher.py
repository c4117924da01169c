"""Who may teach: the original, another model, one with an adapter, a packed one; who may not, and why."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import (
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from hf_pe.data import DataConfig, load_examples
from hf_pe.distill import Distillation, Teacher
from hf_pe.distill.teaching import loaded_teachers
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM, TextClassification
from tests.helpers import TEXTS, bert_config, needs_package, saved, train_student


@pytest.fixture
def language(llama_folder, tokenizer):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    examples = replace(load_examples(TEXTS), config=DataConfig(train="x", max_length=16))
    return replace(CausalLM().prepare(examples, tokenizer, teacher.config), teacher=teacher)


def test_a_named_teacher_is_the_model_it_names(language, llama_folder):
    data = replace(language, teacher=None)
    loaded = Teacher(model=str(llama_folder)).load(data)
    inputs = example_inputs(loaded)
    assert difference(outputs_of(loaded, inputs), outputs_of(language.teacher, inputs)) == 0
    assert not any(p.requires_grad for p in loaded.parameters())
    student = randomize_weights_(LlamaForCausalLM(loaded.config), seed=9)
    recipe = Distillation(steps=20, teachers=({"model": str(llama_folder)},), learning_rate=3e-3)
    state = StageState(student, data)
    plan = recipe.plan(state)
    assert len(state.statistics) == 1, "training need not load the teacher again"
    assert llama_folder.name in plan.title and str(llama_folder.parent) not in plan.title
    assert str(llama_folder.parent) not in recipe.model_dump_json()
    curve = recipe.apply(state, plan).losses
    assert curve[-1][1] < curve[0][1]
    assert not len(state.statistics), "the teacher is not kept after training"


def test_a_teacher_with_an_adapter(language, llama_folder, tmp_path):
    torch.manual_seed(0)
    tuned = get_peft_model(
        LlamaForCausalLM.from_pretrained(llama_folder),
        LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False),
    ).eval()
    tuned.save_pretrained(tmp_path)
    loaded = Teacher(model=str(llama_folder), adapter=str(tmp_path)).load(language)
    inputs = example_inputs(loaded)
    assert difference(outputs_of(loaded, inputs), outputs_of(tuned, inputs)) < 1e-5
    assert difference(outputs_of(loaded, inputs), outputs_of(language.teacher, inputs)) > 1e-3
    with pytest.raises(UsageError, match=r"distil\.teachers\.adapter: .* does not fit"):
        Teacher(model=str(llama_folder), adapter=str(tmp_path / "nowhere")).load(language)


def test_a_packed_teacher_with_widths_that_the_cpu_kernel_cannot_multiply_teaches(language, tokenizer, tmp_path):
    """It computes 32 outputs at once and stops at others, where the CPU has AVX-512."""
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=80, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    folder = saved(tmp_path / "teacher", randomize_weights_(LlamaForCausalLM(config)), tokenizer)
    loaded = Teacher(model=str(folder), quantize="nf4").load(language)
    layer = loaded.model.layers[0]
    assert loaded.is_quantized and hasattr(layer.self_attn.q_proj.weight, "quant_state")
    assert type(layer.self_attn.k_proj) is torch.nn.Linear
    assert all(torch.isfinite(each).all() for each in outputs_of(loaded, example_inputs(loaded)))


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_a_packed_teacher_teaches(language, llama_folder, method):
    loaded = Teacher(model=str(llama_folder), quantize=method).load(language)
    assert loaded.is_quantized
    student = randomize_weights_(LlamaForCausalLM(language.teacher.config), seed=9)
    recipe = Distillation(
        steps=20, teachers=({"model": str(llama_folder), "quantize": method},), learning_rate=3e-3, batch_size=8
    )
    _, curve = train_student(recipe, student, language)
    assert curve[-1][1] < curve[0][1]


@pytest.mark.parametrize("large", [1, 10**9])
def test_several_teachers_teach_in_one_run(language, llama_folder, large, monkeypatch):
    monkeypatch.setattr("hf_pe.distill.build.LARGE", large)
    student = randomize_weights_(LlamaForCausalLM(language.teacher.config), seed=9)
    alone, curves = Distillation(steps=3, batch_size=8), []
    for teachers in ((), ({}, {"model": str(llama_folder), "weight": 2.0})):  # the same model twice is one teacher
        recipe = Distillation.model_validate(alone.model_dump() | {"teachers": teachers})
        recipe.plan(StageState(student, language))
        curves.append([loss for _, loss in train_student(recipe, student, language)[1]])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_another_tokenizer_is_refused(language, tmp_path):
    other = Tokenizer(models.WordLevel({"[UNK]": 0, "dog": 1, "the": 2}, unk_token="[UNK]"))
    folder = saved(
        tmp_path / "other", language.teacher, PreTrainedTokenizerFast(tokenizer_object=other, unk_token="[UNK]")
    )
    with pytest.raises(
        UsageError, match=r"another tokenizer than the student \(\d+ tokens have other ids, such as .*\)"
    ):
        Distillation(teachers=({"model": str(folder)},)).plan(StageState(language.teacher, language))


def test_a_vocabulary_with_rows_that_pad_it_is_aligned(language, tokenizer, tmp_path):
    big = randomize_weights_(LlamaForCausalLM(copy.deepcopy(language.teacher.config)), seed=4)
    big.resize_token_embeddings(256)
    folder = saved(tmp_path / "wide", big, tokenizer)
    recipe = Distillation(steps=3, teachers=({"model": str(folder)},))
    recipe.plan(StageState(language.teacher, language))
    trained, _ = train_student(recipe, language.teacher, language)
    assert trained.config.vocab_size == 200


@pytest.mark.parametrize(
    "labels", [{0: "positive", 1: "negative"}, {0: "negative", 1: "neutral", 2: "positive"}], ids=["order", "number"]
)
def test_other_labels_are_refused(classifier_folder, tokenizer, tmp_path, labels):
    student = BertForSequenceClassification.from_pretrained(classifier_folder).eval()
    labelled = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    folder = saved(
        tmp_path / "other", randomize_weights_(BertForSequenceClassification(bert_config(**labelled))), tokenizer
    )
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *(f"{t},{i % 2}" for i, t in enumerate(TEXTS))]))
    examples = load_examples(DataConfig(train=str(tmp_path / "a.csv"), label="label"))
    data = replace(TextClassification().prepare(examples, tokenizer, student.config), teacher=student)
    with pytest.raises(UsageError, match=r"has the labels .*, the student negative, positive"):
        Distillation(teachers=({"model": str(folder)},)).plan(StageState(student, data))


def test_a_teacher_of_another_head_is_refused(language, bert_folder):
    with pytest.raises(UsageError, match=r"no weights for|has no AutoModelForCausalLM"):
        Distillation(teachers=({"model": str(bert_folder)},)).plan(StageState(language.teacher, language))


def test_packing_the_original_needs_its_name(language):
    with pytest.raises(UsageError, match="name it: give `model`"):
        Teacher(quantize="nf4").load(language)


def test_the_original_may_learn_again_afterwards(language):
    before = [p.requires_grad for p in language.teacher.parameters()]
    student = randomize_weights_(LlamaForCausalLM(language.teacher.config), seed=9)
    with loaded_teachers(Distillation(), StageState(student, language)):
        assert not any(p.requires_grad for p in language.teacher.parameters())
    assert [p.requires_grad for p in language.teacher.parameters()] == before and all(before)


def test_trls_trainer_learns_as_the_stock_one(language, tokenizer, tmp_path):
    needs_package("trl")
    import datasets
    from trl import SFTConfig, SFTTrainer

    from hf_pe.distill import DistillationMixin, DistillationTrainer
    from tests.distill.test_trainer import arguments

    class Distilled(DistillationMixin, SFTTrainer):
        pass

    rows = datasets.Dataset.from_dict({"input_ids": language.train["input_ids"], "labels": language.train["input_ids"]})
    distillation = {
        "teacher": language.teacher.requires_grad_(False),
        "task": "causal_lm",
        "losses": {"kl": 1.0, "task": 0.5},
    }
    curves = []
    for kind, settings in ((Distilled, SFTConfig), (DistillationTrainer, None)):
        student = randomize_weights_(LlamaForCausalLM(language.teacher.config), seed=9)
        plain = arguments(tmp_path).to_dict()
        args = arguments(tmp_path) if settings is None else SFTConfig(
            str(tmp_path), **{k: plain[k] for k in ("max_steps", "per_device_train_batch_size", "logging_steps",
            "learning_rate", "save_strategy", "use_cpu", "seed")}, report_to="none", bf16=False,
            gradient_checkpointing=False, max_length=None,
        )  # fmt: skip
        more = {"processing_class": tokenizer} if settings else {"data_collator": language.collate}
        trainer = kind(model=student, args=args, train_dataset=rows, **more, **distillation)
        trainer.train()
        curves.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_teacher_in_another_precision_reads_images(images):
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
                       patch_size=8, num_labels=3)  # fmt: skip
    student, teacher = ViTForImageClassification(config), ViTForImageClassification(config).to(torch.bfloat16)
    data = replace(images, teacher=teacher)
    losses = {"kl": 1.0, "features": 1.0}
    trained, curve = train_student(Distillation(losses=losses, steps=4, batch_size=16), student, data)
    assert trained.dtype == torch.float32 and all(loss == loss for loss in curve)
