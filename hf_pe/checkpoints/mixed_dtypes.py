"""Keep the values of parameters whose dtype differs from the config's, such as a float32 head on a bfloat16 body.

A saved file holds each tensor in its own dtype. Stock loading rounds every tensor to the config's dtype, except those
that a class keeps in float32. This module restores the rounded values, for cuts, training and measurements.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from hf_pe.anatomy import meta_model
from hf_pe.errors import listed
from hf_pe.layer_dtypes import align_dtypes_
from hf_pe.surgery import cast, dtype_name, main_dtype


def kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], bool]:
    """Return a test of which tensor names `from_pretrained` keeps in float32 when the model is loaded in `dtype`."""
    patterns = [*model._get_dtype_plan(dtype)]
    keeps = build_glob_alternation(patterns)[0] if patterns else None
    return lambda name: keeps is not None and keeps.search(name) is not None


def differing_dtypes(model: PreTrainedModel) -> dict[str, torch.dtype]:
    """Return the parameters that `from_pretrained` would load in another dtype, with the dtype that they have.

    transformers loads all tensors of a checkpoint in one dtype, except those that a class keeps in float32 or creates
    in a dtype of its own.
    """
    main = main_dtype(model)
    dtypes = {name: tensor.dtype for name, tensor in model.named_parameters() if tensor.is_floating_point()}
    if set(dtypes.values()) <= {main} or getattr(model, "is_quantized", False):
        return {}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(main)
    try:
        template = meta_model(model.config, type(model))
    finally:
        torch.set_default_dtype(usual)
    loaded = {name: parameter.dtype for name, parameter in template.named_parameters()}
    keeps = kept_in_float32(template, main)
    return {
        name: dtype
        for name, dtype in dtypes.items()
        if dtype != (torch.float32 if keeps(name) else loaded.get(name, main))
    }


def as_stock_loads(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model that stock `from_pretrained` loads after saving: `model` itself where nothing is rounded."""
    return cast(model, main_dtype(model)) if differing_dtypes(model) else model


def dtype_warnings(model: PreTrainedModel) -> tuple[str, ...]:
    """Return a warning that stock `from_pretrained` rounds parameters of another dtype than most; else nothing."""
    names = differing_dtypes(model)
    if not names:
        return ()
    main = dtype_name(main_dtype(model))
    kept = " and ".join(sorted({dtype_name(dtype) for dtype in names.values()}))
    return (
        f"{listed(names)}: kept in {kept}, in memory and in the saved files, where most weights are in {main}; "
        f"from_pretrained rounds them to {main} when it loads the result, which was measured without that rounding. To "
        "keep their values, load it with dtype=torch.float32, which stores all other weights in float32 too.",
    )


def float32_names(stored: Mapping[str, str], model: PreTrainedModel, dtype: torch.dtype) -> dict[str, str]:
    """Return which stored float32 tensors loading rounds, with the name of the parameter that each becomes.

    Args:
        stored: Dtype of each stored tensor by its name, as safetensors spells it ("F32").
        model: Model whose parameters are loaded.
        dtype: Dtype that it is loaded in.

    Returns:
        Parameter names by names in the file. Empty where most tensors are stored in float32: then the config asks to
        round all of them.
    """
    float32_stored = [name for name, stored_dtype in stored.items() if stored_dtype == "F32"]
    if dtype not in (torch.bfloat16, torch.float16) or 2 * len(float32_stored) > len(stored):
        return {}
    keeps = kept_in_float32(model, dtype)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    prefix = f"{model.base_model_prefix}."
    parameter_names = {}
    for name in float32_stored:
        spellings = (name, prefix + name, name.removeprefix(prefix))
        parameter_name = next((spelling for spelling in spellings if spelling in parameters), None)
        if parameter_name is not None and not keeps(name):
            parameter_names[name] = parameter_name
    return parameter_names


def restore_float32_(model: PreTrainedModel, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Set parameters to the values in the files, where loading did no more than round them."""
    changed = False
    for name, tensor in tensors:
        parameter = model.get_parameter(name)
        stored = tensor.to(parameter.device)
        if stored.shape == parameter.shape and torch.equal(stored.to(parameter.dtype), parameter.data):
            parameter.data, changed = stored, True
    if changed:
        align_dtypes_(model)
