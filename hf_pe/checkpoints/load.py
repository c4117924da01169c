"""Load the weights of the model that a user names, and refuse weights that do not belong to it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import hf_pe.plugin  # noqa: F401  so that from_pretrained builds custom modules
from hf_pe.adapters import PREFIX, adapter_settings, merged, read_adapter
from hf_pe.checkpoints.classes import brings_code
from hf_pe.checkpoints.config import forget_gguf_, load_config
from hf_pe.checkpoints.config_checks import require_memory
from hf_pe.checkpoints.mixed_dtypes import float32_names, restore_float32_
from hf_pe.checkpoints.processor import tokenizer_of
from hf_pe.checkpoints.source import ADAPTER, Source, reading_files
from hf_pe.checkpoints.stored import stored_dtypes, stored_names, stored_tensors
from hf_pe.checkpoints.weight_checks import (
    ignored_by_class,
    require_finite,
    require_present,
    require_shapes,
    unread_parts,
)
from hf_pe.files.json_files import read_object
from hf_pe.files.shards import require_whole
from hf_pe.padding import classifies_rows_alone, name_padding_, padding_id
from hf_pe.quantizers.base import quantized_copy
from hf_pe.quantizers.layers import keep_savable_
from hf_pe.quantizers.registry import dequantized, quantized_by, remember_layout_
from hf_pe.surgery import dtype_name, in_dtype, main_dtype


def load_model(
    source: Source,
    model_class: type[PreTrainedModel],
    *,
    new_head: bool = False,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load a model in evaluation mode; see `load_with_unread`."""
    return load_with_unread(source, model_class, new_head=new_head, dtype=dtype, **options)[0]


def load_with_unread(
    source: Source,
    model_class: type[PreTrainedModel],
    *,
    new_head: bool = False,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a model in evaluation mode, and list the parts of the checkpoint that it does not read.

    The config of a decoder that classifies texts gets a padding token, so that it accepts batches of several rows.

    Args:
        source: Resolved source of the model.
        model_class: Class to build.
        new_head: Initialize weights at random that the checkpoint lacks or has in another shape, instead of refusing
            them.
        dtype: Dtype of the loaded weights; by default `loaded_dtype` of the source.
        options: Further arguments of `from_pretrained`. With a `config` of the caller, parts of the checkpoint that it
            has no room for are dropped on purpose. For an adapter or a .gguf file, `quantization_config` is applied to
            the merged or dequantized model, which is in memory at once.

    Returns:
        The model, and the parts of the checkpoint that it does not read: the head of another task, or tensors that
        transformers ignores.

    Raises:
        UsageError: The weights cannot be loaded, the class has parts that the checkpoint lacks (an untrained head) or
            has in other shapes, the checkpoint has more of a module than the class, or a value is NaN or infinite.
    """
    if source.folder is not None and (source.folder / ADAPTER).is_file():
        adapter_settings(source.path)  # checks an adapter beside the model's weights: transformers loads it too
    _require_loadable(source, model_class, dtype or source.loaded_dtype, options)
    if "quantization_config" in options:  # quantized weights no longer show NaN and infinity
        require_finite(stored_tensors(source), source.name)
    safe = {} if source.gguf_file else {"use_safetensors": None if source.allow_pickle else True}
    loader: Any = model_class
    dtype = dtype or source.loaded_dtype
    quantized_later = source.adapter is not None or source.gguf is not None
    quantization = options.pop("quantization_config", None) if quantized_later else None
    with reading_files(source):
        model, info = loader.from_pretrained(
            source.path,
            dtype=torch.float32 if source.gguf else dtype or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `require_shapes` below refuses them with a message of our own
            **source.options(),
            **safe,
            **options,
        )
    unexpected = [*info["unexpected_keys"], *ignored_by_class(stored_names(source), model)]
    unread = unread_parts(unexpected, model, source.name, strict="config" not in options)
    missing, mismatched = info["missing_keys"], info["mismatched_keys"]
    if source.gguf is not None:
        assert dtype is not None
        model = _plain_gguf(model, dtype)
    if source.adapter is not None:
        model, adapter_names = _merged(model, source, dtype)
        missing = missing - adapter_names
        mismatched = {entry for entry in mismatched if entry[0] not in adapter_names}
    if not new_head:
        require_shapes(mismatched, model, source.name)
        require_present(missing, model, source.name)
    require_finite(model.state_dict().items(), source.name)
    if dtype is None and "quantization_config" not in options:
        _keep_float32_(model, source)
    if quantization is not None:
        model = quantized_copy(model, quantization, dtype)
    if classifies_rows_alone(model.config, model_class):
        name_padding_(model.config, padding_id(model.config, tokenizer_of(source)))
    remember_layout_(model)
    keep_savable_(model)
    return model.eval(), unread


def _require_loadable(
    source: Source, model_class: type[PreTrainedModel], dtype: torch.dtype | None, options: Mapping[str, Any]
) -> None:
    """Refuse damaged weight files, and a model that this machine cannot hold, before memory is asked for."""
    if source.folder is not None and not source.gguf_file:
        require_whole(source.folder)
    if brings_code(model_class) or "device_map" in options:
        return
    config = options.get("config") or load_config(source)
    quantizes = "quantization_config" in options or quantized_by(config) is not None
    read_as = torch.float32 if source.gguf is not None else dtype
    bits = 4 if quantizes else None if read_as is None else torch.finfo(read_as).bits
    require_memory(config, model_class, source.name, bits=bits)


def _keep_float32_(model: PreTrainedModel, source: Source) -> None:
    """Restore the float32 tensors that loading has rounded, in a model that is loaded in the dtype of its files."""
    if source.adapter is None and quantized_by(model.config) is None:
        names = float32_names(stored_dtypes(source), model, main_dtype(model))
        restore_float32_(model, ((names[name], tensor) for name, tensor in stored_tensors(source, names)))


def write_dtype(config: Path, dtype: torch.dtype) -> None:
    """Write into config.json in which dtype `from_pretrained` loads the weights."""
    content = read_object(config)
    config.write_text(json.dumps({**content, "dtype": dtype_name(dtype)}, indent=2, sort_keys=True) + "\n", "utf-8")


def _merged(model: PreTrainedModel, source: Source, dtype: torch.dtype | None) -> tuple[PreTrainedModel, set[str]]:
    """Return the model with its adapter merged, and the names of the tensors that the adapter holds."""
    adapter = read_adapter(str(source.adapter))
    merged_dtype = dtype or main_dtype(model)
    base = dequantized(model, torch.float32) if quantized_by(model.config) is not None else model
    adapter_names = {name.removeprefix(PREFIX) for name in adapter.state}
    return in_dtype(merged(base, adapter), merged_dtype), adapter_names


def _plain_gguf(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of a .gguf file without marks of quantization; it was loaded in float32 and is rounded once."""
    untyped: Any = model
    forget_gguf_(model.config)
    untyped.is_quantized, untyped.hf_quantizer = False, None
    return in_dtype(model, dtype)
