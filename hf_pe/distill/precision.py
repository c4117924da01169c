"""The precision in which a student is trained: weights stored in 16 bits learn as a float32 copy.

AdamW's steps are smaller than the spacing of 16-bit numbers: added to a bfloat16 weight, most of them are rounded away.
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
    """Make parameters and buffers of 16 bits float32, in place; tied parameters stay tied, all else stays as it is."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in HALF:
            tensor.data = tensor.data.float()


def restore_dtypes_(student: nn.Module, stored: PreTrainedModel) -> None:
    """Give parameters and buffers of `student` the dtype that those of the same name have in `stored`, in place."""
    tensors = dict([*stored.named_parameters(), *stored.named_buffers()])
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        like = tensors.get(name)
        if like is not None and like.is_floating_point() and tensor.is_floating_point():
            tensor.data = tensor.data.to(like.dtype)
    config: Any = student.config
    config.dtype = stored.config.dtype


def describe(stored: torch.dtype | str, *, autocast: bool, adapters: bool) -> str:
    """Say in which precision a student trains, for plans and reports.

    Args:
        stored: dtype of the model's weights before and after.
        autocast: whether forward passes run under bfloat16 autocast.
        adapters: whether low-rank adapters learn in place of the weights.
    """
    name = dtype_name(stored)
    passes = ", forward passes under bfloat16 autocast" if autocast else ""
    if adapters:
        return f"adapters trained in float32{passes}"
    if name in ("bfloat16", "float16"):
        return f"trained as a float32 copy{passes}, stored in {name} again"
    return f"trained in {name}{passes}"


def with_float_inputs(collate: Callable[[Any], Batch], dtype: torch.dtype) -> Callable[[Any], Batch]:
    """Let `collate` give images and sounds in the model's precision; labels stay as they are."""

    def collate_as_read(rows: Any) -> Batch:
        batch = collate(rows)
        inputs = {key: value.to(dtype) for key, value in model_inputs(batch).items() if value.is_floating_point()}
        return batch | inputs

    return collate_as_read if dtype in HALF else collate


def require_loaded(model: nn.Module) -> None:
    """Refuse a model of which layers lie in CPU memory or on disk until a forward pass asks for them.

    Raises:
        UsageError: names the first of these parameters.
    """
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise UsageError(
            f"distil: expected all weights on the device that trains, but {len(absent)} parameters ({absent[0]}, ...) "
            "were moved to CPU memory or to disk by device_map and would not be trained. Load the model without "
            "device_map, or train adapters over packed weights (lora: {base: nf4})."
        )


def warn_of_half_precision(model: nn.Module) -> None:
    """Warn where parameters of 16 bits are trained without a float32 copy."""
    sizes = [(p.numel(), p.dtype in HALF) for p in model.parameters() if p.requires_grad]
    half = sum(size for size, is_half in sizes if is_half)
    if half:
        share = half / sum(size for size, _ in sizes)
        warnings.warn(
            f"DistillationMixin: {share:.0%} of the trained parameters have 16 bits, and most optimizer steps are lost "
            "when they are rounded to these. Load the student in float32 (dtype=torch.float32) and set bf16=True in "
            "TrainingArguments, or train adapters.",
            stacklevel=3,
        )
