import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertModel

from hf_pe.checkpoints import class_for, load_config, load_model, resolve
from hf_pe.errors import UsageError
from hf_pe.prune import cut_checkpoint
from hf_pe.shards import INDEX, read_index, require_whole
from tests.helpers import bert_config


@pytest.fixture
def sharded(tmp_path):
    BertModel(bert_config()).save_pretrained(tmp_path, max_shard_size="150KB")
    return tmp_path


def changed(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def cut_off(folder):
    file = next(folder.glob("model-00001*"))
    file.write_bytes(file.read_bytes()[:-1000])


def swapped(index):
    first = sorted(set(index["weight_map"].values()))[0]
    index["weight_map"] |= {"pooler.dense.bias": first, "no.such": first}


DAMAGES = [
    (cut_off, "cannot be read as safetensors"),
    (lambda folder: next(folder.glob("model-00001*")).unlink(), "which is not in the folder"),
    (lambda folder: (folder / INDEX).write_text('{"weight_map": {'), "not valid JSON"),
    (lambda folder: (folder / INDEX).write_text("[]"), "expected an object"),
    (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": 3}}'), "expected weight_map"),
    (lambda folder: changed(folder, lambda index: index.pop("weight_map")), "expected weight_map"),
    (
        lambda folder: changed(folder, lambda index: index["weight_map"].update(a="../x.safetensors")),
        "files beside it|outside of the model's own folder",
    ),
    (
        lambda folder: changed(folder, lambda index: index["weight_map"].update(a="/etc/passwd")),
        "files beside it|outside of the model's own folder",
    ),
    (lambda folder: changed(folder, swapped), "does not hold no.such"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_weights_are_a_message_wherever_they_are_read(damage, message, sharded, tmp_path_factory):
    damage(sharded)
    with pytest.raises(UsageError, match=message):
        require_whole(sharded)
    with pytest.raises(UsageError, match=message):
        source = resolve(str(sharded))
        load_model(source, class_for(load_config(source)))
    with pytest.raises(UsageError, match=message):
        cut_checkpoint(str(sharded), tmp_path_factory.mktemp("out") / "cut", {"ffn": 0.5})


def test_a_folder_that_is_whole_passes(sharded):
    require_whole(sharded)
    assert set(read_index(sharded)) == set(BertModel(bert_config()).state_dict()) - {"embeddings.position_ids"}


def test_one_file_that_is_no_safetensors_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    require_whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        require_whole(tmp_path)
