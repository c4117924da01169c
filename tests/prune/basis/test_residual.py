import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Dinov2Config, GPT2LMHeadModel, LlamaForCausalLM
from transformers.models.dinov2.modeling_dinov2 import Dinov2LayerScale

from hf_pe.anatomy import discover
from hf_pe.anatomy.norms import norms_along
from hf_pe.data import load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.errors import UsageError
from hf_pe.measure import evaluate_task
from hf_pe.model_spec import ModelSpec
from hf_pe.prune import StructuredPruning
from hf_pe.prune.basis.residual import rotated, untied
from hf_pe.prune.refit.norms import _normalizes, gain_offset, rescale_norms_
from hf_pe.prune.statistics.residual import residual_covariance
from hf_pe.recipe import StageState
from hf_pe.surgery import cut
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS, taught


def made(model_type, tokenizer, **changes):
    config = tiny(AutoConfig.for_model(model_type))
    config.vocab_size = 200
    for key, value in changes.items():
        setattr(config, key, value)
    model = randomize_weights_(AutoModelForCausalLM.from_config(config)).eval()
    return model, CausalLM().prepare(load_examples(TEXTS), tokenizer, config)


def hidden_of(model):
    return discover(model.config, type(model)).named("hidden")[0]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3", "mixtral"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_rotation_changes_nothing_and_sorts_the_stream(model_type, tied, tokenizer):
    model, data = made(model_type, tokenizer, tie_word_embeddings=tied)
    axis = hidden_of(model)
    if model_type == "mixtral":
        with pytest.raises(UsageError, match="not exact"):  # experts are no linear maps that a norm could go into
            rotated(model, axis, data)
        return
    new = rotated(model, axis, data)
    inputs = example_inputs(model)
    assert difference(outputs_of(model, inputs), outputs_of(new, inputs)) < 1e-4
    turned = hidden_of(new)
    spread = residual_covariance(new, norms_along(new, turned), data)
    off = spread - torch.diag(spread.diagonal())
    assert off.abs().max() < 1e-4 * spread.diagonal().max()
    assert (spread.diagonal().diff() <= 1e-9).all()


def test_what_centres_is_not_rotated(tokenizer):
    config = tiny(AutoConfig.for_model("gpt2"))
    config.vocab_size = 200
    model = randomize_weights_(GPT2LMHeadModel(config))
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, config)
    with pytest.raises(UsageError, match="no RMS norm"):
        rotated(model, hidden_of(model), data)


def test_untying_gives_the_head_its_own_weights(llama_folder):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    new = untied(model)
    assert new.lm_head.weight.data_ptr() != new.model.embed_tokens.weight.data_ptr()
    assert torch.equal(new.lm_head.weight, model.lm_head.weight)
    assert model.config.tie_word_embeddings and not new.config.tie_word_embeddings


def test_a_target_cannot_foresee_what_untying_adds(llama_folder):
    config = AutoConfig.from_pretrained(llama_folder)
    recipe = StructuredPruning(budget={"parameters": 0.8}, axes=("ffn", "hidden"), hidden="rotation")
    with pytest.raises(UsageError, match=r"rotation unties.*hidden: selection"):
        recipe.dry_run(ModelSpec(config=config, model_class=LlamaForCausalLM))


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_norms_give_kept_coordinates_at_the_size_they_had(model_type, tokenizer):
    """Also where the weight is the gain less one."""
    model, data = made(model_type, tokenizer)
    axis = hidden_of(model)
    kept = {"model": sorted({*range(0, 32, 2), *range(16)})}
    name, norm = next(iter(norms_along(model, axis).items()))
    assert gain_offset(norm) == (1.0 if model_type == "gemma3_text" else 0.0)
    smaller = cut(model, axis, kept)
    rescale_norms_(smaller, model, axis, kept, data)
    rows = model.get_input_embeddings()(torch.randint(6, 200, (400,)))
    original, rescaled = norm(rows)[:, kept["model"]], smaller.get_submodule(name)(rows[:, kept["model"]])
    assert float((rescaled * original).sum() / (original * original).sum()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("module", "is_one"),
    [
        (torch.nn.LayerNorm(8), True),
        (torch.nn.RMSNorm(8), True),
        (Dinov2LayerScale(Dinov2Config(hidden_size=8)), False),
        (torch.nn.PReLU(8), False),
        (torch.nn.BatchNorm1d(8).eval(), False),
    ],
    ids=lambda each: type(each).__name__,
)
def test_only_what_normalises_is_scaled(module, is_one):
    assert _normalizes(module) == is_one


@pytest.mark.usefixtures("random_criterion")
@pytest.mark.parametrize("hidden", ["selection", "rotation"])
def test_cut_by_recipe_and_loaded_as_stock(hidden, tokenizer, llama_folder, tmp_path):
    config = AutoConfig.from_pretrained(llama_folder)
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, config)
    torch.manual_seed(0)
    model = taught(LlamaForCausalLM(config), data)
    recipe = StructuredPruning(keep={"hidden": 0.75, "ffn": 0.75}, hidden=hidden, refit="sequential")
    outline, after = recipe.dry_run(ModelSpec(config=model.config, model_class=type(model)))
    plan = recipe.plan(StageState(model, data))
    assert [s.axis for s in plan.sizes] == ["ffn", "hidden"]
    small = recipe.apply(StageState(model, data), plan).model
    assert small.config.hidden_size == 48 == after.config.hidden_size
    assert small.num_parameters() == plan.parameters == outline.parameters
    small.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    inputs = example_inputs(small)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0
    careless = StructuredPruning(keep={"hidden": 0.75, "ffn": 0.75}, criterion="random", refit="none")
    rough = careless.carry_out(StageState(model, data)).model
    assert evaluate_task(small, data).scores()["perplexity"] < evaluate_task(rough, data).scores()["perplexity"]
