"""Special tokens: what a tokenizer puts before and behind a text."""

from dataclasses import dataclass
from typing import Any

from hf_pe.errors import UsageError


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
