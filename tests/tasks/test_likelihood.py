import math
from types import SimpleNamespace

import pytest

from hf_pe.data import DataConfig
from hf_pe.tasks.likelihood import LOGITS_BYTES, rows_within, unigram_perplexity
from tests.helpers import bert_config


def test_unigram_perplexity_is_by_the_frequencies_of_all_rows():
    known, evaluated = [[5, 5], [5, 7, -100]], [[-100, 5, 7]]
    # 5 stands four times among six tokens, 7 twice
    assert unigram_perplexity(known, evaluated) == pytest.approx(math.exp(-(math.log(4 / 6) + math.log(2 / 6)) / 2))


def test_without_tokens_there_is_nothing_to_be_better_than():
    assert unigram_perplexity([[1, 2]], [[-100]]) == math.inf


def test_equally_frequent_tokens_have_as_much_perplexity_as_there_are_tokens():
    assert unigram_perplexity([list(range(50))], [list(range(50))]) == pytest.approx(50)


@pytest.mark.parametrize(("words", "length", "rows"), [(200, 64, 16), (30_522, 128, 16), (262_144, 512, 1)])
def test_whole_logits_of_the_rows_at_once_fit(words, length, rows):
    data = SimpleNamespace(examples=SimpleNamespace(config=DataConfig(train="x", max_length=length)))
    count = rows_within(data, bert_config(vocab_size=words), 16)
    assert count == rows
    assert count == 1 or 4 * count * length * words <= LOGITS_BYTES
