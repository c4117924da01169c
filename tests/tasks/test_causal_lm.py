import copy
import itertools
import math

import pytest
import torch
from tokenizers import processors
from transformers import LlamaForCausalLM

from hf_pe.data import DataConfig, load_examples
from hf_pe.errors import UsageError
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS


@pytest.fixture
def examples(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    return lambda **options: load_examples(DataConfig(train=str(tmp_path / "text.txt"), **options))


@pytest.fixture
def adding(tokenizer):
    """The tests' tokenizer with another rule of what is put around a text."""

    def change(single: str | None):
        changed = copy.deepcopy(tokenizer)
        special = [("[CLS]", 2), ("[SEP]", 3)]
        changed.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single or "$A", pair=f"{single or '$A'} $B", special_tokens=special
        )
        return changed

    return change


def test_perplexity_is_exp_of_the_models_own_loss(llama_folder, tokenizer, examples):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    data = CausalLM().prepare(examples(max_length=16), tokenizer, model.config)
    with torch.no_grad():
        losses = [
            model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
            for row in data.eval
        ]
    counts = torch.tensor([sum(label != -100 for label in row["labels"][1:]) for row in data.eval])
    assert CausalLM().evaluate(model, data).scores()["perplexity"] == pytest.approx(
        math.exp((torch.stack(losses) * counts).sum() / counts.sum()), rel=1e-4
    )


def test_blocks_are_full_and_in_order(llama_folder, tokenizer, examples):
    data = CausalLM().prepare(examples(max_length=16), tokenizer, None)
    assert {len(ids) for ids in data.train["input_ids"]} == {16}


def test_too_little_text_says_how_much_there_is(tokenizer, examples):
    with pytest.raises(UsageError, match=r"make \d+ tokens, less than one block of data.max_length=5000"):
        CausalLM().prepare(examples(max_length=5000), tokenizer, None)


def test_a_tokenizer_that_adds_nothing_gives_the_joined_texts_cut_into_blocks(adding, examples):
    tokenizer, given = adding(None), examples(max_length=16)
    ids = tokenizer("\n".join(given.train["text"]))["input_ids"]
    blocks = [ids[i : i + 16] for i in range(0, len(ids) - 15, 16)]
    data = CausalLM().prepare(given, tokenizer, None)
    assert data.train["input_ids"][:] == data.train["labels"][:] == blocks
    assert CausalLM().describe(data) == "`perplexity` is over held-out blocks of 16 tokens; lower is better."


def test_every_block_begins_with_the_bos_and_loses_no_token(adding, examples):
    tokenizer, given = adding("[CLS] $A"), examples(max_length=16)
    data = CausalLM().prepare(given, tokenizer, None)
    for rows, texts in ((data.train, given.train["text"]), (data.eval, given.eval["text"])):
        content = tokenizer("\n".join(texts), add_special_tokens=False)["input_ids"]
        assert all(len(ids) == 16 and ids[0] == tokenizer.cls_token_id for ids in rows["input_ids"])
        behind = list(itertools.chain(*(ids[1:] for ids in rows["input_ids"])))
        assert behind == content[: len(behind)] and len(content) - len(behind) < 15
        assert all(row["labels"] == [-100, *row["input_ids"][1:]] for row in rows)
    assert "16 tokens, each beginning with the tokenizer's `[CLS]`" in CausalLM().describe(data)


def test_the_first_token_is_predicted_from_the_bos(llama_folder, adding, examples):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    data = CausalLM().prepare(examples(max_length=16), adding("[CLS] $A"), model.config)
    loss = torch.zeros(())
    with torch.no_grad():
        for ids in torch.tensor(data.eval["input_ids"][:]):
            predictions = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            loss -= predictions.gather(1, ids[1:, None]).sum()
    expected = math.exp(loss / (15 * len(data.eval)))
    assert CausalLM().evaluate(model, data).scores()["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_every_text_ends_and_the_next_begins_where_the_tokenizer_has_it_so(adding, examples):
    tokenizer, given = adding("[CLS] $A [SEP]"), examples(max_length=16)
    data = CausalLM().prepare(given, tokenizer, None)
    whole = tokenizer(given.train["text"][:], add_special_tokens=True)["input_ids"]
    text = list(itertools.chain(*whole))
    bos, eos = tokenizer.cls_token_id, tokenizer.sep_token_id
    place = 0
    for row in data.train:
        ids, labels = row["input_ids"], row["labels"]
        assert len(ids) == 16 and ids[0] == bos and ids[1] != bos
        begins_text = text[place] == bos
        assert ids[0 if begins_text else 1 :] == text[place : place + (16 if begins_text else 15)]
        place += 16 if begins_text else 15
        assert labels == [-100 if token == bos else token for token in ids]
    assert len(text) - place < 16 and eos in data.train["labels"][0]
    assert "every text ends with `[SEP]`" in CausalLM().describe(data)


def test_losses_see_the_same_tokens_chunked_or_not(llama_folder, adding, examples):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    data = CausalLM().prepare(examples(max_length=16), adding("[CLS] $A [SEP]"), model.config)
    batch = data.collate([data.train[i] for i in range(8)])
    mask, targets = CausalLM().predicted(batch)
    with torch.no_grad():
        signals = CausalLM().signals(model, batch)
    assert torch.equal(mask[:, :-1], signals["mask"]) and not mask[:, -1].any()
    assert 2 not in targets and 3 in targets


def test_a_length_without_room_behind_the_prefix_is_refused(adding, examples):
    with pytest.raises(UsageError, match="expected more than the 2 tokens that begin each block; got 2"):
        CausalLM().prepare(examples(max_length=2), adding("[CLS] [CLS] $A"), None)
