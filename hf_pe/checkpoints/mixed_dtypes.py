"""Models of which some parameters have another dtype than `from_pretrained` gives them: a head in float32 on a body in
bfloat16.

A saved file holds each tensor in its own dtype; stock loading rounds what differs from the config's dtype, but for what
a class keeps in float32. What was rounded is put back here, so that cuts, training and measurements see it.
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
    """Return which names of tensors `from_pretrained` keeps in float32 where the model is loaded in `dtype`."""
    patterns = [*model._get_dtype_plan(dtype)]
    keeps = build_glob_alternation(patterns)[0] if patterns else None
    return lambda name: keeps is not None and keeps.search(name) is not None


def differing_dtypes(model: PreTrainedModel) -> dict[str, torch.dtype]:
    """Return the parameters that `from_pretrained` would load in another dtype, with the dtype that they have.

    transformers loads all of a checkpoint in one dtype but for what a class keeps in float32, or makes in a dtype of
    its own.
    """
    main = main_dtype(model)
    dtypes = {name: each.dtype for name, each in model.named_parameters() if each.is_floating_point()}
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
    """Return what stock `from_pretrained` loads of the saved model: `model` itself where that is equal."""
    return cast(model, main_dtype(model)) if differing_dtypes(model) else model


def dtype_warnings(model: PreTrainedModel) -> tuple[str, ...]:
    """Return a sentence on what stock `from_pretrained` does with parameters of another dtype than most."""
    names = differing_dtypes(model)
    if not names:
        return ()
    main, other = dtype_name(main_dtype(model)), " and ".join(sorted({dtype_name(each) for each in names.values()}))
    return (
        f"{listed(names)}: kept in {other}, in memory and in the saved files, where most weights are in {main}; "
        f"from_pretrained makes {main} of them when it loads the result, which was measured with them as they are. To "
        "keep their values, load it with dtype=torch.float32, which makes all others as large.",
    )


def float32_places(stored: Mapping[str, str], model: PreTrainedModel, dtype: torch.dtype) -> dict[str, str]:
    """Return which stored tensors are in float32 and would be rounded, with the names that the model has for them.

    Args:
        stored: dtypes by name, as safetensors calls them.
        model: of which the parameters have the names.
        dtype: that it is loaded in.

    Returns:
        Nothing where most tensors are in float32: then the config asks for all to be rounded.
    """
    whole = [name for name, held in stored.items() if held == "F32"]
    if dtype not in (torch.bfloat16, torch.float16) or 2 * len(whole) > len(stored):
        return {}
    keeps, known = kept_in_float32(model, dtype), {name for name, _ in model.named_parameters(remove_duplicate=False)}
    prefix = f"{model.base_model_prefix}."
    found = {}
    for name in whole:
        own = next((each for each in (name, prefix + name, name.removeprefix(prefix)) if each in known), None)
        if own is not None and not keeps(name):
            found[name] = own
    return found


def put_back_(model: PreTrainedModel, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Give parameters the values that they have in the files, where loading only rounded them."""
    changed = False
    for name, tensor in tensors:
        parameter = model.get_parameter(name)
        given = tensor.to(parameter.device)
        if given.shape == parameter.shape and torch.equal(given.to(parameter.dtype), parameter.data):
            parameter.data, changed = given, True
    if changed:
        align_dtypes_(model)
