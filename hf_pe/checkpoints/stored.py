"""Read names, dtypes and tensors from a checkpoint's weight files without building the model."""

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from hf_pe.anatomy import meta_model
from hf_pe.checkpoints.mixed_dtypes import differing_dtypes, float32_names, kept_in_float32
from hf_pe.checkpoints.source import Source
from hf_pe.errors import listed
from hf_pe.files.own_files import require_own_shards
from hf_pe.files.shards import open_shard
from hf_pe.quantizers.registry import quantized_by
from hf_pe.surgery import dtype_name


def weight_files(source: Source) -> list[str]:
    """Return the safetensors files that `from_pretrained` reads; an empty list for GGUF and pickles."""
    if source.gguf_file:
        return []
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    single_file = cached_file(source.path, SAFE_WEIGHTS_NAME, **quiet)
    if single_file is not None:
        return [single_file]
    index = cached_file(source.path, SAFE_WEIGHTS_INDEX_NAME, **quiet)
    if index is not None:
        require_own_shards(Path(index).parent, Path(index))
    return [] if index is None else list(get_checkpoint_shard_files(source.path, index)[0])


def stored_names(source: Source) -> Iterator[str]:
    """Yield the name of every tensor in the weight files."""
    for path in weight_files(source):
        with open_shard(path) as file:
            yield from file.keys()


def stored_tensors(source: Source, names: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the weight files, or those called `names`, with its name, one at a time."""
    for path in weight_files(source):
        with open_shard(path) as file:
            for name in file.keys():  # noqa: SIM118
                if names is None or name in names:
                    yield name, file.get_tensor(name)


def rounding_warnings(
    source: Source, config: PretrainedConfig, model_class: type[PreTrainedModel], model: PreTrainedModel | None = None
) -> tuple[str, ...]:
    """Return a warning where some tensors are stored in float32 and the model is loaded in 16 bits.

    Args:
        source: Source of the checkpoint.
        config: Config of the model.
        model_class: Class of the model.
        model: The loaded model, where there is one: parameters that it holds in float32 were not rounded.
    """
    loaded: Any = source.loaded_dtype or config.dtype
    loaded = getattr(torch, loaded) if isinstance(loaded, str) else loaded
    if loaded not in (torch.bfloat16, torch.float16) or quantized_by(config) is not None or source.adapter is not None:
        return ()
    stored, template = stored_dtypes(source), meta_model(config, model_class)
    keeps = kept_in_float32(template, loaded)
    differing = differing_dtypes(model) if model is not None else {}
    restored = {name for name, own_name in float32_names(stored, template, loaded).items() if own_name in differing}
    rounded = sorted(
        name for name, dtype in stored.items() if dtype == "F32" and not keeps(name) and name not in restored
    )
    if not rounded or source.dtype is not None or len(rounded) == len(stored):
        return ()
    return (
        f"{len(rounded)} of {len(stored)} tensors ({listed(rounded)}) are "
        f"stored in float32 and become {dtype_name(loaded)}, the config's dtype, as transformers loads them. "
        "`dtype: float32` keeps them, and loads all others in float32 too.",
    )


def stored_dtypes(source: Source) -> dict[str, str]:
    """Return the dtype of each tensor in the weight files, as safetensors spells it ("F32", "BF16")."""
    dtypes: dict[str, str] = {}
    for path in weight_files(source):
        with open_shard(path) as file:
            dtypes |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return dtypes
