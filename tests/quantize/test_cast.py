import pytest
import torch
from transformers import AutoConfig, AutoModel, BertModel

from hf_pe import Cast
from hf_pe.dummies.tiny import tiny
from hf_pe.measure import layer_bits, weight_bytes
from hf_pe.model_spec import ModelSpec
from hf_pe.recipe import StageState


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_plan_says_what_the_cast_weighs_and_the_original_stays(bert_folder, dtype, tmp_path):
    model = BertModel.from_pretrained(bert_folder).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recipe = Cast(dtype=dtype)
    plan, spec = recipe.dry_run(ModelSpec(config=model.config, model_class=BertModel))
    assert plan == recipe.plan(StageState(model, None))
    small = recipe.apply(StageState(model, None), plan).model
    assert {p.dtype for p in small.parameters()} == {getattr(torch, dtype)}
    assert plan.weight_bytes == weight_bytes(small) == weight_bytes(model) / 2
    assert spec.config.dtype == getattr(torch, dtype)
    assert set(layer_bits(small)) == {16.0}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    small.save_pretrained(tmp_path)
    assert BertModel.from_pretrained(tmp_path, dtype="auto").dtype == getattr(torch, dtype)


def test_the_plan_counts_modules_that_stay_in_float32():
    model = AutoModel.from_config(tiny(AutoConfig.for_model("t5")))
    for dtype in ("bfloat16", "float16"):
        recipe = Cast(dtype=dtype)
        plan = recipe.plan(StageState(model, None))
        small = recipe.apply(StageState(model, None), plan).model
        assert plan.weight_bytes == weight_bytes(small)
    assert {p.dtype for p in small.parameters()} == {torch.float16, torch.float32}
