"""Quantize and dequantize checkpoints without data; a large one is read shard by shard."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from hf_pe import progress
from hf_pe.anatomy import meta_model
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.save import copy_beside, save_model, say_left_behind
from hf_pe.checkpoints.source import Source, resolve
from hf_pe.checkpoints.stored import rounding_warnings
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.outputs import replaced, require_space
from hf_pe.quantize.recipe import BitsAndBytesQuantization
from hf_pe.quantizers.registry import dequantized, quantized_by, quantizer_names, quantizer_of, require_plain


def quantize_checkpoint(
    model: str,
    output: str | Path,
    recipe: BitsAndBytesQuantization | None = None,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Quantize a model while it is loaded, so that its 16- or 32-bit weights are never in memory all at once.

    Args:
        model: Folder, Hub id, .gguf file or `package:NAME/inner/path`. A PEFT adapter is merged in memory first, so
            that weights are rounded to 4 or 8 bits only once.
        output: Folder of the result, which `from_pretrained` loads; it appears only when it is complete.
        recipe: Settings; by default NF4 with double quantization.
        overwrite: Whether to replace the content of `output`, after success.
        trust_remote_code: Whether to run custom code that comes with the model.

    Returns:
        The folder of the result.

    Raises:
        UsageError: The model is quantized already, has no layer to quantize, or the recipe needs data (a budget, refit
            or max_kl).
    """
    recipe = recipe or BitsAndBytesQuantization()
    if recipe.needs_data:
        raise UsageError(
            "quantize: a budget, refit and max_kl need calibration rows. Leave them out, or use a recipe file with "
            "data (hf-pe run)."
        )
    source = resolve(model, trust_remote_code=trust_remote_code)
    config = load_config(source)
    require_plain(config)
    model_class = class_for(config)
    plan = recipe.dry_run(ModelSpec(config=config, model_class=model_class))[0]
    for note in plan.notes:
        progress.say(note)
    for warning in (*plan.warnings, *rounding_warnings(source, config, model_class)):
        progress.warn(warning)
    kept = recipe.modules_to_not_convert(meta_model(config, model_class))
    require_space(Path(output), plan.weight_bytes, "the result")
    with replaced(Path(output), overwrite=overwrite, inputs=source.inputs()) as fresh:
        progress.say("loading and quantizing")
        dtype = recipe.rest_dtype(config.dtype)
        options: dict[str, Any] = {"quantization_config": recipe.quantizer.config(recipe.settings(kept, dtype))}
        quantized = load_model(source, model_class, dtype=dtype, **options)
        _save(quantized, fresh, source)
    return Path(output)


def dequantize_checkpoint(
    model: str,
    output: str | Path,
    *,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Dequantize a model into one with the same outputs, for tools that cannot read quantized weights.

    Args:
        model: Folder or Hub id of a quantized model, or folder of a PEFT adapter on one: the weights of its base model
            are dequantized, then the adapter is merged in float32.
        output: Folder of the result; it appears only when it is complete.
        dtype: Dtype of the weights in the result.
        overwrite: Whether to replace the content of `output`, after success.
        trust_remote_code: Whether to run custom code that comes with the model.

    Returns:
        The folder of the result.

    Raises:
        UsageError: The weights were not quantized by a quantizer of hf_pe.
    """
    source = resolve(model, trust_remote_code=trust_remote_code)
    config = load_config(source)
    if source.adapter is None and quantizer_of(config) is None:
        method = quantized_by(config) or "weights that are not quantized"
        raise UsageError(f"{source.name}: expected a model quantized by {quantizer_names()}, got {method}.")
    with replaced(Path(output), overwrite=overwrite, inputs=source.inputs()) as fresh:
        progress.say("loading and dequantizing")
        target_dtype = getattr(torch, dtype)
        if source.adapter is not None:
            plain = load_model(source, class_for(config), dtype=target_dtype)
        else:
            plain = dequantized(load_model(source, class_for(config)), target_dtype)
        require_space(fresh, sum(parameter.nbytes for parameter in plain.parameters()), "the result")
        _save(plain, fresh, source)
    return Path(output)


def _save(model: PreTrainedModel, fresh: Path, source: Source) -> None:
    """Write the model and the files beside its weights; an adapter's files take precedence over its base model's."""
    save_model(model, None, fresh)
    for beside in (source.adapter and Path(source.adapter), source.folder):
        if beside:
            copy_beside(beside, fresh, model.config, own_code=source.trust_remote_code)
    say_left_behind(source)
