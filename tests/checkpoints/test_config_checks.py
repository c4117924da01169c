import json

import pytest
from transformers import BertModel, LlamaConfig, LlamaModel

from hf_pe.checkpoints import config_checks
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.config_checks import require_memory, require_possible_sizes
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.source import resolve
from hf_pe.errors import UsageError
from tests.helpers import bert_config


def broken_config(folder, values):
    """Save the config of a tiny model with other values."""
    (folder / "config.json").write_text(json.dumps(bert_config().to_dict() | values))


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 10**12},
        {"num_hidden_layers": 10**9},
        {"vocab_size": -5},
        {"intermediate_size": 10**30},
    ],
)
def test_sizes_that_no_model_has_are_refused_by_name_before_anything_is_built(values, tmp_path):
    broken_config(tmp_path, values)
    with pytest.raises(UsageError, match=f"config.json has {next(iter(values))}: .*; expected 0 to"):
        load_config(resolve(str(tmp_path)))


def test_sizes_of_parts_are_looked_at_too():
    config = bert_config()
    config.vision_config = {"depths": [2, 10**7]}
    with pytest.raises(UsageError, match=r"has vision_config.depths: 10000000; expected 0 to 10,000"):
        require_possible_sizes(config, "it")


def test_a_model_larger_than_the_machine_is_refused_before_memory_is_asked_for(tmp_path, monkeypatch):
    BertModel(bert_config()).save_pretrained(tmp_path)
    broken_config(tmp_path, {"hidden_size": 4_000_000, "intermediate_size": 200})
    monkeypatch.setattr(BertModel, "from_pretrained", lambda *_, **__: pytest.fail("memory was asked for"))
    with pytest.raises(UsageError, match=r"by its config.json it has [\d,]+ parameters, which take [\d,]+ GB"):
        load_model(resolve(str(tmp_path)), BertModel)


def test_what_fits_passes_in_the_bits_it_is_loaded_in(monkeypatch):
    config = LlamaConfig()  # of 6.6 billion parameters
    monkeypatch.setattr(config_checks, "_all_memory", lambda: 8_000_000_000)
    require_memory(config, LlamaModel, "it", bits=4)
    with pytest.raises(UsageError, match="this machine has 8 GB of memory in all"):
        require_memory(config, LlamaModel, "it")


@pytest.mark.parametrize("values", [{"num_attention_heads": 3}, {"max_position_embeddings": -1}])
def test_values_that_do_not_fit_together_are_a_message(values, tmp_path):
    broken_config(tmp_path, values)
    with pytest.raises(UsageError, match=r"BertModel cannot be built from its config.json"):
        class_for(load_config(resolve(str(tmp_path))))


@pytest.mark.parametrize(
    "values", [{"hidden_size": "many"}, {"hidden_act": None}, {"architectures": 3}, {"architectures": [3]}]
)
def test_values_of_wrong_types_are_a_message(values, tmp_path):
    broken_config(tmp_path, values)
    with pytest.raises(UsageError, match=f"{next(iter(values))}"):
        load_config(resolve(str(tmp_path)))
