"""Packing linear layers by bitsandbytes and unpacking them: which can be packed, a packed copy, the weights it stands
for."""

import tempfile
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

BLOCK = 64
"""Weights per 4-bit scale (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""


def is_linear(module: nn.Module) -> bool:
    """Whether bitsandbytes can pack it."""
    return isinstance(module, (nn.Linear, Conv1D))


def kept_modules(model: PreTrainedModel, method: str, skip: tuple[str, ...] = ()) -> list[str]:
    """The whole skip list: transformers' own, ties, everything outside the backbone (heads), and `skip`.

    And for NF4 what bitsandbytes' CPU kernel cannot multiply: input widths that are no whole number of blocks.

    Args:
        model: on any device.
        method: "nf4" or "int8".
        skip: more modules, by full name or last part.
    """
    default = {name.removesuffix(".bias") for name in get_keys_to_not_convert(model)}
    inside = model.base_model_prefix + "."
    has_backbone = model.base_model is not model
    linear = {n for n, m in model.named_modules() if is_linear(m)}
    heads = {n for n in linear if has_backbone and not n.startswith(inside)}
    if not has_backbone:  # transformers' "last module" is a head only where there is one
        default -= linear
    odd = {n for n in linear if method == "nf4" and _inputs(model.get_submodule(n)) % BLOCK}
    return sorted((default & linear) | heads | odd | {n for n in linear if n.endswith(skip)})


def settings(
    method: str,
    *,
    kept: list[str] | None = None,
    double: bool = True,
    compute_dtype: torch.dtype | None = None,
) -> BitsAndBytesConfig:
    """How transformers packs weights while it loads them.

    Args:
        method: "nf4" or "int8".
        kept: modules that are not packed; default: transformers' own.
        double: NF4: scales of scales too.
        compute_dtype: default: bitsandbytes' own, float32.
    """
    return BitsAndBytesConfig(
        load_in_4bit=method == "nf4",
        load_in_8bit=method == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=kept,
    )


def packed(
    model: PreTrainedModel,
    method: str,
    *,
    kept: list[str],
    double: bool = True,
    compute_dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """A packed copy, through transformers' own loading.

    Compute and storage dtypes and the whole skip list are written into the config, so that a reload is equal.

    Args:
        model: stays as it is.
        method: "nf4" or "int8".
        kept: modules that are not packed.
        double: NF4: scales of scales too.
        compute_dtype: default: the model's.
    """
    wanted = settings(method, kept=kept, double=double, compute_dtype=compute_dtype or model.dtype)
    with tempfile.TemporaryDirectory() as work:
        model.save_pretrained(work)
        found = type(model).from_pretrained(work, quantization_config=wanted, dtype=model.dtype)
    found.config._name_or_path = model.config._name_or_path
    return found.eval()  # type: ignore[no-any-return]


def plain_layout_(model: nn.Module) -> None:
    """Undo what bitsandbytes does to 4-bit weights on a CPU at the first forward pass in evaluation mode.

    It lays them out for a kernel that has no backward pass: training on would be on wrong gradients, without a word.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            module.state_dict()  # brings the layout back that is saved


def unpacked_weight(module: Any) -> torch.Tensor:
    """The weight that a packed linear layer stands for, [outputs, inputs]; of another layer its own."""
    return dequantize_module_weight(module).detach()


def _inputs(module: Any) -> int:
    return int(module.nx if isinstance(module, Conv1D) else module.in_features)
