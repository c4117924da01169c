"""What the user has loaded is what is compressed, whatever is wrapped around it, and comes back as it was."""

import functools

import peft
import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, BertModel

from hf_pe import Distillation, StructuredPruning, compress
from hf_pe.checkpoints.live_model import plain_model, unchanged
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.source import resolve
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.measure import measure
from tests.helpers import TEXTS, bert_config

PRUNE = StructuredPruning(keep={"ffn": 0.5}, criterion="magnitude_l2", refit="none")


def tuned(folder=None):
    """A model with weights of its own that still names the folder it came from."""
    model = randomize_weights_(
        BertModel(bert_config()) if folder is None else BertModel.from_pretrained(folder), seed=7
    )
    return model.train()


@pytest.fixture
def quick(monkeypatch):
    """Nothing is timed or opened again."""
    monkeypatch.setattr("hf_pe.run.side_by_side.measure", functools.partial(measure, batches=()))
    monkeypatch.setattr("hf_pe.run.compress.with_folder_facts", lambda measured, *_: measured)


@pytest.mark.parametrize(
    "wrapped",
    [torch.compile, nn.DataParallel, lambda model: nn.DataParallel(torch.compile(model)), lambda model: model],
    ids=["compiled", "parallel", "both", "plain"],
)
def test_a_wrapped_model_is_the_one_inside(wrapped, bert_folder, tokenizer, quick):
    model = tuned(bert_folder)
    evaluated = []
    made = compress(
        wrapped(model), [PRUNE], data=TEXTS, task="embedding", processor=tokenizer,
        evaluate=lambda net: evaluated.append(net) or {"size": 1.0},
    )  # fmt: skip
    assert torch.equal(made.model.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight)
    assert model in evaluated
    assert model.training and all(module.training for module in model.modules())


def test_a_model_comes_back_as_it_was(bert_folder, tokenizer, quick):
    model = tuned(bert_folder)
    model.encoder.layer[1].eval()
    model.embeddings.requires_grad_(False)
    model.pooler.dense.bias.grad = gradient = torch.ones(64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = Distillation(steps=1)
    compress(model, [PRUNE, recipe], data=TEXTS, task="embedding", processor=tokenizer, evaluate=lambda _: {"a": 1.0})
    assert model.training and model.encoder.layer[0].training and not model.encoder.layer[1].training
    assert not model.embeddings.word_embeddings.weight.requires_grad and model.pooler.dense.weight.requires_grad
    assert model.pooler.dense.bias.grad is gradient
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_comes_back_as_it_was_after_an_error():
    model = tuned()
    model.encoder.layer[0].compile(backend="eager")
    compiled = model.encoder.layer[0]._compiled_call_impl
    with pytest.raises(RuntimeError, match="stopped"), unchanged(model):
        assert model.encoder.layer[0]._compiled_call_impl is None
        model.eval().requires_grad_(False).half().float()
        raise RuntimeError("stopped")
    assert model.training and all(each.requires_grad for each in model.parameters())
    assert model.encoder.layer[0]._compiled_call_impl is compiled is not None


def with_adapters(model):
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))


def with_prompts(model):
    config = peft.PromptTuningConfig(peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=2)
    return peft.get_peft_model(model, config)


def added(model):
    model.add_adapter(peft.LoraConfig(target_modules=["query"]))
    return model


def spread(model):
    model.encoder.layer[3].to("meta")
    return model


def regional(model):
    model.encoder.layer[0] = torch.compile(model.encoder.layer[0])
    return model


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (with_prompts, r"learned prompts \(PROMPT_TUNING\).*get_base_model\(\)"),
        (with_adapters, r"PeftModel.*merge_and_unload\(\)"),
        (lambda model: with_adapters(model).get_base_model(), r"adapters were added.*give DIR"),
        (added, r"adapters were added.*give DIR"),
        (spread, "on one device, got cpu and meta"),
        (regional, "parts of it are compiled"),
        (lambda model: nn.Sequential(model), "expected a PreTrainedModel.*got Sequential"),
        (lambda model: 3, "expected a Hub id.*got int"),
    ],
)
def test_what_is_more_than_a_model_is_refused(wrapped, message, tokenizer):
    with pytest.raises(UsageError, match=message):
        compress(wrapped(tuned()), [PRUNE], data=TEXTS, task="embedding", processor=tokenizer)


def test_an_adapter_that_was_added_is_merged_from_its_folder(classifier_folder, tmp_path):
    model = BertForSequenceClassification.from_pretrained(classifier_folder)
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False)
    model.add_adapter(config)
    model.save_pretrained(tmp_path / "adapter")
    merged = load_model(resolve(str(tmp_path / "adapter")), BertForSequenceClassification)
    inputs = {"input_ids": torch.arange(8)[None]}
    assert difference(outputs_of(model.eval(), inputs), outputs_of(merged, inputs)) < 1e-5


def test_a_plain_model_is_itself():
    model = tuned()
    assert plain_model(model) is model
