"""Sets the precision in which a student is trained: weights that are stored in 16 bits are trained as a float32 copy.

The steps of AdamW are smaller than the spacing of 16-bit numbers: added to a bfloat16 weight, most would be rounded
away.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.errors import UsageError
from hf_pe.surgery import dtype_name
from hf_pe.tasks import Batch, model_inputs

HALF = (torch.bfloat16, torch.float16)


def upcast_(model: nn.Module) -> None:
    """Convert parameters and buffers of 16 bits to float32, in place; tied parameters stay tied."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in HALF:
            tensor.data = tensor.data.float()


def restore_dtypes_(student: nn.Module, stored: PreTrainedModel) -> None:
    """Convert parameters and buffers of `student` to the dtype of those with the same name in `stored`, in place."""
    tensors = dict([*stored.named_parameters(), *stored.named_buffers()])
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        original = tensors.get(name)
        if original is not None and original.is_floating_point() and tensor.is_floating_point():
            tensor.data = tensor.data.to(original.dtype)
    config: Any = student.config
    config.dtype = stored.config.dtype


def describe(stored: torch.dtype | str, *, autocast: bool, adapters: bool) -> str:
    """Return a phrase for plans and reports on the precision in which a student is trained.

    Args:
        stored: dtype of the model's weights before and after training.
        autocast: whether forward passes run under bfloat16 autocast.
        adapters: whether low-rank adapters are trained instead of the weights.
    """
    name = dtype_name(stored)
    passes = ", forward passes under bfloat16 autocast" if autocast else ""
    if adapters:
        return f"adapters trained in float32{passes}"
    if name in ("bfloat16", "float16"):
        return f"trained as a float32 copy{passes}, stored in {name} again"
    return f"trained in {name}{passes}"


def with_float_inputs(collate: Callable[[Any], Batch], dtype: torch.dtype) -> Callable[[Any], Batch]:
    """Return a collator that converts images and recordings, but not labels, to the model's dtype."""

    def collate_as_read(rows: Any) -> Batch:
        batch = collate(rows)
        inputs = {key: value.to(dtype) for key, value in model_inputs(batch).items() if value.is_floating_point()}
        return batch | inputs

    return collate_as_read if dtype in HALF else collate


def require_loaded(model: nn.Module) -> None:
    """Refuse a model whose layers `device_map` keeps in CPU memory or on disk until a forward pass needs them.

    Raises:
        UsageError: the model has such layers; names the first of their parameters.
    """
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise UsageError(
            f"distil: expected all weights on the device that trains, but {len(absent)} parameters ({absent[0]}, ...) "
            "were moved to CPU memory or to disk by device_map and would not be trained. Load the model without "
            "device_map, or train adapters on quantized weights (lora: {base: nf4})."
        )


def warn_of_half_precision(model: nn.Module) -> None:
    """Warn if parameters of 16 bits are trained without a float32 copy."""
    sizes = [(p.numel(), p.dtype in HALF) for p in model.parameters() if p.requires_grad]
    half = sum(size for size, is_half in sizes if is_half)
    if half:
        fraction = half / sum(size for size, _ in sizes)
        warnings.warn(
            f"DistillationMixin: {fraction:.0%} of the trained parameters have 16 bits; rounding to these loses most "
            "optimizer steps. Load the student in float32 (dtype=torch.float32) and set bf16=True in "
            "TrainingArguments, or train adapters.",
            stacklevel=3,
        )
