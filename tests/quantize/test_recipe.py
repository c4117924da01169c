import pytest
import torch
from transformers import AutoModelForCausalLM, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

from hf_pe.calibration import distance, task_outputs
from hf_pe.checkpoints.save import save_model
from hf_pe.data import load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.measure import parameters, weight_bytes
from hf_pe.model_spec import ModelSpec
from hf_pe.quantize import BitsAndBytesQuantization
from hf_pe.quantize.sensitivity import by_metric, output_change
from hf_pe.quantizers.layers import plain_linear_layers
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM, Embedding
from tests.helpers import TEXTS, bert_config


def quantized(model, **settings):
    recipe = BitsAndBytesQuantization(**settings)
    return recipe.carry_out(StageState(model, None)).model


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_reload_is_equal_to_the_bit_and_near_the_original(method, tmp_path):
    model = randomize_weights_(BertForSequenceClassification(bert_config()))
    small = quantized(model, method=method)
    inputs = example_inputs(model)
    gap = difference(outputs_of(model, inputs), outputs_of(small, inputs))
    assert 1e-6 < gap < 0.6
    small.save_pretrained(tmp_path)
    again = BertForSequenceClassification.from_pretrained(tmp_path)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0
    assert parameters(small).total == parameters(model).total == parameters(again).total


def test_heads_are_kept_and_the_whole_list_is_stored():
    model = randomize_weights_(BertForSequenceClassification(bert_config()))
    small = quantized(model, skip=("pooler.dense",))
    assert type(small.classifier) is torch.nn.Linear
    assert type(small.bert.pooler.dense) is torch.nn.Linear
    assert type(small.bert.encoder.layer[0].output.dense) is not torch.nn.Linear
    stored = small.config.quantization_config
    assert {"classifier", "bert.pooler.dense"} <= set(stored.llm_int8_skip_modules)
    assert stored.bnb_4bit_compute_dtype == torch.float32
    assert stored.bnb_4bit_use_double_quant


def test_tied_embeddings_stay_tied(llama_folder, tmp_path):
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    small = quantized(model)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert small.lm_head.weight.dtype == torch.float32
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    inputs = example_inputs(model)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("settings", "bits"), [({}, 4.127), ({"double_quantization": False}, 4.5), ({"method": "int8"}, 8)]
)
def test_the_dry_run_states_the_bytes_that_come(settings, bits):
    config = bert_config(hidden_size=256, intermediate_size=1024)
    recipe = BitsAndBytesQuantization(**settings)
    assert recipe.bits == pytest.approx(bits, abs=1e-3)
    plan, _ = recipe.dry_run(ModelSpec(config=config, model_class=BertModel))
    small = quantized(randomize_weights_(BertModel(config)), **settings)
    assert plan.weight_bytes == pytest.approx(weight_bytes(small), rel=0.02)
    assert f"25 linear layers in {'int8' if bits == 8 else 'NF4'}" in plan.notes


def test_the_given_model_is_left_alone():
    model = randomize_weights_(BertModel(bert_config()))
    quantized(model)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not hasattr(model.config, "quantization_config")


def test_a_quantized_model_still_does_its_task(bert_folder, tokenizer):
    model = BertModel.from_pretrained(bert_folder).eval()
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    from dataclasses import replace

    data = replace(data, teacher=model)
    assert Embedding().evaluate(quantized(model, method="int8"), data).scores()["spearman"] > 0.9


def test_layers_that_bitsandbytes_cannot_quantize_are_kept_and_listed():
    """Its 4-bit CPU kernel needs input widths in whole blocks of 64."""
    config = bert_config(hidden_size=96, intermediate_size=128)
    plan, _ = BitsAndBytesQuantization().dry_run(ModelSpec(config=config, model_class=BertModel))
    assert "4 linear layers in NF4" in plan.notes
    small = quantized(randomize_weights_(BertModel(config)))
    assert type(small.encoder.layer[0].intermediate.dense) is torch.nn.Linear
    assert type(small.encoder.layer[0].output.dense) is not torch.nn.Linear
    assert all(torch.isfinite(o).all() for o in outputs_of(small, example_inputs(small)))


def test_output_widths_that_the_cpu_kernel_cannot_multiply_are_kept_and_said():
    """It computes 32 outputs at once and stops at others, where the CPU has AVX-512."""
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    plan, _ = BitsAndBytesQuantization().dry_run(ModelSpec(config=config, model_class=LlamaForCausalLM))
    assert "4 linear layers in NF4" in plan.notes
    unfit = next(note for note in plan.notes if "widths" in note)
    for name in ("self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        assert f"model.layers.*.{name} (2 times)" in unfit
    (kept,) = [note for note in plan.notes if note.startswith("not quantized:")]
    assert "self_attn.k_proj" not in kept, "said once, with the reason"
    assert "lm_head" not in unfit and "multiples of 32" in unfit
    small = quantized(randomize_weights_(LlamaForCausalLM(config)))
    assert type(small.model.layers[0].self_attn.k_proj) is torch.nn.Linear
    assert all(torch.isfinite(o).all() for o in outputs_of(small, example_inputs(small)))
    eight, _ = BitsAndBytesQuantization(method="int8").dry_run(ModelSpec(config=config, model_class=LlamaForCausalLM))
    assert "14 linear layers in int8" in eight.notes and "widths" not in "".join(eight.notes)


def test_a_model_without_layers_to_quantize_is_refused():
    with pytest.raises(UsageError, match="no linear layer"):
        BitsAndBytesQuantization().dry_run(
            ModelSpec(config=bert_config(hidden_size=32, intermediate_size=96), model_class=BertModel)
        )


@pytest.fixture
def language(llama_folder, tokenizer):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    return model, CausalLM().prepare(load_examples(TEXTS), tokenizer, model.config)


@pytest.mark.parametrize(
    "budget",
    [
        {"mean_bits": 6.0},
        {"mean_bits": 8.0, "sensitivity": "estimated"},
        {"mean_bits": 6.0, "sensitivity": "metric", "refit": "none"},
        {"mean_bits": 9.0, "method": "int8"},
        {"weight_bytes": 160_000},
    ],
    ids=["bits", "estimated", "by the metric", "int8", "bytes"],
)
def test_a_budget_is_kept_by_layers_that_stay(budget, language, tmp_path):
    model, data = language
    recipe = BitsAndBytesQuantization(**budget)
    spec, _ = recipe.dry_run(ModelSpec(config=model.config, model_class=type(model)))
    plan = recipe.plan(StageState(model, data))
    assert plan.exact and not spec.exact
    assert len(plan.sensitivity) == 21 and len(plan.modules_to_not_convert) > 1
    if "weight_bytes" in budget:
        assert 0.9 * budget["weight_bytes"] < plan.weight_bytes <= budget["weight_bytes"]
    near = plan.weight_bytes == pytest.approx(spec.weight_bytes, rel=0.05)
    below = plan.weight_bytes < spec.weight_bytes
    lost = [value for name, value in plan.sensitivity.items() if name not in plan.modules_to_not_convert]
    assert near or (below and not any(lost))  # what loses nothing is quantized, whatever room is left
    small = recipe.apply(StageState(model, data), plan).model
    assert weight_bytes(small) == pytest.approx(plan.weight_bytes, rel=0.03)
    staying = [n for n in plan.modules_to_not_convert if n != "lm_head"]
    assert all(small.get_submodule(n).weight.dtype == torch.bfloat16 for n in staying)
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    inputs = example_inputs(model)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0


def test_the_kept_layers_are_the_most_sensitive_ones(language):
    """Beside the worst choice of the same size the mix is nearer to the original."""
    model, data = language
    recipe = BitsAndBytesQuantization(mean_bits=6.0, dtype="bfloat16")
    plan = recipe.plan(StageState(model, data))
    expected = task_outputs(model, data, by_token=True)
    count = len(plan.modules_to_not_convert) - 1
    least = sorted(plan.sensitivity, key=lambda name: plan.sensitivity[name])[:count]
    worst = plan.model_copy(update={"modules_to_not_convert": ("lm_head", *least)})
    lost = [
        distance(task_outputs(recipe.apply(StageState(model, data), p).model, data, by_token=True), expected)
        for p in (plan, worst)
    ]
    assert lost[0] < lost[1]


def test_what_is_stored_and_computed_in_is_what_was_asked_for(language):
    model, _ = language
    options = {"method": "fp4", "storage_dtype": "bfloat16", "compute_dtype": "float32", "dtype": "bfloat16"}
    small = quantized(model, **options)
    layer = small.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.bfloat16 and layer.weight.quant_state.quant_type == "fp4"
    assert layer.compute_dtype == torch.float32
    assert small.model.norm.weight.dtype == torch.bfloat16
    assert quantized(model, method="int8", outlier_threshold=3.0).model.layers[0].mlp.up_proj.state.threshold == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean_bits": 4.0}, "expected at least 4.13"),
        ({"mean_bits": 16.0}, "less than 16"),
        ({"mean_bits": 4.3, "double_quantization": False}, "expected at least 4.5"),
        ({"mean_bits": 7.0, "method": "int8"}, "expected at least 8"),
        ({"mean_bits": 6.0, "weight_bytes": 10}, "expected one budget"),
        ({"refit": "gptq", "method": "int8"}, "Leave out refit"),
    ],
)
def test_what_cannot_be_is_said_when_the_recipe_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        BitsAndBytesQuantization(**options)


def test_a_budget_in_bytes_below_the_least_is_refused_from_the_config(language):
    model, _ = language
    with pytest.raises(UsageError, match=r"expected at least [\d,]+ \(all 21 layers"):
        BitsAndBytesQuantization(weight_bytes=1000).dry_run(ModelSpec(config=model.config, model_class=type(model)))


def test_quantization_that_changes_outputs_too_much_is_refused(language):
    model, data = language
    moved = output_change(model, quantized(model), data)
    near = BitsAndBytesQuantization(max_kl=moved * 1.01, refit="none")
    near.carry_out(StageState(model, data))
    far = BitsAndBytesQuantization(max_kl=moved * 0.5, refit="none")
    with pytest.raises(UsageError, match=r"changes the outputs by .* Refit the weights \(refit: gptq\)"):
        far.carry_out(StageState(model, data))
    refitted = BitsAndBytesQuantization(max_kl=moved * 0.9)
    plan = refitted.plan(StageState(model, data))
    assert plan.title.endswith("refitted by GPTQ")
    refitted.apply(StageState(model, data), plan)


def test_without_calibration_rows_weights_are_rounded(language):
    model, _ = language
    recipe = BitsAndBytesQuantization()
    plan = recipe.plan(StageState(model, None))
    assert "refitted" not in plan.title
    inputs = example_inputs(model)
    assert (
        difference(
            outputs_of(recipe.apply(StageState(model, None), plan).model, inputs), outputs_of(quantized(model), inputs)
        )
        == 0
    )


def test_the_metric_says_what_a_layer_is_worth(language):
    """Perplexity, where lower is better: as many layers matter, and none by less than nothing."""
    model, data = language
    names, inputs = plain_linear_layers(model, ["lm_head"]), example_inputs(model)
    before = outputs_of(model, inputs)
    lost = by_metric(model, quantized(model), names, data)
    assert lost.keys() == {*names} and min(lost.values()) >= 0 < max(lost.values())
    assert difference(before, outputs_of(model, inputs)) == 0


@pytest.mark.parametrize("options", [{"mean_bits": 6.0}, {"refit": "gptq"}, {"max_kl": 0.1}])
def test_without_calibration_rows_it_is_refused(options, language):
    model, _ = language
    with pytest.raises(UsageError, match="calibration rows"):
        BitsAndBytesQuantization(**options).plan(StageState(model, None))


@pytest.mark.parametrize("method", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_a_model_that_has_run_is_saved_as_it_was(method, double, language, tmp_path):
    """bitsandbytes lays weights out anew for a CPU's kernel when they are run, and single scales come back disordered."""
    model, _ = language
    small = quantized(model, method=method, double_quantization=double)
    inputs = example_inputs(model)
    size, before = weight_bytes(small), outputs_of(small, inputs)
    for _ in range(2):
        assert weight_bytes(small) == size
        save_model(small, None, tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        for each in (small, again):
            assert difference(before, outputs_of(each, inputs)) == 0
