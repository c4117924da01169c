"""Packs tokenized texts into blocks of equal length that begin and end as the tokenizer makes a text begin and end.

A block starts with the special tokens that the tokenizer puts before a text (BOS), because a model that was trained
with them predicts badly without.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hf_pe.errors import UsageError
from hf_pe.tasks.tokens import AddedTokens, added_tokens

NO_LABEL = -100
"""The label of a token that is never predicted."""


@dataclass(frozen=True)
class Stream:
    """Holds the tokens of all texts in one sequence, without the special tokens before the first text.

    Attributes:
        ids: ids of all tokens.
        labels: the same ids, but `NO_LABEL` for the special tokens before a text.
        added: the special tokens that the tokenizer puts around a text.
    """

    ids: list[int]
    labels: list[int]
    added: AddedTokens

    def blocks(self, length: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield ids and labels of each block of `length` tokens, its prefix included; a shorter rest is dropped.

        Raises:
            UsageError: `length` is too small for the prefix and one token more.
        """
        prefix = list(self.added.prefix)
        if length <= len(prefix):
            raise UsageError(
                f"data.max_length: expected more than the {len(prefix)} tokens that begin each block; got {length}."
            )
        hidden = [NO_LABEL] * len(prefix)
        start = 0
        while True:
            begins_text = not prefix or self.labels[start : start + len(prefix)] == hidden
            end = start + length - (0 if begins_text else len(prefix))
            if end > len(self.ids):
                return
            ids, labels = self.ids[start:end], self.labels[start:end]
            yield (ids, labels) if begins_text else (prefix + ids, hidden + labels)
            start = end


def token_stream(texts: Sequence[str], tokenizer: Any) -> Stream:
    """Tokenize `texts` into one stream.

    If the tokenizer ends texts with special tokens (EOS), they are kept: they separate the texts, together with those
    that begin a text. If it does not, the texts are joined by line breaks.
    """
    added = added_tokens(tokenizer, texts[0])
    plain = {"add_special_tokens": False, "verbose": False}
    if not added.suffix:
        ids = list(tokenizer("\n".join(texts), **plain)["input_ids"])
        return Stream(ids, ids, added)
    stream = Stream([], [], added)
    for content in tokenizer(list(texts), **plain)["input_ids"]:
        text_ids = [*content, *added.suffix]
        prefix = added.prefix if stream.ids else ()
        stream.ids.extend((*prefix, *text_ids))
        stream.labels.extend((*[NO_LABEL] * len(prefix), *text_ids))
    return stream
