"""Determines the special tokens that a tokenizer adds to a text, and the fraction of a text that it does not know."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_pe.errors import UsageError

MOST_UNKNOWN = 0.1
"""Fraction of unknown tokens above which there is a warning."""
SAMPLE = 1000
"""Most training rows, and most evaluation rows, in which unknown tokens are counted."""


@dataclass(frozen=True)
class AddedTokens:
    """Holds the ids that a tokenizer puts around a text when it adds special tokens; both are empty for GPT-2.

    Attributes:
        prefix: ids before the text, such as the BOS of Llama and Gemma.
        suffix: ids behind the text, such as the EOS of T5.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()


def added_tokens(tokenizer: Any, text: str) -> AddedTokens:
    """Return the tokens that `tokenizer` adds to a text, by tokenizing `text` with and without special tokens.

    Raises:
        UsageError: the tokenizer splits the text itself differently when it adds special tokens.
    """
    content = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    with_special = list(tokenizer(text, verbose=False)["input_ids"])
    for start in range(len(with_special) - len(content) + 1):
        end = start + len(content)
        if with_special[start:end] == content:
            return AddedTokens(tuple(with_special[:start]), tuple(with_special[end:]))
    raise UsageError(
        f"{type(tokenizer).__name__} splits a text into other tokens when it adds special tokens: expected the same "
        "tokens with a prefix and a suffix. Load the tokenizer that the model was trained with."
    )


def require_offsets(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not return the offsets of its tokens in the text.

    Raises:
        UsageError: it is a slow tokenizer.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} returns no offsets of its tokens, which labels of words and answers need. "
            "Expected a fast tokenizer: a tokenizer.json beside the model."
        )


def unknown_fraction(tokenizer: Any, rows: Sequence[Sequence[int]]) -> float:
    """Return the fraction of tokens, without special tokens, that are the unknown token of `tokenizer`.

    It is 0 if the tokenizer has no token for this purpose alone: it falls back to bytes, or its unknown token is its
    end of text (GPT-2).
    """
    unknown = tokenizer.unk_token_id
    roles = {getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "cls", "sep", "mask")}
    if unknown is None or unknown in roles:
        return 0.0
    special = set(tokenizer.all_special_ids) - {unknown}
    tokens = [token for token in itertools.chain.from_iterable(rows) if token not in special]
    return tokens.count(unknown) / max(len(tokens), 1)


def unknown_token_warnings(
    tokenizer: Any, train: datasets.Dataset, evaluation: datasets.Dataset, *columns: str
) -> tuple[str, ...]:
    """Return a warning if more than `MOST_UNKNOWN` of the tokens are unknown.

    Args:
        tokenizer: of the rows.
        train: tokenized training rows; at most `SAMPLE` of them, evenly spread, are counted.
        evaluation: tokenized evaluation rows; as `train`.
        columns: with token ids; default: input_ids.
    """
    sampled = [part.select(range(0, len(part), -(-len(part) // SAMPLE))) for part in (train, evaluation) if len(part)]
    rows = [ids for part in sampled for column in columns or ("input_ids",) for ids in part[column]]
    fraction = unknown_fraction(tokenizer, rows)
    if fraction <= MOST_UNKNOWN:
        return ()
    return (
        f"The tokenizer does not know {fraction:.0%} of the tokens of the data and reads them as "
        f"`{tokenizer.unk_token}`. Check that it is this model's own tokenizer, and that the texts are in a language "
        "and spelling that it knows.",
    )
