"""Which checkpoints of a stopped training are gone on from."""

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import BertModel

from hf_pe.data import load_examples
from hf_pe.distill import Distillation
from hf_pe.distill.checkpoint import WHOLE, last_whole_checkpoint
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS, bert_config, train_student


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """A whole training with two checkpoints: how to train again, the folder, and the student that came out."""
    teacher = randomize_weights_(BertModel(bert_config(num_hidden_layers=1)))
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, teacher.config)
    folder = tmp_path_factory.mktemp("training")
    recipe = Distillation(steps=6, batch_size=4, checkpoint_every=2, losses={"cosine": 1.0})

    def train(work, *, resume):
        student = randomize_weights_(BertModel(teacher.config), seed=1)
        return train_student(recipe, student, replace(data, teacher=teacher), work=work, resume=resume)

    return train, folder, train(folder, resume=False)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    "damage",
    [
        lambda last: [p.unlink() for p in last.iterdir() if p.name != "model.safetensors"],
        lambda last: [p.unlink() for p in last.iterdir()],
        lambda last: (last / WHOLE).unlink(),
        lambda last: (last / "trainer_state.json").unlink(),
        lambda last: truncate(last / "optimizer.pt"),
        lambda last: truncate(last / WHOLE),
    ],
    ids=["weights alone", "nothing in it", "not finished", "being removed", "cut off", "mark cut off"],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over_for_the_one_before_it(run, tmp_path, damage):
    _, folder, _ = run
    work = shutil.copytree(folder, tmp_path / "work")
    assert last_whole_checkpoint(work) == str(work / "checkpoint-6")
    damage(work / "checkpoint-6")
    assert last_whole_checkpoint(work) == str(work / "checkpoint-4")
    damage(work / "checkpoint-4")
    assert last_whole_checkpoint(work) is None


def test_a_training_that_had_ended_is_not_gone_on_with(run, tmp_path):
    """The Trainer would take one step more."""
    train, folder, (student, curve) = run
    resumed, again = train(shutil.copytree(folder, tmp_path / "work"), resume=True)
    assert again == curve and [step for step, _ in curve] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), resumed.parameters(), strict=True))


def test_a_training_that_was_stopped_while_it_wrote_a_checkpoint_goes_on_to_the_same_student(run, tmp_path):
    train, folder, (student, curve) = run
    work = shutil.copytree(folder, tmp_path / "work")
    for file in (work / "checkpoint-6").iterdir():
        if file.name != "model.safetensors":
            file.unlink()
    truncate(work / "checkpoint-6" / "model.safetensors")
    again, rest = train(work, resume=True)
    assert dict(rest) == pytest.approx(dict(curve))
    for a, b in zip(student.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert last_whole_checkpoint(work) == str(work / "checkpoint-6")


def test_without_a_folder_there_is_no_checkpoint(tmp_path):
    assert last_whole_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("file", ["optimizer.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"])
def test_a_damaged_checkpoint_of_the_right_size_is_a_message_with_the_way_out(run, tmp_path, file):
    train, folder, _ = run
    work = shutil.copytree(folder, tmp_path / "work")
    shutil.rmtree(work / "checkpoint-6")
    damaged = work / "checkpoint-4" / file
    damaged.write_bytes(bytes(len(damaged.read_bytes())))
    assert last_whole_checkpoint(work) == str(work / "checkpoint-4")
    with pytest.raises(UsageError, match=r"checkpoint-4 cannot be read.*Delete that folder.*--resume.*--restart"):
        train(work, resume=True)
