"""Check a config before a model is built from it: a damaged one may ask for more memory than any machine has."""

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
"""No model has sizes above these: building only its shapes would not end."""
SMALL = 2**28
"""Product of the two largest numbers of a config up to which the model surely fits, so that memory is not checked."""


def require_possible_sizes(config: PretrainedConfig, source: str) -> None:
    """Refuse a config with a size that no model has: a negative one, or one so large that building would not end.

    Args:
        config: Config as it was loaded.
        source: Name of the model for error messages.

    Raises:
        UsageError: A size is impossible; the message names its field.
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
        config: Config of the model.
        model_class: Class that is built from it.
        source: Name of the model for error messages.
        bits: Bits per weight once loaded; by default those of the config's dtype.

    Raises:
        UsageError: The weights take more than all memory, swap and accelerators included; or see `require_buildable`.
    """
    largest = sorted((value for name, value in _numbers(config.to_dict()) if not names_tokens(name)), reverse=True)
    if len(largest) < 2 or largest[0] * largest[1] <= SMALL:
        return
    parameters = require_buildable(config, model_class)
    config_bits = torch.finfo(config.dtype).bits if isinstance(config.dtype, torch.dtype) else 32
    needed_bytes, machine_bytes = parameters * (bits or config_bits) / 8, _all_memory()
    if needed_bytes > machine_bytes:
        raise UsageError(
            f"{source}: by its config.json it has {parameters:,} parameters, which take {needed_bytes / 1e9:,.0f} GB, "
            f"and this machine has {machine_bytes / 1e9:,.0f} GB of memory in all (less where a container limits it). "
            "If the file is damaged, download it again; if not, use hf-pe cut, which holds one shard at a time, or a "
            "larger machine."
        )


def require_buildable(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> int:
    """Return the number of parameters of a model, which is built without memory for them.

    Raises:
        UsageError: The values of its config do not fit together.
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
    host_bytes = all_memory()
    if not torch.cuda.is_available():
        return host_bytes
    return int(host_bytes + sum(torch.cuda.mem_get_info(index)[1] for index in range(torch.cuda.device_count())))


def _numbers(values: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Yield the integers of a config with their dotted names, also those in lists and in nested configs."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _numbers(value, f"{path}.{name}" if path else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value, path)
    elif isinstance(values, int) and not isinstance(values, bool):
        yield path, values
