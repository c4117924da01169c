"""What runs with an accelerator; see test_accelerator.py. The name of this file keeps it out of the other tests' process."""

import functools

import pytest
import torch
from transformers import AutoModelForCausalLM, BertModel

from hf_pe import (
    BitsAndBytesQuantization,
    Cast,
    Distillation,
    StructuredPruning,
    Teacher,
    compress,
)
from hf_pe.data import load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.measure import measure, on_one_device, reopened
from hf_pe.measure.latency import latency
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS, bert_config

quick = functools.partial(measure, batches=(1,), length=8)


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch):
    monkeypatch.setattr("hf_pe.run.side_by_side.measure", quick)


@pytest.fixture
def language(llama_folder, tokenizer):
    """A language model on the device, and its twin on the CPU, each with its data."""

    def made(device):
        model = AutoModelForCausalLM.from_pretrained(llama_folder).to(device)
        data = CausalLM().prepare(load_examples(TEXTS), tokenizer, model.config)
        return model, data

    return made("fake:0"), made("cpu")


def test_the_device_is_an_accelerator_that_refuses_to_mix():
    assert torch.accelerator.current_accelerator().type == "fake"
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(3, device="fake") + torch.ones(3)


@pytest.mark.parametrize("criterion", ["activation_weight", "taylor", "obs", "obs_kfac"])
def test_a_criterion_keeps_the_units_that_it_keeps_on_a_cpu(criterion, language):
    recipe = StructuredPruning(keep={"ffn": 0.5}, criterion=criterion, round_to=8)
    kept = []
    for model, data in language:
        plan = recipe.plan(StageState(model, data))
        kept.append(plan.kept)
        assert recipe.apply(StageState(model, data), plan).model.device == model.device
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"keep": {"hidden": 32}, "hidden": "rotation"},
        {"keep": {"kv_groups": 1, "layers": 2}, "criterion": "obs"},
        {"keep": {"ffn": 0.5}, "refit": "sequential"},
    ],
    ids=["rotation", "heads and depth", "in order"],
)
def test_pruning_runs_on_the_device_of_the_model(settings, language):
    (model, data), _ = language
    recipe = StructuredPruning(**settings)
    small = recipe.carry_out(StageState(model, data)).model
    assert small.device.type == "fake"
    assert all(bool(torch.isfinite(each).all()) for each in outputs_of(small, example_inputs(small)))


@pytest.mark.parametrize("settings", [{"refit": "gptq"}, {"mean_bits": 6.0, "sensitivity": "estimated"}])
def test_quantization_stays_on_the_device_of_the_model(settings, language):
    for model, data in language:
        recipe = BitsAndBytesQuantization(**settings)
        made = recipe.carry_out(StageState(model, data)).model
        assert {each.device for each in made.parameters()} == {model.device}


def test_results_in_every_precision_are_saved_and_proved_equal(llama_folder, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama_folder).to("fake")
    variants = {"nf4": BitsAndBytesQuantization(), "half": Cast()}
    recipe = StructuredPruning(keep={"ffn": 0.5}, criterion="magnitude_l2", refit="none")
    made = compress(model, [recipe], data=TEXTS, processor=tokenizer, task="causal_lm", variants=variants)
    saved = made.save(tmp_path / "small")
    for each in (saved, *saved.variants.values()):
        assert each.report.reload.max_difference < 1e-4
        assert devices(each) == {"fake"}
    assert model.device.type == "fake"


def test_a_packed_model_on_the_cpu_is_proved_equal_there(llama_folder, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, model.config)
    recipe = BitsAndBytesQuantization(refit="none")
    packed = recipe.carry_out(StageState(model, data)).model
    packed.save_pretrained(tmp_path)
    checked, _ = reopened(tmp_path, packed, "AutoModelForCausalLM", None)
    assert packed.device.type == "cpu" and checked.max_difference < 1e-4


def test_before_and_after_are_measured_on_one_device(llama_folder, tokenizer):
    """A named teacher goes to the accelerator with the student; the original stays where it was."""
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    recipe = Distillation(steps=1, teachers=(Teacher(model=str(llama_folder)),))
    made = compress(model, [recipe], data=TEXTS, processor=tokenizer, task="causal_lm")
    assert made.model.device.type == "fake" and model.device.type == "cpu"
    assert devices(made) == {"fake"}


def devices(result):
    """What the latencies of a report were taken on."""
    return {taken.device for taken in (*result.report.before.latency, *result.report.after.latency)}


def test_a_pass_is_timed_until_the_device_has_done_it():
    model = randomize_weights_(BertModel(bert_config())).to("fake:0")
    before = torch.fake.synchronizations()
    latency({"one": model}, batch=1, length=8, seconds=0.01, most_rounds=2)
    assert torch.fake.synchronizations() - before >= 2 * 3, "before and after each of the warm-up and two rounds"


def test_models_are_held_on_one_device_and_go_back():
    one, other = BertModel(bert_config()).to("fake:0"), BertModel(bert_config())
    with on_one_device([one, other]):
        assert one.device == other.device == torch.device("fake:0")
    assert other.device.type == "cpu"
