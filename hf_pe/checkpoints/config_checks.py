"""Checks of a model's config before anything is built from it: a damaged one may ask for more than any machine has."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import Architecture, kind_of_field, meta_model, names_tokens
from hf_pe.errors import UsageError, one_line, pass_on_memory_errors
from hf_pe.machine_memory import all_memory

MOST_LAYERS = 10_000
MOST_UNITS = 100_000_000
"""Above these no model is meant: building only the shapes of one would not end."""
SMALL = 2**28
"""Product of the two largest numbers of a config up to which no look at the machine's memory is worth its time."""


def require_possible_sizes(config: PretrainedConfig, source: str) -> None:
    """Refuse a config with sizes that no model has: negative ones, or such that building it would not end.

    Args:
        config: as loaded.
        source: what errors call the model.

    Raises:
        UsageError: there is one; names the field.
    """
    for name, value in _numbers(config.to_dict()):
        kind = kind_of_field(name.rpartition(".")[2])
        most = MOST_LAYERS if kind is not None and kind.is_depth else MOST_UNITS
        if kind is not None and not 0 <= value <= most:
            raise UsageError(
                f"{source}: config.json has {name}: {value}; expected 0 to {most:,}. The file is damaged: download it "
                "again, or correct the value."
            )


def require_memory(
    config: PretrainedConfig, model_class: type[PreTrainedModel], source: str, *, bits: float | None = None
) -> None:
    """Refuse a model that this machine cannot hold, before any memory is asked for.

    Args:
        config: of the model.
        model_class: what is built from it.
        source: what errors call the model.
        bits: of a weight once loaded; default: those of the config's dtype.

    Raises:
        UsageError: its weights take more than all memory, swap and accelerators included; see `require_buildable`.
    """
    largest = sorted((value for name, value in _numbers(config.to_dict()) if not names_tokens(name)), reverse=True)
    if len(largest) < 2 or largest[0] * largest[1] <= SMALL:
        return
    parameters = require_buildable(config, model_class)
    own = torch.finfo(config.dtype).bits if isinstance(config.dtype, torch.dtype) else 32
    needed, there = parameters * (bits or own) / 8, _all_memory()
    if needed > there:
        raise UsageError(
            f"{source}: by its config.json it has {parameters:,} parameters, which take {needed / 1e9:,.0f} GB, and "
            f"this machine has {there / 1e9:,.0f} GB of memory in all, limits of a container counted. If the file is "
            "damaged, download it again; if not, use hf-pe cut, which holds one shard at a time, or a larger machine."
        )


def require_buildable(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> int:
    """Return the number of parameters of a model, built without memory for them.

    Raises:
        UsageError: the values of its config do not fit together.
    """
    return _parameters(Architecture.of(config, model_class))


@functools.lru_cache(maxsize=256)
def _parameters(architecture: Architecture) -> int:
    config, model_class = architecture.config, architecture.model_class
    try:
        return sum(parameter.numel() for parameter in meta_model(config, model_class).parameters())
    except Exception as error:  # values that do not fit together may raise anything
        pass_on_memory_errors(error)
        raise UsageError(
            f"{model_class.__name__} cannot be built from its config.json ({one_line(error, 200)}). "
            "Download the file again, or correct it."
        ) from error


def _all_memory() -> int:
    """Return the bytes of memory, swap and accelerators together that this process may have."""
    own = all_memory()
    if not torch.cuda.is_available():
        return own
    return int(own + sum(torch.cuda.mem_get_info(each)[1] for each in range(torch.cuda.device_count())))


def _numbers(values: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Walk over the integers of a config, also those in lists and in configs inside, with their dotted names."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _numbers(value, f"{path}.{name}" if path else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value, path)
    elif isinstance(values, int) and not isinstance(values, bool):
        yield path, values
