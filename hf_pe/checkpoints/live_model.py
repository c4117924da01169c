"""Handle models that the user has loaded: unwrap them, refuse what is not one plain model, restore their state."""

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
        UsageError: There is none, it has adapters, parts of it are compiled, or it is spread over several devices, disk
            or processes.
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
            f"model: learned prompts ({prompts}) precede its inputs; they cannot be merged into weights. Give the "
            "model without them (model.get_base_model()), and train new prompts for the result."
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
    devices = sorted({str(tensor.device) for tensor in (*model.parameters(), *model.buffers())})
    if len(devices) > 1 or devices == ["meta"]:
        raise UsageError(
            f"model: expected all weights on one device, got {' and '.join(devices)} (meta: its weights are on disk). "
            "Load it without device_map."
        )


@contextmanager
def unchanged(model: PreTrainedModel | None) -> Iterator[None]:
    """Restore `model` after the block: training modes, device, `requires_grad` and gradients of the parameters.

    Inside the block compiled modules run uncompiled, so that hooks see each of them, and each layer of a model with
    several dtypes computes in its own (`layer_dtypes`). With None the block runs without any of this.
    """
    if model is None:
        yield
        return
    modules, device = list(model.modules()), model.device
    modes = [(module.training, module._compiled_call_impl) for module in modules]
    gradients = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
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
        for parameter, requires_grad, gradient in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
