"""Norms that run over cut units: scaled back where calibration rows tell how, said where nothing does."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_pe import StructuredPruning, cut_checkpoint
from hf_pe.anatomy import discover
from hf_pe.data import DataConfig, load_examples
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.model_spec import ModelSpec
from hf_pe.progress import listen
from hf_pe.prune.refit.norm_warnings import rescaling_warnings
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS


def model_of(kind):
    config = tiny(AutoConfig.for_model(kind))
    config.vocab_size, config.pad_token_id = 200, 0
    return randomize_weights_(AutoModelForCausalLM.from_config(config)).eval()


@pytest.mark.parametrize(
    ("kind", "axis", "count"),
    [
        ("olmo3", "kv_groups", 4),
        ("minimax", "heads", 1),
        ("bitnet", "ffn", 2),
        ("llama", "ffn", 0),
        ("llama", "hidden", 5),
    ],
)
def test_norms_over_cut_units_are_said(kind, axis, count):
    model = model_of(kind)
    spec = ModelSpec(model.config, type(model))
    (cut_axis,) = discover(model.config, type(model)).named(axis)
    warnings = rescaling_warnings(spec, cut_axis)
    assert len(warnings) == (count > 0)
    assert not count or f"{axis}: {count} of the model's norms run over all units" in warnings[0]


def test_a_plan_without_repair_warns_and_one_with_repair_does_not():
    model = model_of("bitnet")
    spec = ModelSpec(model.config, type(model))
    recipes = [StructuredPruning(keep={"ffn": 0.5}, refit=refit) for refit in ("none", "least_squares")]
    without, refitted = (recipe.dry_run(spec)[0].warnings for recipe in recipes)
    assert "ffn: 2 of the model's norms run over all units (model.layers.0.mlp.ffn_sub_norm, ...)" in without[0]
    assert not refitted


def test_a_cut_on_disk_warns(tmp_path):
    model_of("olmo3").save_pretrained(tmp_path / "model")
    said = []
    with listen(lambda what, *_: said.append(what)):
        cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", {"kv_groups": 0.5})
    assert any(each.startswith("Warning: kv_groups: 4 of the model's norms") for each in said)


def test_the_scale_that_calibration_rows_tell_brings_outputs_nearer(tokenizer, monkeypatch):
    model = model_of("bitnet")
    examples = replace(load_examples(TEXTS), config=DataConfig(train="x", max_length=16))
    data = replace(CausalLM().prepare(examples, tokenizer, model.config), teacher=model)
    recipe, batch = StructuredPruning(keep={"ffn": 0.5}), next(data.batches(data.eval, 16))["input_ids"]
    plan = recipe.plan(StageState(model, data))

    def error():
        with torch.no_grad():
            return float((recipe.apply(StageState(model, data), plan).model(batch).logits - model(batch).logits).norm())

    scaled = error()
    monkeypatch.setattr("hf_pe.prune.execute.rescale_norms_", lambda *_: None)
    assert scaled < 0.95 * error()
