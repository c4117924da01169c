"""Chunked equals plain: in value and in every gradient, for each kind of head."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from hf_pe.distill.chunked import chunked
from hf_pe.distill.logit_source import ChunkedLogits
from hf_pe.distill.losses.registry import LOSSES, LossSettings
from hf_pe.distill.objective import Objective
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.tasks import CausalLM, Head, states

WEIGHTS = {"kl": 0.7, "reverse_kl": 0.2, "jsd": 0.5, "task": 0.3}
KINDS = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "bias": ("phi", {}),
    "factor": ("cohere", {"logit_scale": 0.25}),
    "divided": ("granite", {"logits_scaling": 4.0}),
    "soft cap": ("gemma2", {"final_logit_softcapping": 3.0}),
    "adapters": ("llama", {"tie_word_embeddings": False}),
}


def ready(kind, seed):
    model_type, changes = KINDS[kind]
    config = tiny(AutoConfig.for_model(model_type, **changes))
    config.update(changes)
    model = randomize_weights_(AutoModelForCausalLM.from_config(config), seed)
    if kind == "adapters":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        torch.manual_seed(seed)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    return model.eval()


def batch_of(model):
    ids = torch.randint(6, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :4] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("tokens", [1, 5, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_whole_logits(kind, tokens):
    student, teacher = ready(kind, 0), ready(kind, 1)
    batch = batch_of(student)
    labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    mask = labels != -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    here, there = (m(**inputs).logits[mask].float() for m in (student, teacher))
    compared = labels[mask], LossSettings(2.0)
    plain = [LOSSES[name].by_position(here, there.detach(), *compared).sum() for name in WEIGHTS]
    expected = sum(weight * term for weight, term in zip(WEIGHTS.values(), plain, strict=True))
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()

    def terms(one, other, place):
        compared = labels[mask][place], LossSettings(2.0)
        return torch.stack([LOSSES[name].by_position(one, other, *compared).sum() for name in WEIGHTS])

    heads = [Head.of(m, inputs) for m in (student, teacher)]
    assert all(heads)
    with torch.no_grad():
        known = states(teacher, inputs)[-1][mask]
    mine = states(student, inputs)[-1][mask]
    sources = ChunkedLogits(mine, heads[0]), ChunkedLogits(known, heads[1])
    loss, values = chunked(terms, list(WEIGHTS.values()), *sources, tokens)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, torch.stack(plain).detach(), rtol=1e-5, atol=1e-5)
    after = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert after.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max().clamp_min(1e-3)
        assert (after[name] - gradient).abs().max() <= 1e-5 * scale, name


def test_a_factor_and_a_cap_are_found():
    for kind, scale, cap in (
        ("untied", 1.0, None),
        ("factor", 0.25, None),
        ("divided", 0.25, None),
        ("soft cap", 1.0, 3.0),
    ):
        model = ready(kind, 0)
        head = Head.of(model, {"input_ids": batch_of(model)["input_ids"]})
        assert head.scale == pytest.approx(scale, rel=1e-4)
        assert head.softcap == cap


def test_a_head_that_does_something_else_is_not_taken():
    model = ready("untied", 0)
    inputs = {"input_ids": batch_of(model)["input_ids"]}
    handle = model.register_forward_hook(lambda m, args, out: out.__setitem__("logits", out.logits.relu()) or out)
    assert Head.of(model, inputs) is None
    handle.remove()
    assert Head.of(model, inputs) is not None


def test_without_gradients_only_the_value_is_made():
    model = ready("untied", 0)
    inputs = {"input_ids": batch_of(model)["input_ids"]}
    head = Head.of(model, inputs)
    with torch.no_grad():
        hidden = states(model, inputs)[-1].flatten(0, 1)
        loss, _ = chunked(
            lambda s, t, _: LOSSES["kl"].by_position(s, t + 1, None, LossSettings()).sum()[None],
            [1.0],
            ChunkedLogits(hidden, head),
            ChunkedLogits(hidden, head),
        )
    assert not loss.requires_grad and loss.abs() < 1e-3


def test_labels_alone_count_once_beside_several_teachers():
    student, teachers = ready("tied", 0), [LiveTeacher(ready("tied", seed)) for seed in (1, 2)]
    batch = batch_of(student)
    objective = Objective(CausalLM(), {"task": 1.0}, teachers, head=Head.of(student, batch))
    expected = replace(objective, teachers=teachers[:1], head=None)(student, batch)
    torch.testing.assert_close(objective(student, batch).loss, expected.loss)
