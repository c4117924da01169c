"""Models that the user has loaded: unwrapped, refused where they are more than a model, and given back as they were."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft import PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch._dynamo import OptimizedModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hf_pe.adapters import prompt_learning
from hf_pe.checkpoints.mixed_dtypes import differing_dtypes
from hf_pe.errors import UsageError
from hf_pe.layer_dtypes import aligned_dtypes


def plain_model(model: nn.Module) -> PreTrainedModel:
    """Return the model of transformers inside `torch.compile`, DataParallel or DistributedDataParallel.

    Raises:
        UsageError: there is none, adapters lie in it, parts of it are compiled on their own, or it is spread over
            several devices, disk or processes.
    """
    inner: Any = model
    while (unwrapped := extract_model_from_parallel(inner, keep_torch_compile=False)) is not inner:
        inner = unwrapped
    _require_no_adapters(inner)
    if not isinstance(inner, PreTrainedModel):
        raise UsageError(
            f"model: expected a PreTrainedModel of transformers, a Hub id or a folder, got {type(inner).__name__}. "
            "Give the model of transformers inside it."
        )
    if any(isinstance(module, OptimizedModule) for module in inner.modules()):
        raise UsageError(
            "model: parts of it are compiled. Give the model before torch.compile, and compile the result."
        )
    _require_one_device(inner)
    return inner


def _require_no_adapters(model: Any) -> None:
    prompts = prompt_learning(model)
    if prompts is not None:
        raise UsageError(
            f"model: learned prompts ({prompts}) stand before its inputs, which no weight can hold: they cannot be "
            "merged. Give the model without them (model.get_base_model()), and learn prompts for the result anew."
        )
    if isinstance(model, (PeftModel, PeftMixedModel)):
        raise UsageError(
            f"model: a {type(model).__name__} is a base with adapters beside its weights. Merge them first: "
            "compress(model.merge_and_unload(), ...)."
        )
    inside = any(isinstance(module, BaseTunerLayer) for module in model.modules())
    if inside or getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError(
            f"model: adapters were added to this {type(model).__name__} (add_adapter or load_adapter). Save them "
            "(model.save_pretrained(DIR)) and give DIR: they are merged while it is loaded."
        )


def _require_one_device(model: PreTrainedModel) -> None:
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise UsageError("model: its parameters are sharded over processes. Gather and save it, then give the folder.")
    places = sorted({str(tensor.device) for tensor in (*model.parameters(), *model.buffers())})
    if len(places) > 1 or places == ["meta"]:
        raise UsageError(
            f"model: expected it whole on one device, got {' and '.join(places)} (meta: its weights are on disk). Load "
            "it without device_map."
        )


@contextmanager
def unchanged(model: PreTrainedModel | None) -> Iterator[None]:
    """Give `model` back as it was: mode of each module, device, which parameters want gradients, and their gradients.

    Inside the block it is not compiled, so that each module can be looked at, and layers of a model of several dtypes
    compute each in its own (`layer_dtypes`). None is left alone.
    """
    if model is None:
        yield
        return
    modules, device = list(model.modules()), model.device
    modes = [(module.training, module._compiled_call_impl) for module in modules]
    parameters = [(each, each.requires_grad, each.grad) for each in model.parameters()]
    for module in modules:
        module._compiled_call_impl = None
    try:
        with aligned_dtypes(model) if differing_dtypes(model) else nullcontext():
            yield
    finally:
        if model.device != device:
            model.to(device)  # type: ignore[arg-type]
        for module, (training, compiled) in zip(modules, modes, strict=True):
            module.training, module._compiled_call_impl = training, compiled
        for parameter, wants, gradient in parameters:
            parameter.requires_grad_(wants)
            parameter.grad = gradient
