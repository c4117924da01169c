import math

import pytest
import torch
from transformers import LlamaForCausalLM

from hf_pe.data import DataConfig, load_examples
from hf_pe.errors import UsageError
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS


@pytest.fixture
def examples(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    return lambda **options: load_examples(DataConfig(train=str(tmp_path / "text.txt"), **options))


def test_perplexity_is_exp_of_the_models_own_loss(llama_folder, tokenizer, examples):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    data = CausalLM().prepare(examples(max_length=16), tokenizer, model.config)
    with torch.no_grad():
        losses = [
            model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss for ids in data.eval["input_ids"]
        ]
    assert CausalLM().judge(model, data).scores()["perplexity"] == pytest.approx(
        math.exp(torch.stack(losses).mean()), rel=1e-4
    )


def test_blocks_are_full_and_in_order(llama_folder, tokenizer, examples):
    data = CausalLM().prepare(examples(max_length=16), tokenizer, None)
    assert {len(ids) for ids in data.train["input_ids"]} == {16}


def test_too_little_text_says_how_much_there_is(tokenizer, examples):
    with pytest.raises(UsageError, match=r"make \d+ tokens, less than one block of data.max_length=5000"):
        CausalLM().prepare(examples(max_length=5000), tokenizer, None)
