"""Read a model's config, and refuse a model that cannot or must not be loaded."""

from pathlib import Path

import transformers
from transformers import (
    AutoConfig,
    PretrainedConfig,
)

import hf_pe.plugin  # noqa: F401  so that from_pretrained builds custom modules
from hf_pe.adapters import fit_config_, read_adapter
from hf_pe.anatomy import custom_modules_of, meta_model
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config_checks import require_possible_sizes
from hf_pe.checkpoints.source import Source, reading_files
from hf_pe.errors import UsageError, one_line
from hf_pe.files.json_files import AGAIN, read_object
from hf_pe.quantizers.registry import quantized_by, quantizer_names, quantizer_of


def load_config(source: Source) -> PretrainedConfig:
    """Read the config of a model without its weights.

    For a model with an adapter this is the config of the merged model, whose weights are not quantized.

    Raises:
        UsageError: The config cannot be read (no network, no such id, custom code, no config), or the adapter cannot
            be merged.
    """
    if source.folder and not source.gguf_file and not source.trust_remote_code:
        _refuse_remote_code(source)
    with reading_files(source):
        config: PretrainedConfig = AutoConfig.from_pretrained(source.path, **source.options())
    architectures = config.architectures or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UsageError(
            f"{source.name}: config.json has architectures: {architectures!r:.80}; expected a list of names. {AGAIN}"
        )
    require_possible_sizes(config, source.name)
    _require_custom_modules(config, source.name)
    if not source.trust_remote_code:
        _refuse_kernels(config, source.name)
    if source.gguf_file:
        forget_gguf_(config)
    if source.loaded_dtype is not None:
        config.dtype = source.loaded_dtype
    if source.adapter is not None:
        _fit_adapter_(config, source)
    return config


def _require_custom_modules(config: PretrainedConfig, source: str) -> None:
    """Refuse a config whose description of custom modules cannot be read."""
    try:
        custom_modules_of(config)
    except ValueError as error:
        raise UsageError(
            f"{source}: config.json describes custom modules in a way that this version cannot read "
            f"({one_line(error, 200)}). {AGAIN}"
        ) from None


def _fit_adapter_(config: PretrainedConfig, source: Source) -> None:
    """Change the config of an adapter's base model into that of the merged model."""
    method = quantized_by(config)
    if method is not None and quantizer_of(config) is None:
        raise UsageError(
            f"{source.name} is an adapter on weights that {method} has quantized, which cannot be dequantized. "
            f"Expected a base model in 16 or 32 bits, or one that {quantizer_names()} has quantized: name another in "
            "base_model_name_or_path."
        )
    if method is not None:
        del config.quantization_config
    fit_config_(config, meta_model(config, class_for(config)), read_adapter(str(source.adapter)))


def forget_gguf_(config: PretrainedConfig) -> None:
    """Remove the quantization from the config of a .gguf file, and name its class.

    The config says that the weights are quantized, but transformers dequantizes them while loading; and it names no
    class.
    """
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if not config.architectures and type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        config.architectures = [class_for(config, "AutoModelForCausalLM").__name__]


def _refuse_remote_code(source: Source) -> None:
    content = read_object(Path(source.path) / "config.json")
    model_type, code = content.get("model_type"), content.get("auto_map")
    if isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING:
        return
    if isinstance(code, dict):
        raise UsageError(
            f"{source.name} needs its own code ({', '.join(sorted(code))}), which is off. Read that code, "
            "then allow it with trust_remote_code: true (--trust-remote-code)."
        )
    raise UsageError(f"{source.name}: config.json has model_type {model_type!r}, which transformers does not know.")


def _refuse_kernels(config: PretrainedConfig, name: str) -> None:
    """Refuse a config that names attention kernels of the Hub: transformers would fetch them and run their code."""
    parts = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    for part in (config, *parts):
        kernels = getattr(part, "_attn_implementation", None)
        if "/" in str(kernels or ""):
            raise UsageError(
                f"{name}: config.json asks for the attention kernels {kernels} of the Hub, which are code. Remove "
                "attn_implementation there, or allow it with trust_remote_code: true (--trust-remote-code)."
            )
