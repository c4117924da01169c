import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MixtralForCausalLM

from hf_pe.anatomy import discover
from hf_pe.calibration.experts import Call, expert_inner, expert_moments, routed_tokens
from hf_pe.data import load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.prune import StructuredPruning
from hf_pe.prune.criteria import reap
from hf_pe.prune.refit.experts import refit_experts_
from hf_pe.prune.refit.sequential import sequential_maps
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM, model_inputs
from tests.helpers import TEXTS, assert_same_block_by_block


@pytest.fixture
def work(tokenizer):
    config = tiny(AutoConfig.for_model("mixtral"))
    config.vocab_size, config.num_local_experts = 200, 6
    model = randomize_weights_(MixtralForCausalLM(config))
    return model, CausalLM().prepare(load_examples(TEXTS), tokenizer, config)


def test_saliency_is_the_mean_of_gate_times_norm_over_an_experts_own_tokens(work):
    model, data = work
    (axis,) = discover(model.config, type(model)).named("experts")
    group = axis.groups[0]
    tokens_of = routed_tokens(model, axis, data)[group]
    tokens = sum(batch["input_ids"].numel() for batch in data.batches(data.calibration))
    assert sum(len(gates) for gates, _ in tokens_of) == tokens * model.config.num_experts_per_tok
    gates = torch.cat([g for g, _ in tokens_of])
    assert gates.min() >= 0 and float(gates.sum()) == pytest.approx(tokens, rel=1e-4)
    assert reap(*tokens_of[0]) == pytest.approx(float((tokens_of[0][0] * tokens_of[0][1]).mean()))
    assert reap(torch.zeros(0), torch.zeros(0)) == 0


def test_what_gives_nothing_goes_first(work, tmp_path):
    model, data = work
    for layer, lazy in zip(model.model.layers, (1, 4), strict=True):
        layer.mlp.experts.down_proj.data[lazy] = 0
    recipe = StructuredPruning(keep={"experts": 5})
    plan = recipe.plan(StageState(model, data))
    gone = [sorted(set(range(6)) - set(kept))[0] for kept in plan.kept["experts"].values()]
    assert gone == [1, 4]
    small = recipe.apply(StageState(model, data), plan).model
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
        StructuredPruning(keep={"experts": 1}).dry_run(ModelSpec(config=model.config, model_class=type(model)))


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_what_flows_inside_an_expert_gives_what_the_expert_gives(model_type):
    """Transposed, interleaved and with biases in gpt_oss."""
    model = randomize_weights_(AutoModelForCausalLM.from_config(tiny(AutoConfig.for_model(model_type))))
    experts = model.model.layers[0].mlp.experts
    rows = torch.randn(5, model.config.hidden_size)
    x = expert_inner(experts, 1, rows)
    weight = experts.down_proj[1] if experts.is_transposed else experts.down_proj[1].T
    output = x @ weight + (experts.down_proj_bias[1] if experts.has_bias else 0)
    expert = torch.full((5, 1), 1)
    torch.testing.assert_close(output, experts(rows, expert, torch.ones(5, 1)), rtol=1e-4, atol=1e-5)


def test_inner_width_is_chosen_by_expert_repaired_and_reloads(work, tmp_path):
    model, data = work
    (axis,) = discover(model.config, type(model)).named("expert_ffn")
    assert len(axis.groups) == 12 and axis.size == 24
    models = {}
    for refit in ("none", "least_squares"):
        recipe = StructuredPruning(keep={"expert_ffn": 16}, refit=refit)
        plan = recipe.plan(StageState(model, data))
        models[refit] = recipe.apply(StageState(model, data), plan).model
    chosen = plan.kept["expert_ffn"]
    assert len({tuple(units) for units in chosen.values()}) > 6
    small = models["least_squares"]
    assert small.config.intermediate_size == 16 and small.num_parameters() == plan.parameters
    batch = next(iter(data.batches(data.calibration)))
    original, *outputs = (outputs_of(m, model_inputs(batch))[0] for m in (model, models["none"], small))
    plain, refitted = ((m - original).norm() / original.norm() for m in outputs)
    assert refitted < 0.9 * plain
    small.save_pretrained(tmp_path)
    inputs = example_inputs(small)
    again = MixtralForCausalLM.from_pretrained(tmp_path)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0


def test_where_memory_is_short_experts_go_block_by_block_to_the_same_model(work, monkeypatch):
    model, data = work
    recipe = StructuredPruning(keep={"expert_ffn": 16})
    assert_same_block_by_block(recipe, model, data, monkeypatch)


def test_an_expert_that_no_token_reaches_is_cut_and_not_repaired(work):
    model, data = work
    model.model.layers[0].mlp.gate.weight.data[2] = 0  # logit 0 among random ones: seldom among the first two
    model.model.layers[0].mlp.gate.weight.data[3] = -100 * model.model.layers[0].mlp.gate.weight.data[0].sign()
    (axis,) = discover(model.config, type(model)).named("expert_ffn")
    moments = expert_moments(model, axis, data)
    missing = {s.key for s in axis.slots if s.consumes} - moments.keys()
    recipe = StructuredPruning(keep={"expert_ffn": 8})
    small = recipe.carry_out(StageState(model, data)).model
    for key in missing:
        stack, _, entry = key.removesuffix("]").partition("[")
        kept = recipe.plan(StageState(model, data)).kept["expert_ffn"][f"{stack.rpartition('.')[0]}.{entry}"]
        whole, left = (m.get_parameter(stack)[int(entry)] for m in (model, small))
        assert torch.equal(left, whole[:, kept])


def test_experts_that_are_left_make_up_for_those_that_went(work):
    model, data = work
    (axis,) = discover(model.config, type(model)).named("experts")
    recipe = StructuredPruning(keep={"experts": 3}, refit="none")
    plan = recipe.plan(StageState(model, data))
    plain = recipe.apply(StageState(model, data), plan).model
    corrected = copy.deepcopy(plain)
    done, blocks = refit_experts_(corrected, model, axis, data)
    assert (blocks, done > 0) == (2, True)
    router = [name for name in plain.state_dict() if "mlp.gate" in name]
    assert all(torch.equal(plain.state_dict()[n], corrected.state_dict()[n]) for n in router)
    assert gap(corrected, model, data) < gap(plain, model, data)
    again = recipe.model_copy(update={"refit": "least_squares"}).apply(StageState(model, data), plan).model
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, corrected.state_dict()[name])


def gap(small, model, data):
    """Squared gap of what the first block's experts give, each with the block's own input in `model`."""
    given = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda m, args, out: given.append((args[0], out)))
    for batch in data.batches(data.calibration):
        outputs_of(model, model_inputs(batch))
    handle.remove()
    with torch.no_grad():
        return sum(float((small.model.layers[0].mlp(states) - out).square().sum()) for states, out in given)


def test_a_call_tells_each_expert_its_tokens():
    call = Call(
        torch.zeros(3, 2), torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.tensor([[0.1, 0.9], [0.3, 0.7], [0.5, 0.5]])
    )
    token, gates = call.of(0)
    assert token.tolist() == [0, 2] and gates.tolist() == pytest.approx([0.1, 0.5])
    assert call.of(0, torch.tensor([False, True, True]))[0].tolist() == [2]


def test_what_cannot_work_inside_experts_is_refused_before_any_work(work):
    model, _ = work
    spec = ModelSpec(config=model.config, model_class=type(model))
    with pytest.raises(UsageError, match="taylor needs gradients of each expert"):
        StructuredPruning(keep={"expert_ffn": 16}, criterion="taylor").dry_run(spec)
    with pytest.raises(UsageError, match="sequential refits the output layer of each FFN"):
        StructuredPruning(keep={"expert_ffn": 16}, refit="sequential").dry_run(spec)
    odd = StructuredPruning(keep={"expert_ffn": 10}, round_to=2).dry_run(spec)[0]
    assert odd.sizes[0].after == 16


def test_experts_and_plain_layers_under_one_field_are_told_apart():
    """Jamba has one width for both kinds: criteria with gradients are refused, in order moves the plain ones."""
    config = AutoConfig.for_model("jamba")
    spec = ModelSpec(config=config, model_class=AutoModelForCausalLM._model_mapping[type(config)])
    (axis,) = discover(config, spec.model_class).named("ffn")
    assert axis.in_experts and {slot.entry is None for slot in sequential_maps(axis)} == {True}
    with pytest.raises(UsageError, match="fisher needs gradients of each expert"):
        StructuredPruning(keep={"ffn": 0.5}, criterion="fisher").dry_run(spec)
    StructuredPruning(keep={"ffn": 0.5}, refit="sequential").dry_run(spec)
