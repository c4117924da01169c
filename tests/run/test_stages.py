"""Finished stages are used again where they are what this run would make, whole, and loaded as any model."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoModel, BertModel

from hf_pe import BitsAndBytesQuantization, Distillation, StructuredPruning, UsageError
from hf_pe.checkpoints.save import save_model, weight_hashes
from hf_pe.data import load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.progress import listen
from hf_pe.quantize import Cast
from hf_pe.recipe import StageState
from hf_pe.run.identity import stage_ids
from hf_pe.run.stages import StageFolder, require_resumable
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS

CAST = Cast()
QUANTIZE = BitsAndBytesQuantization(refit="none")
ORIGIN = {"another model": "a", "other data": "b"}


@dataclass
class Runs:
    """Runs over one folder; what they said of the last one."""

    folder: object
    model: BertModel
    data: object
    said: list

    def run(self, *recipes, resume=True, origin=ORIGIN):
        self.said.clear()
        chain, _ = stage_ids(origin, recipes, {})
        stages = StageFolder(self.folder, origin, resume, lambda model: {"layers": 4.0}, seed=0)
        state, finished = StageState(self.model, self.data), []
        with listen(lambda what, *_: self.said.append(what)):
            for stage, recipe in zip(chain, recipes, strict=True):
                state, done = stages.make(stage, recipe, state)
                finished.append(done)
        return state.model, finished


@pytest.fixture
def runs(bert_folder, tokenizer, tmp_path):
    model = BertModel.from_pretrained(bert_folder).eval()
    data = replace(Embedding().prepare(load_examples(TEXTS), tokenizer, model.config), teacher=model)
    return Runs(tmp_path, model, data, [])


def test_a_changed_later_stage_keeps_the_earlier_ones_and_what_it_was_before(runs):
    runs.run(CAST, QUANTIZE)
    before = {path.name for path in runs.folder.iterdir()}
    model, _ = runs.run(CAST, BitsAndBytesQuantization(method="fp4", refit="none"))
    assert "stage 1-cast: finished before, loaded" in runs.said
    assert "stage 2-quantize" in runs.said
    assert model.config.quantization_config.bnb_4bit_quant_type == "fp4"
    assert before < {path.name for path in runs.folder.iterdir()}, "the NF4 stage is still there"
    runs.run(CAST, QUANTIZE)
    assert runs.said == ["stage 1-cast: finished before, loaded", "stage 2-quantize: finished before, loaded"]


@pytest.mark.usefixtures("random_criterion")
def test_what_follows_on_a_loaded_stage_is_what_follows_on_a_made_one(runs, tmp_path):
    later = StructuredPruning(keep={"ffn": 0.5}, criterion="random", round_to=1)
    whole, made = runs.run(CAST, later, resume=False)
    for path in tmp_path.glob("2-*/stage.json"):
        path.unlink()
    again, resumed = runs.run(CAST, later)
    assert "stage 1-cast: finished before, loaded" in runs.said
    assert [each.plan for each in resumed] == [each.plan for each in made]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("damage", ["changed", "missing", "cut off"])
def test_a_damaged_stage_is_named_and_made_again(runs, damage):
    whole, _ = runs.run(CAST)
    (stage,) = runs.folder.glob("1-cast-*")
    weights = stage / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content if damage == "changed" else content[:-100])
    if damage == "missing":
        weights.unlink()
    again, _ = runs.run(CAST)
    assert "stage 1-cast: finished before, but damaged (model.safetensors): made again" in runs.said
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    runs.run(CAST)
    assert runs.said == ["stage 1-cast: finished before, loaded"]


def test_what_is_left_of_a_stage_that_was_being_removed_is_in_nobodys_way(runs):
    runs.run(CAST)
    (stage,) = runs.folder.glob("1-cast-*")
    for path in stage.iterdir():
        if path.name != "config.json":
            path.unlink()
    runs.run(CAST)
    assert (stage / "stage.json").is_file()


def test_checkpoints_of_a_training_stay_until_its_stage_is_whole(runs, monkeypatch):
    distil = Distillation(steps=3, batch_size=4, checkpoint_every=2, losses={"cosine": 1.0})
    trained = []

    def full(student, *_):
        trained.append(student)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("hf_pe.run.stages.save_model", full)
        runs.run(distil)
    (training,) = runs.folder.glob("1-distil-*.training")
    assert (training / "checkpoint-3" / "model.safetensors").is_file()
    again, _ = runs.run(distil)
    assert all(torch.equal(a, b) for a, b in zip(trained[0].parameters(), again.parameters(), strict=True))
    assert not training.exists()


def test_a_note_that_cannot_be_read_is_no_finished_stage(runs):
    runs.run(CAST)
    (note,) = runs.folder.glob("*/stage.json")
    note.write_text(note.read_text()[:50])
    runs.run(CAST)
    assert "stage 1-cast" in runs.said


def test_a_quantized_stage_that_was_loaded_and_run_is_saved_unchanged(runs, tmp_path):
    """transformers could not write codes that it has read, and bitsandbytes lays them out anew at the first pass."""
    runs.run(QUANTIZE)
    (stage,) = runs.folder.glob("1-quantize-*")
    model, _ = runs.run(QUANTIZE)
    assert "stage 1-quantize: finished before, loaded" in runs.said
    with torch.no_grad():
        model(**example_inputs(model))
    save_model(model, None, tmp_path / "again")
    written, again = weight_hashes(stage), weight_hashes(tmp_path / "again")
    assert again["model.safetensors"] == written["model.safetensors"]
    assert AutoModel.from_pretrained(tmp_path / "again").config.quantization_config.load_in_4bit


def test_where_no_stage_fits_it_is_said_why(runs):
    runs.run(CAST)
    chain, _ = stage_ids(ORIGIN, [CAST], {})
    require_resumable(runs.folder, chain, ORIGIN)
    require_resumable(runs.folder / "nothing", chain, ORIGIN)

    def refusal(recipe, origin):
        with pytest.raises(UsageError) as caught:
            require_resumable(runs.folder, stage_ids(origin, [recipe], {})[0], origin)
        return str(caught.value)

    assert "made with another recipe. " in refusal(QUANTIZE, ORIGIN)
    assert "made with other data. " in refusal(CAST, ORIGIN | {"other data": "c"})
    both = refusal(CAST, {"another model": "z", "other data": "z"})
    assert "made with another model and other data. " in both
    (note,) = runs.folder.glob("*/stage.json")
    note.write_text(json.dumps({"identity": "of an older version"}))
    assert "made with another version of hf_pe. " in refusal(CAST, ORIGIN)


def test_without_a_folder_of_the_users_nothing_is_hashed_or_kept(runs):

    chain, _ = stage_ids(None, [CAST], {})
    stages = StageFolder(runs.folder, None, False, None, seed=0)
    made, finished = stages.make(chain[0], CAST, StageState(runs.model, runs.data))
    assert chain[0].identity == "" and made.model is not runs.model and finished.plan.recipe == "cast"
    assert not runs.folder.exists() or not list(runs.folder.iterdir())


def test_a_training_that_nobody_can_resume_keeps_no_checkpoints(runs, monkeypatch):
    """Else the message of a run that diverges would name a folder that is gone."""
    works = []
    monkeypatch.setattr(Distillation, "apply", lambda self, state, plan: works.append(state.checkpoints) or state)
    recipe = Distillation(steps=2, checkpoint_every=1)
    for origin in (None, ORIGIN):
        stages = StageFolder(runs.folder, origin, False, lambda model: {"layers": 4.0}, seed=0)
        monkeypatch.setattr(Distillation, "plan", lambda self, state: CAST.plan(state))
        stages.make(stage_ids(origin, [recipe], {})[0][0], recipe, StageState(runs.model, runs.data))
    assert works[0] is None and works[1].name.endswith(".training")
