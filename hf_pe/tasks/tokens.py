"""What tasks look up about a tokenizer: the special tokens it adds, and how much of a text it does not know."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_pe.errors import UsageError

MOST_UNKNOWN = 0.1
"""Fraction of unknown tokens from which on the tokenizer does not fit the texts."""
SAMPLE = 1000
"""Rows of each part in which unknown tokens are counted."""


@dataclass(frozen=True)
class AddedTokens:
    """The ids that a tokenizer puts around a text when it adds special tokens; both are empty for GPT-2.

    Attributes:
        prefix: such as the BOS of Llama and Gemma.
        suffix: such as the EOS of T5.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()


def added_tokens(tokenizer: Any, text: str) -> AddedTokens:
    """Return what `tokenizer` adds to a text, by tokenizing `text` with and without special tokens.

    Raises:
        UsageError: the text itself becomes other tokens, so that no place between blocks is right.
    """
    content = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    whole = list(tokenizer(text, verbose=False)["input_ids"])
    for start in range(len(whole) - len(content) + 1):
        end = start + len(content)
        if whole[start:end] == content:
            return AddedTokens(tuple(whole[:start]), tuple(whole[end:]))
    raise UsageError(
        f"{type(tokenizer).__name__} splits a text into other tokens when it adds special tokens: expected the same "
        "tokens with a prefix and a suffix. Load the tokenizer that the model was trained with."
    )


def require_offsets(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot say where in a text its tokens stand.

    Raises:
        UsageError: it is a slow one.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} cannot say where in a text its tokens stand, which labels of words and "
            "answers need. Expected a fast tokenizer: a tokenizer.json beside the model."
        )


def unknown_fraction(tokenizer: Any, rows: Sequence[Sequence[int]]) -> float:
    """Return the fraction of tokens, special ones left out, that `tokenizer` reads as unknown.

    It is 0 where the tokenizer has no token for this: it falls back to bytes, or names its end of text as the unknown
    token (GPT-2).
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
    """Return a sentence where more than `MOST_UNKNOWN` of the tokens are unknown.

    Args:
        tokenizer: that made the rows.
        train, evaluation: tokenized rows; up to `SAMPLE` of each are looked at, evenly spread.
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
