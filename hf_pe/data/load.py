"""Read what the settings name and split it into rows to train on and rows to evaluate on."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import datasets

from hf_pe.data.config import DataConfig
from hf_pe.data.fingerprint import fingerprint
from hf_pe.data.select import usable
from hf_pe.data.sources import source_rows
from hf_pe.errors import UsageError


@dataclass(frozen=True)
class Examples:
    """Rows to train on and rows never trained on, with a fingerprint of both.

    Attributes:
        warnings: sentences on what the reader of a result should know of the rows.
    """

    train: datasets.Dataset
    eval: datasets.Dataset
    config: DataConfig
    fingerprint: str
    warnings: tuple[str, ...] = ()


def load_examples(data: DataConfig | str | Sequence[str] | datasets.Dataset) -> Examples:
    """Read everything `data` names and split it.

    Raises:
        UsageError: a source is missing, empty, lacks a named column or has no usable row.
    """
    if isinstance(data, datasets.Dataset):
        config = DataConfig(train="(given data set)")
        rows: datasets.Dataset = usable(data, config, "the given data set")
    elif isinstance(data, (DataConfig, str)):
        config = data if isinstance(data, DataConfig) else DataConfig(train=data)
        rows = _read(config.train, config, config.train_split)
    else:
        config = DataConfig(train="(given texts)")
        rows = usable(datasets.Dataset.from_dict({"text": list(data)}), config, "the given texts")
    if config.eval is None:
        order = list(range(len(rows)))
        random.Random(config.seed).shuffle(order)
        held_out = max(round(len(rows) * config.eval_fraction), 1)
        if len(rows) < 2:
            raise UsageError(f"{config.train} has {len(rows)} usable row: at least 2 are needed to hold one out.")
        train, evaluation = rows.select(order[held_out:]), rows.select(sorted(order[:held_out]))
    else:
        train, evaluation = rows, _read(config.eval, config, config.eval_split)
    train = train.select(range(min(len(train), config.limit or len(train))))
    evaluation = evaluation.select(range(min(len(evaluation), config.eval_limit or len(evaluation))))
    return Examples(train=train, eval=evaluation, config=config, fingerprint=fingerprint(config, train, evaluation))


def _read(sources: str | tuple[str, ...], config: DataConfig, split: str) -> datasets.Dataset:
    names = (sources,) if isinstance(sources, str) else sources
    if not names:
        raise UsageError("data.train: expected at least one source, got an empty list.")
    parts = [usable(source_rows(name, config, split), config, name) for name in names]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
