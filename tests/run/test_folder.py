"""A folder counts as saved only when what it holds is what was in memory."""

import pytest
import torch
from transformers import BertModel

from hf_pe.checkpoints.save import save_model
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import ReloadError
from hf_pe.run.folder import write_result
from tests.helpers import bert_config
from tests.hub.test_card import measurement, report


def test_a_tensor_that_the_outputs_do_not_show_is_compared_too(tmp_path, monkeypatch):
    model = randomize_weights_(BertModel(bert_config()))
    save = save_model

    def damaged(model, *args):
        other = randomize_weights_(BertModel(bert_config()))
        with torch.no_grad():
            other.embeddings.position_embeddings.weight[-1] += 1  # the inputs are shorter
        save(other, *args)

    monkeypatch.setattr("hf_pe.run.folder.save_model", damaged)
    monkeypatch.setattr("hf_pe.measure.memory.longest", lambda *_: 16)
    stated = report(after=measurement(parameters=model.num_parameters()))
    with pytest.raises(ReloadError, match=r"small reloads with other weights: embeddings\.position_embeddings\.weight"):
        write_result(model, None, tmp_path / "small", "small", stated, "AutoModel")
