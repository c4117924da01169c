"""Prepares examples for a task, and refuses a tokenizer, a model and rows that do not fit together."""

from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from transformers import PretrainedConfig

from hf_pe.data import Examples
from hf_pe.errors import UsageError, explained, one_line
from hf_pe.padding import padding_token
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.labels import unused_name_warnings

MOST_TRUNCATED = 0.1
"""Fraction of truncated rows above which there is a warning."""
POSITIONS_AFTER_PADDING = {
    "altclip_text_model", "bridgetower_text_model", "camembert", "clap_text_model", "data2vec-text", "esm", "ibert",
    "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Model types whose first token has position `pad_token_id + 1`: the positions before it are never used."""


def prepare(task: Task, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
    """Return the examples as the task prepares them, checked before and after.

    A tokenizer without a padding token pads with the config's, or else with its end of text. If `data.max_length` is
    not set, it is lowered to the number of the model's positions.

    Raises:
        UsageError: `data.label_names` has a name that no row has, `data.max_length` exceeds the model's positions, the
            tokenizer makes ids that the model's embedding does not have, or the task refuses the examples.
    """
    if getattr(processor, "pad_token", "") is None:
        processor.pad_token = padding_token(processor, config)
    if examples.config.media is None:
        examples = _within_positions(examples, config)
    unused = unused_name_warnings(examples)
    data = _prepared(task, examples, processor, config)
    _require_known_ids(data, config)
    counts = examples.counts.model_copy(update={"truncated": data.truncated})
    return replace(
        data,
        examples=replace(data.examples, counts=counts),
        warnings=(*data.warnings, *unused, *_truncation_warnings(data), *_evaluation_warnings(data, config)),
    )


def _prepared(task: Task, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
    """Return the examples as the task prepares them, after making a batch of one row.

    Raises:
        UsageError: the tokenizer or processor raises any error, because its files are damaged or another model's.
    """
    with explained(
        lambda error: (
            f"{type(processor).__name__} cannot prepare the data: {one_line(error, 300)}. Its files "
            "(tokenizer_config.json, preprocessor_config.json and the like) are damaged or are another model's: "
            "download them again, or give the processor that belongs to the model."
        )
    ):
        data = task.prepare(examples, processor, config)
        if processor is not None:
            with torch.random.fork_rng(devices=[]):  # collators that mask tokens draw random numbers
                data.collate([data.train[data.calibration_rows[0]]])
    return data


def positions(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model has positions for; None if they are not limited."""
    text = config.get_text_config()
    if getattr(text, "position_biased_input", True) is False:  # DeBERTa v2 and v3: relative positions alone
        return None
    count = int(getattr(text, "max_position_embeddings", None) or 0)
    if text.model_type in POSITIONS_AFTER_PADDING and count > 0:
        count -= int(text.pad_token_id or 0) + 1
    return count if count > 0 else None


def _within_positions(examples: Examples, config: PretrainedConfig) -> Examples:
    most, length = positions(config), examples.config.max_length
    if most is None or length <= most:
        return examples
    if "max_length" in examples.config.model_fields_set:
        raise UsageError(
            f"data.max_length: expected at most {most}, the positions that {config.model_type} has; got {length}."
        )
    return replace(examples, config=examples.config.model_copy(update={"max_length": most}))


def _require_known_ids(data: TaskData, config: PretrainedConfig) -> None:
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not rows or "input_ids" not in data.train.column_names:
        return
    way_out = (
        "Use the tokenizer that the model was trained with, or give the model more rows "
        "(model.resize_token_embeddings(len(tokenizer))) and train them."
    )
    padding = getattr(data.processor, "pad_token_id", None)
    if padding is not None and not 0 <= padding < rows:
        raise UsageError(
            f"The tokenizer pads with id {padding} ({data.processor.pad_token}), and the model's embedding has ids 0 "
            f"to {rows - 1}. Set tokenizer.pad_token to a token that it has, such as tokenizer.eos_token. {way_out}"
        )
    largest = max(_largest_id(part) for part in (data.train, data.eval))
    if largest >= rows:
        raise UsageError(
            f"The tokenizer makes id {largest}, and the model's embedding has ids 0 to {rows - 1}. {way_out}"
        )


def _largest_id(rows: datasets.Dataset) -> int:
    tables = rows.select_columns(["input_ids"]).with_format("arrow").iter(1000)
    return max((pc.max(pc.list_flatten(table["input_ids"])).as_py() or 0 for table in tables), default=0)


def _truncation_warnings(data: TaskData) -> list[str]:
    rows = len(data.train) + len(data.eval)
    if data.truncated <= MOST_TRUNCATED * rows:
        return []
    return [
        f"Data: {data.truncated:,} of {rows:,} rows have more tokens than data.max_length="
        f"{data.examples.config.max_length} or the model's own max_seq_length keeps, and are cut off there."
    ]


def _evaluation_warnings(data: TaskData, config: PretrainedConfig) -> list[str]:
    """Return a warning if there is one evaluation row only, or if all rows have the same label."""
    if min(len(data.eval), len(data.examples.eval)) == 1:
        return ["Data: there is only one evaluation row, so that metrics mean nothing. Use more rows in data.eval."]
    classes = _classes(data.eval) if data.task.classifies else np.empty(0)
    if len(classes) != 1:
        return []
    names: dict[Any, str] = config.id2label or {}
    name = names.get(int(classes[0]), str(classes[0]))
    return [
        f"Data: all {len(data.examples.eval):,} evaluation rows have the same label, '{name}': a model that always "
        "predicts it has an accuracy of 1. Use rows of every label in data.eval."
    ]


def _classes(rows: datasets.Dataset) -> Any:
    if "labels" not in rows.column_names:
        return np.empty(0)
    labels = np.unique(np.concatenate([np.atleast_1d(of_row) for of_row in rows["labels"]]))
    return labels[labels != -100]
