"""Weights of 16 bits learn as a float32 copy and come back in the dtype that each had."""

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import dispatch_model
from transformers import (
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_pe.data import DataConfig, load_examples
from hf_pe.distill import Distillation, DistillationTrainer
from hf_pe.distill.learner import learner_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS, train_student

LABELS = {"id2label": {0: "dot", 1: "bar", 2: "ring"}, "label2id": {"dot": 0, "bar": 1, "ring": 2}}


@pytest.fixture
def language(llama_folder, tokenizer):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    examples = replace(load_examples(TEXTS), config=DataConfig(train="x", max_length=16))
    data = replace(CausalLM().prepare(examples, tokenizer, teacher.config), teacher=teacher)
    return randomize_weights_(LlamaForCausalLM(teacher.config), seed=9).eval(), data


def dtypes(model):
    return {name: t.dtype for name, t in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_checkpoint_of_16_bits_learns_as_a_float32_one_does(language, half):
    student, data = language
    student = student.to(half)
    recipe = Distillation(steps=3, batch_size=8, learning_rate=1e-5)
    trained, _ = train_student(recipe, student, data)
    expected, _ = train_student(recipe, copy.deepcopy(student).float(), data)
    assert trained.dtype == half
    for (name, one), other in zip(trained.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other.to(half)), name
    assert recipe.plan(StageState(student, data)).notes == (
        f"trained as a float32 copy, stored in {str(half)[6:]} again",
    )


def test_steps_smaller_than_the_spacing_of_bfloat16_add_up(language):
    """Each step moves a weight by at most the learning rate, a quarter of the spacing at 0.125."""
    student, data = language
    student = student.to(torch.bfloat16)
    student.model.layers[0].mlp.up_proj.weight.data.fill_(0.125)
    trained, _ = train_student(Distillation(steps=10, batch_size=8, learning_rate=2.5e-4, warmup=0.0), student, data)
    moved = trained.model.layers[0].mlp.up_proj.weight != 0.125
    assert moved.float().mean() > 0.5


def test_each_tensor_keeps_its_own_dtype(language):
    student, data = language
    student = student.to(torch.bfloat16)
    student.model.norm.float()
    student.model.rotary_emb.float()
    before = dtypes(student)
    trained, _ = train_student(Distillation(steps=2, batch_size=8), student, data)
    assert dtypes(trained) == before == dtypes(student)
    assert {torch.float32, torch.bfloat16} == set(before.values())


@pytest.mark.parametrize("how", [{}, {"losses": {"features": 1.0}}, {"head_first": 0.5}, {"precision": "bfloat16"}])
def test_running_statistics_and_heads_of_image_models_come_back_too(images, how):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **LABELS)
    teacher, student = (
        randomize_weights_(ResNetForImageClassification(config), seed=s).bfloat16().eval() for s in (0, 9)
    )
    data = replace(images, teacher=teacher)
    recipe = Distillation(steps=2, batch_size=8, **how)
    recipe.plan(StageState(student, data))
    trained, curve = train_student(recipe, student, data)
    assert dtypes(trained) == dtypes(student)
    assert all(torch.isfinite(torch.tensor(loss)) for _, loss in curve)
    assert not torch.equal(
        trained.resnet.embedder.embedder.normalization.running_mean,
        student.resnet.embedder.embedder.normalization.running_mean,
    )


def test_adapters_learn_in_float32_on_weights_of_16_bits(images):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=32, patch_size=16, **sizes, **LABELS)
    teacher, student = (randomize_weights_(ViTForImageClassification(config), seed=s).bfloat16().eval() for s in (0, 9))
    data = replace(images, teacher=teacher)
    recipe = Distillation(steps=3, batch_size=8, lora={"rank": 4}, learning_rate=1e-2)
    assert recipe.plan(StageState(student, data)).notes == ("adapters trained in float32",)
    learner = learner_of(student, recipe)
    assert {p.dtype for p in learner.parameters() if p.requires_grad} == {torch.float32}
    trained, _ = train_student(recipe, student, data)
    assert dtypes(trained) == dtypes(student)


def test_a_dry_run_says_the_precision(language):
    student, _ = language
    config = copy.deepcopy(student.config)
    config.dtype = torch.bfloat16
    plan, _ = Distillation(precision="bfloat16").dry_run(ModelSpec(config=config, model_class=LlamaForCausalLM))
    said = "trained as a float32 copy, forward passes under bfloat16 autocast, stored in bfloat16 again"
    assert plan.notes == (said,)


def test_layers_on_disk_are_refused(language, tmp_path):
    student, data = language
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    student = dispatch_model(student, {**places, "lm_head": "cpu"}, main_device="cpu", offload_dir=str(tmp_path))
    recipe, state = Distillation(steps=1), StageState(student, data)
    for work in (lambda: recipe.check(state), lambda: recipe.apply(state, recipe.dry_run(state.spec)[0])):
        with pytest.raises(UsageError, match=r"27 parameters \(model\.layers\.0.* were moved to CPU memory or to disk"):
            work()


def test_a_users_trainer_with_weights_of_16_bits_is_warned(language, tmp_path):
    student, data = language
    with pytest.warns(UserWarning, match=r"100% of the trained parameters have 16 bits.* Load the student in float32"):
        DistillationTrainer(
            model=student.bfloat16(),
            args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
            train_dataset=data.train,
            data_collator=data.collate,
            teacher=data.teacher.requires_grad_(False),
            task="causal_lm",
        )
