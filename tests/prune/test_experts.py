import pytest
import torch
from transformers import AutoConfig, MixtralForCausalLM

from hf_pe.anatomy import discover
from hf_pe.data import load_examples
from hf_pe.errors import UsageError
from hf_pe.plans import Sketch
from hf_pe.proof import difference, example_inputs, lively, outputs_of, tiny
from hf_pe.prune import StructuredPruning
from hf_pe.prune.criteria import reap
from hf_pe.prune.statistics import routed
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS


@pytest.fixture
def work(tokenizer):
    config = tiny(AutoConfig.for_model("mixtral"))
    config.vocab_size, config.num_local_experts = 200, 6
    model = lively(MixtralForCausalLM(config))
    return model, CausalLM().prepare(load_examples(TEXTS), tokenizer, config)


def test_saliency_is_the_mean_of_gate_times_norm_over_an_experts_own_tokens(work):
    model, data = work
    (axis,) = discover(model.config, type(model)).named("experts")
    group = axis.groups[0]
    seen = routed(model, axis, data)[group]
    tokens = sum(batch["input_ids"].numel() for batch in data.batches(data.calibration))
    assert sum(len(gates) for gates, _ in seen) == tokens * model.config.num_experts_per_tok
    gates = torch.cat([g for g, _ in seen])
    assert gates.min() >= 0 and float(gates.sum()) == pytest.approx(tokens, rel=1e-4)
    assert reap(*seen[0]) == pytest.approx(float((seen[0][0] * seen[0][1]).mean()))
    assert reap(torch.zeros(0), torch.zeros(0)) == 0


def test_what_gives_nothing_goes_first(work, tmp_path):
    model, data = work
    for layer, lazy in zip(model.model.layers, (1, 4), strict=True):
        layer.mlp.experts.down_proj.data[lazy] = 0
    recipe = StructuredPruning(keep={"experts": 5})
    plan = recipe.plan(model, data)
    gone = [sorted(set(range(6)) - set(kept))[0] for kept in plan.kept["experts"].values()]
    assert gone == [1, 4]
    small = recipe.apply(model, plan, data)
    assert small.config.num_local_experts == 5
    small.save_pretrained(tmp_path)
    inputs = example_inputs(small)
    again = MixtralForCausalLM.from_pretrained(tmp_path)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0
    assert small.num_parameters() == plan.parameters
    assert plan.references[-1].endswith("2510.13999")


def test_fewer_experts_than_a_token_takes_are_refused(work):
    model, _ = work
    with pytest.raises(UsageError, match=r"does not allow 1; it allows 2, 3, 4, 5, 6"):
        StructuredPruning(keep={"experts": 1}).outline(Sketch(config=model.config, model_class=type(model)))
