"""Texts packed into blocks of equal length, as the tokenizer would have them begin and end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hf_pe.errors import UsageError
from hf_pe.tasks.tokens import AddedTokens, added_tokens

NO_LABEL = -100
"""The label of a token that is never predicted."""


@dataclass(frozen=True)
class Stream:
    """Texts one after the other as tokens, without what stands before the first.

    Attributes:
        ids: of all tokens.
        labels: the same ids, `NO_LABEL` for what the tokenizer puts before a text.
        added: what the tokenizer puts around a text.
    """

    ids: list[int]
    labels: list[int]
    added: AddedTokens

    def blocks(self, length: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield ids and labels of each block of `length` tokens, its prefix included; a shorter rest is dropped.

        Raises:
            UsageError: the prefix leaves no room for a token to predict.
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

    Where the tokenizer ends a text with tokens of its own (EOS), every text ends so and the next begins as it begins a
    text. Where it does not, the texts are one text, joined by line breaks.
    """
    added = added_tokens(tokenizer, texts[0])
    plain = {"add_special_tokens": False, "verbose": False}
    if not added.suffix:
        ids = list(tokenizer("\n".join(texts), **plain)["input_ids"])
        return Stream(ids, ids, added)
    stream = Stream([], [], added)
    for content in tokenizer(list(texts), **plain)["input_ids"]:
        told = [*content, *added.suffix]
        between = added.prefix if stream.ids else ()
        stream.ids.extend((*between, *told))
        stream.labels.extend((*[NO_LABEL] * len(between), *told))
    return stream
