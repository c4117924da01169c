"""Packing a checkpoint and unpacking one, without data: shard by shard where it is large."""

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
    """Pack a model while it is loaded: at no time are all of its 16- or 32-bit weights in memory.

    Args:
        model: folder, Hub id, .gguf file or `package:NAME/inner/path`. A PEFT adapter is merged first, into the whole
            model in memory: weights are rounded to 4 or 8 bits once.
        output: folder of the result, which `from_pretrained` loads; written beside, then renamed.
        recipe: default: NF4 with double quantization.
        overwrite: replace what `output` holds, after success.
        trust_remote_code: run code that the model brings along.

    Returns:
        The folder.

    Raises:
        UsageError: it is quantized already, has nothing to pack, or the recipe wants data (a budget, refit).
    """
    recipe = recipe or BitsAndBytesQuantization()
    if recipe.needs_data:
        raise UsageError(
            "quantize: a budget, refit and max_kl need calibration rows. Leave them out, or write a recipe file and "
            "run that."
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
        progress.say("loading and packing")
        dtype = recipe.rest_dtype(config.dtype)
        options: dict[str, Any] = {"quantization_config": recipe.quantizer.config(recipe.settings(kept, dtype))}
        small = load_model(source, model_class, dtype=dtype, **options)
        _save(small, fresh, source)
    return Path(output)


def dequantize_checkpoint(
    model: str,
    output: str | Path,
    *,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Unpack a model: a plain one in 16 bits that answers as the packed weights do, for what cannot read them.

    Args:
        model: folder or Hub id of a model that a quantizer has packed, or folder of a PEFT adapter: the weights of its
            base are unpacked, then it is merged in float32.
        output: folder of the result; written beside, then renamed.
        dtype: of its weights.
        overwrite: replace what `output` holds, after success.
        trust_remote_code: run code that the model brings along.

    Returns:
        The folder.

    Raises:
        UsageError: it is not packed by a quantizer that can unpack it.
    """
    source = resolve(model, trust_remote_code=trust_remote_code)
    config = load_config(source)
    if source.adapter is None and quantizer_of(config) is None:
        kind = quantized_by(config) or "plain weights"
        raise UsageError(f"{source.name}: expected a model packed by {quantizer_names()}, got {kind}.")
    with replaced(Path(output), overwrite=overwrite, inputs=source.inputs()) as fresh:
        progress.say("loading and unpacking")
        target_dtype = getattr(torch, dtype)
        if source.adapter is not None:
            plain = load_model(source, class_for(config), dtype=target_dtype)
        else:
            plain = dequantized(load_model(source, class_for(config)), target_dtype)
        require_space(fresh, sum(parameter.nbytes for parameter in plain.parameters()), "the result")
        _save(plain, fresh, source)
    return Path(output)


def _save(model: PreTrainedModel, fresh: Path, source: Source) -> None:
    """Write the model and what lies beside its weights; the files of an adapter come before those of its base."""
    save_model(model, None, fresh)
    for beside in (source.adapter and Path(source.adapter), source.folder):
        if beside:
            copy_beside(beside, fresh, model.config, own_code=source.trust_remote_code)
    say_left_behind(source)
