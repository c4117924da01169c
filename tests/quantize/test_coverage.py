"""How much of a model stays in 16 or 32 bits, and that it is said."""

import pytest
from transformers import AutoConfig, BertModel, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from typer.testing import CliRunner

from hf_pe import BitsAndBytesQuantization, compress, quantize_checkpoint
from hf_pe.cli import app
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import listed
from hf_pe.hub import render_card
from hf_pe.hub.markdown import escape
from hf_pe.measure import parameters
from hf_pe.model_spec import ModelSpec
from hf_pe.progress import listen
from hf_pe.quantize.coverage import unquantized
from hf_pe.recipe import StageState
from hf_pe.report import Measurement
from hf_pe.run.dry_run import dry_run
from tests.helpers import TEXTS, bert_config, saved


@pytest.fixture(scope="module")
def mixture():
    """Of its parameters nearly all are in experts that are held as one tensor."""
    config = MixtralConfig(
        vocab_size=200, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return randomize_weights_(MixtralForCausalLM(config))


def test_the_experts_of_a_mixture_stay_and_plan_card_and_run_say_so(mixture):
    spec = ModelSpec(config=mixture.config, model_class=type(mixture))
    recipe = BitsAndBytesQuantization()
    plan, after = recipe.dry_run(spec)
    small = recipe.apply(StageState(mixture, None), plan).model
    stays = [p for p in small.parameters() if not hasattr(p, "quant_state")]
    coverage = unquantized(after)
    assert coverage.parameters == pytest.approx(sum(p.numel() for p in stays) / parameters(mixture).total)
    assert coverage.bytes == pytest.approx(sum(p.nbytes for p in stays) / plan.weight_bytes)
    assert coverage.bits == 32 and coverage.parameters > 0.8
    assert (
        f"{coverage.parameters:.1%} of the parameters stay in 32 bits and take {coverage.bytes:.1%}" in plan.warnings[0]
    )
    assert "model.layers.*.mlp.experts.gate_up_proj" in plan.warnings[0]
    assert len(plan.warnings) == 1 and not any("of the parameters stay" in note for note in plan.notes)
    whole = dry_run(spec, [recipe], {})
    assert whole.warnings == plan.warnings
    assert dry_run(spec, [], {"nf4": recipe}).warnings == (f"variant nf4: {plan.warnings[0]}",)


def test_a_run_says_it_before_work_and_its_report_keeps_it(mixture, tokenizer, monkeypatch):
    measured = Measurement(parameters=1, parameters_without_embeddings=1, dtype="float32")
    monkeypatch.setattr("hf_pe.run.side_by_side.measure", lambda models, *rest, **more: dict.fromkeys(models, measured))
    monkeypatch.setattr("hf_pe.run.compress.with_folder_facts", lambda measured, *rest: measured)
    recipe, said = BitsAndBytesQuantization(refit="none"), []
    with listen(lambda what, done, total: said.append(what)):
        made = compress(
            mixture, [recipe], data=TEXTS, task="causal_lm", processor=tokenizer, evaluate=lambda model: {"ours": 1.0}
        )
    (warning,) = [each for each in made.report.warnings if "Quantization covers only a part" in each]
    assert said.index(f"Warning: {warning}") < said.index("stage 1-quantize")
    assert f"- {escape(warning)}" in render_card(made.report)


def test_a_model_of_linear_layers_is_no_reason_to_warn(llama_folder):
    config = AutoConfig.from_pretrained(llama_folder)
    plan, after = BitsAndBytesQuantization().dry_run(ModelSpec(config=config, model_class=LlamaForCausalLM))
    assert next(iter(unquantized(after).largest)) == "model.embed_tokens.weight"
    assert unquantized(after).parameters < 0.1 and plan.warnings == () and "of the parameters stay" in plan.notes[-1]


def test_hf_pe_quantize_says_it_before_it_loads(mixture, tokenizer, tmp_path):
    folder, said = saved(tmp_path / "mixture", mixture, tokenizer), []
    with listen(lambda what, done, total: said.append(what)):
        quantize_checkpoint(str(folder), tmp_path / "small")
    warning = next(number for number, what in enumerate(said) if what.startswith("Warning: Quantization covers"))
    assert warning < said.index("loading and quantizing")
    assert "of the parameters stay in 32 bits" in said[warning]


def test_hf_pe_plan_says_it(bert_folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {bert_folder}\ntask: embedding\ndata: {{train: text.txt}}\nrecipes: [{{recipe: quantize}}]\n"
    )
    done = CliRunner().invoke(app, ["plan", str(recipe)])
    assert done.exit_code == 0, done.output
    assert done.output.count("of the parameters stay in 32 bits") == 1


def test_a_vocabulary_larger_than_the_layers_is_a_warning():
    config = bert_config(vocab_size=5000)
    plan, _ = BitsAndBytesQuantization(dtype="bfloat16").dry_run(ModelSpec(config=config, model_class=BertModel))
    assert "stay in 16 bits" in plan.warnings[0] and "embeddings.word_embeddings.weight" in plan.warnings[0]


def test_names_of_all_layers_are_listed_once():
    assert listed(["a.0.up", "a.1.up", "head"], layers_as_one=True) == "a.*.up (2 times), head"
    assert listed(["a.0.up", "a.1.up", "head"]) == "a.0.up, a.1.up, head"
    many = [f"part{letter}.{layer}" for letter in "abcdefghi" for layer in range(3)]
    assert listed(many, layers_as_one=True).endswith("parth.* (3 times) and 1 more")
