import itertools
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch.nn.functional import linear
from transformers import (
    AutoModelForCausalLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from hf_pe.checkpoints.save import save_model
from hf_pe.data import DataConfig, load_examples
from hf_pe.distill import Distillation, Lora, training
from hf_pe.distill.losses.registry import LOSSES
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.measure import parameters
from hf_pe.prune import StructuredPruning
from hf_pe.quantize import dequantize_checkpoint
from hf_pe.quantizers.registry import dequantized_weight
from hf_pe.recipe import StageState
from hf_pe.report import Training
from hf_pe.tasks import CausalLM, Embedding, TextClassification
from tests.helpers import TEXTS, bert_config, train_student


@pytest.fixture
def work(bert_folder, tokenizer):
    teacher = BertModel.from_pretrained(bert_folder).eval()
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, teacher.config)
    data = replace(data, teacher=teacher)
    recipe = StructuredPruning(keep={"ffn": 0.25, "layers": 3}, refit="none")
    return recipe.carry_out(StageState(teacher, data)).model, data


def test_training_brings_the_student_nearer_and_leaves_both_inputs_alone(work):
    student, data = work
    weights = {k: v.clone() for k, v in student.state_dict().items()}
    teacher = {k: v.clone() for k, v in data.teacher.state_dict().items()}
    recipe = Distillation(steps=60, learning_rate=3e-3, batch_size=16)
    plan = recipe.plan(StageState(student, data))
    trained, curve = train_student(recipe, student, data)
    assert curve[-1][1] < 0.7 * curve[0][1]
    target, before, after = (Embedding().embed(m, data, data.eval) for m in (data.teacher, student, trained))
    assert (target * after).sum(1).mean() > (target * before).sum(1).mean() + 0.01
    assert "cosine" in plan.title
    assert all(torch.equal(weights[k], v) for k, v in student.state_dict().items())
    assert all(torch.equal(teacher[k], v) for k, v in data.teacher.state_dict().items())
    assert [m.p for m in trained.modules() if isinstance(m, torch.nn.Dropout)] == [
        m.p for m in student.modules() if isinstance(m, torch.nn.Dropout)
    ]


def test_minutes_limit_a_training_and_its_record_says_how_it_went(work, monkeypatch):
    """Each look at this clock takes three seconds."""
    student, data = work
    seconds = itertools.count(0.0, 3.0)
    monkeypatch.setattr("hf_pe.distill.training.clock", lambda: next(seconds))
    recipe = Distillation(minutes=1, batch_size=16, evaluation_share=0)
    after = recipe.carry_out(StageState(student, data))
    assert after.training.steps == len(after.losses) == 20
    assert after.training.seconds == 60
    assert after.training.teacher_share > 0
    assert recipe.plan(StageState(student, data)).title.endswith("1 minute, 16 rows a step)")


def test_the_record_of_a_training_is_a_sentence():
    assert Training(steps=1200, seconds=61.4).sentence == "1,200 optimizer steps in 61 s"
    assert Training(steps=2, seconds=3.0, teacher_share=0.25).sentence.endswith("s, 25% of the time for the teacher")


@pytest.mark.parametrize(("settings", "most"), [({}, 300), ({"minutes": 5}, None), ({"minutes": 5, "steps": 7}, 7)])
def test_steps_default_to_300_unless_minutes_limit_the_training(settings, most):
    assert Distillation(**settings).most_steps == most


def test_the_same_seed_gives_the_same_student(work):
    student, data = work
    recipe = Distillation(steps=5)
    one, other = train_student(recipe, student, data)[0], train_student(recipe, student, data)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_bfloat16_is_for_training_only(work, tmp_path):
    student, data = work
    trained, _ = train_student(Distillation(steps=3, precision="bfloat16"), student, data)
    trained.save_pretrained(tmp_path)
    inputs = example_inputs(trained)
    assert difference(outputs_of(trained, inputs), outputs_of(BertModel.from_pretrained(tmp_path), inputs)) == 0


def test_embedding_tables_stay_where_they_are_told_to(work):
    student, data = work
    trained, _ = train_student(Distillation(steps=3, train_embeddings=False), student, data)
    assert torch.equal(trained.embeddings.word_embeddings.weight, student.embeddings.word_embeddings.weight)
    assert not torch.equal(trained.encoder.layer[0].output.dense.weight, student.encoder.layer[0].output.dense.weight)
    assert all(p.requires_grad for p in trained.parameters())


def test_hidden_states_are_matched_between_different_depths(work):
    student, data = work
    _trained, curve = train_student(Distillation(steps=40, losses={"hidden": 1.0}, learning_rate=3e-3), student, data)
    assert curve[-1][1] < 0.8 * curve[0][1]


@pytest.mark.parametrize("losses", [{}, {"kl": 1.0, "task": 0.5, "hidden": 0.1}])
def test_a_classifier_learns_the_logits(classifier_folder, tokenizer, tmp_path, losses):
    teacher = BertForSequenceClassification.from_pretrained(classifier_folder).eval()
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *(f"{t},{i % 2}" for i, t in enumerate(TEXTS))]))
    examples = load_examples(DataConfig(train=str(tmp_path / "a.csv"), label="label"))
    data = replace(TextClassification().prepare(examples, tokenizer, teacher.config), teacher=teacher)
    student = randomize_weights_(BertForSequenceClassification(teacher.config), seed=9)
    _, curve = train_student(Distillation(steps=60, losses=losses, learning_rate=2e-3, batch_size=16), student, data)
    values = [loss for _, loss in curve]
    assert sum(values[-10:]) < 0.9 * sum(values[:10])


def test_a_causal_model_learns_the_logits(llama_folder, tokenizer):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    examples = load_examples(TEXTS)
    examples = replace(examples, config=DataConfig(train="x", max_length=16))
    data = replace(CausalLM().prepare(examples, tokenizer, teacher.config), teacher=teacher)
    student = randomize_weights_(LlamaForCausalLM(teacher.config), seed=9)
    trained, curve = train_student(
        Distillation(steps=40, losses={"kl": 1.0, "hidden": 0.1}, learning_rate=3e-3), student, data
    )
    assert curve[-1][1] < 0.8 * curve[0][1]
    assert trained.get_output_embeddings().weight is trained.get_input_embeddings().weight


def test_a_training_on_labels_alone_does_not_run_the_teacher(llama_folder, tokenizer):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, teacher.config)
    data = replace(data, teacher=teacher)
    student = randomize_weights_(LlamaForCausalLM(teacher.config), seed=9)
    shares = {}
    for losses in ({"task": 1.0}, {"kl": 1.0}):
        after = Distillation(steps=2, losses=losses).carry_out(StageState(student, data))
        shares.update(dict.fromkeys(losses, after.training.teacher_share))
    assert shares["task"] is None and 0 < shares["kl"] < 1


def test_the_log_carries_each_term(work, monkeypatch):
    student, data = work
    logged = {}

    class Watched(training.LimitedTrainer):
        def log(self, logs, start_time=None):
            super().log(logs, start_time)
            logged.update(self.state.log_history[-1])

    monkeypatch.setattr(training, "LimitedTrainer", Watched)
    train_student(Distillation(steps=2, losses={"cosine": 1.0, "mse": 0.5}), student, data)
    assert {"loss_cosine", "loss_mse"} <= set(logged)


def test_a_loss_the_task_cannot_give_names_those_it_can(work):
    student, data = work
    with pytest.raises(
        UsageError,
        match=r"task 'embedding' has no logits; expected cosine, mse, similarity, hidden, attention, relations",
    ):
        Distillation(losses={"kl": 1.0}).plan(StageState(student, data))


def test_no_teacher_is_refused(work):
    student, data = work
    with pytest.raises(UsageError, match="no teacher"):
        Distillation().plan(StageState(student, replace(data, teacher=None)))


@pytest.mark.parametrize(
    ("losses", "message"), [({"cosin": 1.0}, "Did you mean 'cosine'"), ({"cosine": 0.0}, "must be above 0")]
)
def test_losses_that_are_none(losses, message):
    with pytest.raises(UsageError, match=message):
        Distillation(losses=losses)


def test_every_loss_says_what_it_needs():
    given = {"logits", "embeddings", "hidden_states", "attentions", "features", "loss"}
    assert {loss.needs for loss in LOSSES.values()} <= given


def test_adapters_learn_and_are_merged_into_a_stock_model(work):
    student, data = work
    trained, curve = train_student(
        Distillation(steps=60, learning_rate=1e-2, batch_size=16, lora={"rank": 4}), student, data
    )
    assert curve[-1][1] < 0.8 * curve[0][1]
    assert type(trained) is BertModel
    assert trained.state_dict().keys() == student.state_dict().keys()
    changed = {n for n, p in trained.named_parameters() if not torch.equal(p, student.get_parameter(n))}
    assert changed and all(n.endswith("dense.weight") or "attention" in n for n in changed)
    assert all(not n.startswith("embeddings") for n in changed)
    for name in changed:
        move = (trained.get_parameter(name) - student.get_parameter(name)).float()
        assert torch.linalg.matrix_rank(move, rtol=1e-4) <= 4


def test_adapters_for_maps_that_are_not_there_are_refused(work):
    student, data = work
    with pytest.raises(UsageError, match=r"distil\.lora\.targets: .*no_such"):
        train_student(Distillation(steps=1, lora={"targets": ["no_such"]}), student, data)


def test_signals_of_another_width_are_refused_before_training(work):
    _student, data = work
    narrow = randomize_weights_(BertModel(bert_config(hidden_size=32)))
    with pytest.raises(UsageError, match=r"distil\.losses\.cosine: .*as wide as the teacher's \(64\), got 32"):
        Distillation(steps=1, losses={"cosine": 1.0}).plan(StageState(narrow, data))


@pytest.mark.parametrize("losses", [{"kl": 1.0, "task": 0.5}, {"jsd": 1.0, "hidden": 0.1}, {"reverse_kl": 1.0}])
def test_training_in_chunks_is_training_on_whole_logits(llama_folder, tokenizer, monkeypatch, losses):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    data = replace(CausalLM().prepare(load_examples(TEXTS), tokenizer, teacher.config), teacher=teacher)
    recipe = StructuredPruning(keep={"ffn": 0.5}, refit="none")
    student = recipe.carry_out(StageState(teacher, data)).model
    learn = Distillation(steps=6, losses=losses, learning_rate=1e-3)
    runs = []
    for large in (10**9, 1):
        monkeypatch.setattr("hf_pe.distill.build.LARGE", large)
        whole = []
        hook = teacher.lm_head.register_forward_hook(lambda m, args, out, whole=whole: whole.append(out.shape[1]))
        runs.append((*train_student(learn, student, data), whole))
        hook.remove()
    (plain, one, plain_chunks), (chunked, other, chunks) = runs
    assert [loss for _, loss in other] == pytest.approx([loss for _, loss in one], rel=1e-4)
    for a, b in zip(plain.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)
    assert len(chunks) > len(plain_chunks)


def test_a_narrower_student_learns_hidden_states_through_projections_that_go_away(bert_folder, tokenizer, tmp_path):
    teacher = BertModel.from_pretrained(bert_folder).eval()
    data = replace(Embedding().prepare(load_examples(TEXTS), tokenizer, teacher.config), teacher=teacher)
    torch.manual_seed(0)
    student = BertModel(bert_config(hidden_size=16, num_hidden_layers=2, intermediate_size=32)).eval()
    recipe = Distillation(steps=40, losses={"hidden": 1.0}, layers="similar", learning_rate=3e-3)
    recipe.plan(StageState(student, data))
    trained, curve = train_student(recipe, student, data)
    assert curve[-1][1] < 0.8 * curve[0][1]
    assert trained.state_dict().keys() == student.state_dict().keys()
    trained.save_pretrained(tmp_path)
    inputs = example_inputs(trained)
    assert difference(outputs_of(trained, inputs), outputs_of(BertModel.from_pretrained(tmp_path), inputs)) == 0


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 1, 2, 9), (3, 2, 1, 0), (-1, 0, 1, 2)])
def test_a_layer_map_out_of_range_is_refused_before_training(work, layers):
    student, data = work
    with pytest.raises(UsageError, match=r"expected 4 rising numbers within 0\.\.4 .* got \["):
        Distillation(losses={"hidden": 1.0}, layers=layers).plan(StageState(student, data))
    Distillation(losses={"hidden": 1.0}, layers=(0, 1, 2, 4)).plan(StageState(student, data))


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_adapters_may_start_with_what_packing_took(llama_folder, base):
    plain = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    inputs, gaps = example_inputs(plain), {}
    for rank, start in ((8, "zero"), (8, "residual"), (32, "residual")):
        lora = Lora(base=base, rank=rank, start=start)
        learner = lora.wrapped(lora.base_of(plain), plain).train()
        gaps[rank, start] = difference(outputs_of(plain, inputs), outputs_of(learner, inputs))
    if base == "nf4":  # int8 also rounds what flows in
        assert gaps[32, "residual"] < 0.8 * gaps[8, "residual"] < 0.8 * gaps[8, "zero"]
    weight = plain.model.layers[0].mlp.up_proj.weight.detach()
    module = learner.get_base_model().model.layers[0].mlp.up_proj
    lost = weight - dequantized_weight(module.get_base_layer())
    left = lost - module.get_delta_weight("default").detach()
    values = torch.linalg.svdvals(lost)
    assert float(left.square().sum()) == pytest.approx(float(values[32:].square().sum()), rel=0.02)  # Eckart and Young


def test_a_residual_needs_packed_weights():
    with pytest.raises(ValueError, match="expected base with it"):
        Lora(start="residual")


@pytest.mark.parametrize(("kind", "base"), [("llama", "nf4"), ("llama", "int8"), ("gpt2", "nf4")])
def test_adapters_on_packed_weights_end_in_the_stock_model_that_was_trained(
    llama_folder, tokenizer, kind, base, monkeypatch
):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    if kind == "gpt2":  # its layers are stored the other way round
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
        teacher = randomize_weights_(GPT2LMHeadModel(GPT2Config(vocab_size=200, pad_token_id=0, **sizes))).eval()
    examples = replace(load_examples(TEXTS), config=DataConfig(train="x", max_length=16))
    data = replace(CausalLM().prepare(examples, tokenizer, teacher.config), teacher=teacher)
    student = randomize_weights_(type(teacher)(teacher.config), seed=9).eval()
    before_merge = {}
    merge = Lora.merged

    def watched(self, learner, model):
        before_merge["packed"] = learner.get_base_model().is_quantized
        before_merge["logits"] = outputs_of(learner.train(), example_inputs(model))[0]
        return merge(self, learner, model)

    monkeypatch.setattr(Lora, "merged", watched)
    recipe = Distillation(steps=30, lora={"base": base, "rank": 8}, learning_rate=1e-2, batch_size=8)
    recipe.plan(StageState(student, data))
    trained, curve = train_student(recipe, student, data)
    assert before_merge["packed"] and type(trained) is type(teacher) and not getattr(trained, "is_quantized", False)
    assert trained.state_dict().keys() == student.state_dict().keys()
    assert curve[-1][1] < 0.8 * curve[0][1]
    close = 1e-4 if base == "nf4" else 0.05  # int8 also rounds what flows in
    assert difference([before_merge["logits"]], outputs_of(trained, example_inputs(trained))[:1]) < close


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_adapters_may_stay_beside_packed_weights_in_one_folder(llama_folder, tokenizer, base, tmp_path):
    """Loaded by plain from_pretrained to equal outputs; unpacked, they are merged."""
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    examples = replace(load_examples(TEXTS), config=DataConfig(train="x", max_length=16))
    data = replace(CausalLM().prepare(examples, tokenizer, teacher.config), teacher=teacher)
    student = randomize_weights_(LlamaForCausalLM(teacher.config), seed=9).eval()
    recipe = Distillation(steps=20, lora={"base": base, "rank": 8, "merge": False}, learning_rate=1e-2, batch_size=8)
    plan = recipe.plan(StageState(student, data))
    assert "beside weights quantized to" in plan.title and not plan.exact
    trained, curve = train_student(recipe, student, data)
    assert trained.is_quantized and curve[-1][1] < 0.9 * curve[0][1]
    adapters = sum(p.numel() for n, p in trained.named_parameters() if "lora" in n)
    assert parameters(trained).total == parameters(teacher).total + adapters
    inputs = example_inputs(teacher)
    outputs = outputs_of(trained, inputs)
    save_model(trained, None, tmp_path / "both")
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors"} <= {
        p.name for p in (tmp_path / "both").iterdir()
    }
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "both").eval()
    assert difference(outputs, outputs_of(again, inputs)) == 0
    assert difference(outputs, outputs_of(trained, inputs)) == 0  # saving takes nothing out of it
    bare = outputs_of(AutoModelForCausalLM.from_pretrained(only_base(tmp_path)), inputs)
    assert difference(outputs, bare) > 0.01
    dequantize_checkpoint(str(tmp_path / "both"), tmp_path / "plain", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert plain.state_dict().keys() == student.state_dict().keys()
    for module in trained.modules():
        if isinstance(module, Linear4bit):  # whose CPU kernel rounds to bfloat16
            module.forward = partial(linear, weight=dequantized_weight(module))
    close = 1e-4 if base == "nf4" else 0.2  # int8 also rounds what flows in
    assert difference(outputs_of(trained, inputs), outputs_of(plain, inputs)) < close


def only_base(folder):
    """The packed weights without their adapters."""
    shutil.copytree(folder / "both", folder / "base", ignore=shutil.ignore_patterns("adapter_*"))
    return folder / "base"


def test_adapters_that_stay_need_packed_weights():
    with pytest.raises(ValueError, match="expected base with it"):
        Lora(merge=False)
