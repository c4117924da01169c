import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertModel

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.source import resolve
from hf_pe.errors import UsageError
from hf_pe.files.own_files import require_own_files
from hf_pe.files.shards import INDEX, read_index, require_whole
from hf_pe.prune import cut_checkpoint
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
        "names .*which lies outside of the model's own folder",
    ),
    (
        lambda folder: changed(folder, lambda index: index["weight_map"].update(a="/etc/passwd")),
        "names .*which lies outside of the model's own folder",
    ),
    (lambda folder: changed(folder, swapped), "lacks no.such"),
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


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..\\x", "C:\\x", "a/../../b", ".", "", "a\0b"])
def test_an_index_names_files_of_its_folder_by_one_rule(name, sharded):
    changed(sharded, lambda index: index["weight_map"].update(a=name))
    for read in (read_index, require_own_files):
        with pytest.raises(UsageError, match="which lies outside of the model's own folder"):
            read(sharded)


def test_a_shard_that_is_a_link_elsewhere_is_refused(sharded, tmp_path_factory):
    shard = next(sharded.glob("model-00001*"))
    shard.symlink_to(shard.rename(tmp_path_factory.mktemp("outside") / "x.safetensors"))
    with pytest.raises(UsageError, match="is a link that leads out"):
        read_index(sharded)


def test_a_folder_that_is_whole_passes(sharded):
    require_whole(sharded)
    assert set(read_index(sharded)) == set(BertModel(bert_config()).state_dict()) - {"embeddings.position_ids"}


def test_one_file_that_is_no_safetensors_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    require_whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        require_whole(tmp_path)
