import pytest
from transformers import BertModel

from hf_pe.checkpoints.reload import open_in_fresh_process
from hf_pe.checkpoints.save import save_model, weight_bytes_on_disk
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import ReloadError
from hf_pe.files.hashes import value_sha256
from hf_pe.loading import Loading
from hf_pe.measure import reopened
from tests.helpers import bert_config


def test_a_fresh_process_sees_the_same_model(tmp_path, tokenizer):
    model = randomize_weights_(BertModel(bert_config(vocab_size=400_000)))
    save_model(model, tokenizer, tmp_path / "small")
    weights = weight_bytes_on_disk(tmp_path / "small")
    reloaded, loading = reopened(tmp_path / "small", model, "AutoModel", tokenizer)
    assert reloaded.parameters == model.num_parameters()
    assert reloaded.max_difference <= 1e-6
    assert reloaded.hashes == {name: value_sha256(tensor) for name, tensor in model.state_dict().items()}
    assert 0.5 * weights < reloaded.peak_memory_bytes < 1.5 * weights, "mapped weights count once, imports not at all"
    assert loading == Loading(auto_class="AutoModel", processor_class="AutoTokenizer")


def test_other_weights_are_noticed(tmp_path, tokenizer):
    save_model(randomize_weights_(BertModel(bert_config()), seed=1), tokenizer, tmp_path / "small")
    reloaded, _ = reopened(tmp_path / "small", randomize_weights_(BertModel(bert_config())), "AutoModel", tokenizer)
    assert reloaded.max_difference > 1e-2


def test_a_folder_that_does_not_load_says_why(tmp_path):
    (tmp_path / "broken").mkdir()
    model = randomize_weights_(BertModel(bert_config()))
    loading = Loading(auto_class="AutoModel")
    inputs = example_inputs(model)
    with pytest.raises(ReloadError, match=r"does not load in a fresh process[\s\S]*config"):
        open_in_fresh_process(tmp_path / "broken", loading, inputs, outputs_of(model, inputs))
