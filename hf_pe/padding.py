"""Determines the padding token of models that classify a text by its last token.

A decoder with a classification head (GPT-2, Llama, Qwen) looks for the last token that is no padding. Where its config
names no padding token, transformers refuses batches of more than one row. Where the config names another token than the
tokenizer pads with, the class of shorter rows is read at a padding token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel


def lacks_padding(config: PretrainedConfig) -> bool:
    """Return whether the config of a model of texts names no padding token."""
    return getattr(config.get_text_config(), "pad_token_id", 0) is None


def classifies_rows_alone(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    """Return whether a model may classify one row at a time only."""
    return model_class.__name__.endswith("ForSequenceClassification") and lacks_padding(config)


def padding_token(tokenizer: Any, config: PretrainedConfig) -> str | None:
    """Return the token that a tokenizer without a padding token pads with: the config's, else its end of text."""
    stated = getattr(config.get_text_config(), "pad_token_id", None)
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    if stated in special:  # an ordinary token would occur in texts as well
        token: str = tokenizer.convert_ids_to_tokens(stated)
        return token
    end: str | None = tokenizer.eos_token
    return end


def padding_id(config: PretrainedConfig, tokenizer: Any = None) -> int | None:
    """Return the id that rows are padded with: the tokenizer's padding or end token, else the config's end token."""
    end = getattr(config.get_text_config(), "eos_token_id", None)
    ends = end if isinstance(end, list) else [end]
    named = [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
    return next((token for token in (*named, *ends) if isinstance(token, int)), None)


def name_padding_(config: PretrainedConfig, token: int | None) -> None:
    """Write a padding token into the text part of a config."""
    config.get_text_config().pad_token_id = token


@contextmanager
def padding_named(model: PreTrainedModel, token: int | None) -> Iterator[None]:
    """Let the model's config name a padding token inside the block; None changes nothing."""
    text = model.config.get_text_config()
    before = getattr(text, "pad_token_id", None)
    if token is not None:
        text.pad_token_id = token
    try:
        yield
    finally:
        if token is not None:
            text.pad_token_id = before
