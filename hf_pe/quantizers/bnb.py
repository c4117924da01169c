"""Packing linear layers by bitsandbytes and unpacking them: which can be packed, a packed copy, the weights it stands
for."""

import copy
import tempfile
from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from hf_pe.adapters import adapters_aside, carried, merged
from hf_pe.anatomy import METHOD, skeleton
from hf_pe.errors import UsageError
from hf_pe.surgery import in_dtype, main_dtype, rebuilt

BLOCK = 64
"""Weights per 4-bit scale (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""
OUTER_BLOCK = 256
"""Scales per scale of scales (the same)."""
OUTPUTS = 32
"""Outputs that bitsandbytes' 4-bit kernel for CPUs with AVX-512 computes at once; it stops at any other number."""

BITSANDBYTES = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
"""What a config calls the method whose weights can be unpacked."""

Method = Literal["nf4", "fp4", "int8"]


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, packed or not."""
    return isinstance(module, (nn.Linear, Conv1D))


def packable(model: PreTrainedModel, kept: Sequence[str] = ()) -> list[str]:
    """Names of the linear layers that transformers lets bitsandbytes pack, but for those in the skip list."""
    kinds = {name: type(module) for name, module in model.named_modules()}
    return [n for n, kind in kinds.items() if n not in kept and (kind is nn.Linear or issubclass(kind, Conv1D))]


def packed_bits(method: Method, *, double: bool = True) -> float:
    """Bits a packed weight takes, scales included."""
    if method == "int8":
        return 8.0
    return 4 + (8 / BLOCK + 32 / (BLOCK * OUTER_BLOCK) if double else 32 / BLOCK)


def kept_modules(model: PreTrainedModel, method: Method, skip: tuple[str, ...] = ()) -> list[str]:
    """The whole skip list: transformers' own, ties, everything outside the backbone (heads), and `skip`.

    And for 4 bits what bitsandbytes' CPU kernel cannot multiply (see `unfit_widths`). And what transformers leaves out
    unasked: parts that want float32 (T5's second FFN map), what a name in the list ends.

    Args:
        model: on any device.
        method: how they would be packed.
        skip: more modules, by full name or last part.
    """
    default = {name.removesuffix(".bias") for name in get_keys_to_not_convert(model)}
    inside = model.base_model_prefix + "."
    has_backbone = model.base_model is not model
    linear = set(packable(model))
    heads = {n for n in linear if has_backbone and not n.startswith(inside)}
    if not has_backbone:  # transformers' "last module" is a head only where there is one
        default -= linear
    kept = (default & linear) | heads | set(unfit_widths(model, method)) | {n for n in linear if n.endswith(skip)}
    patterns = [*kept, *(model._keep_in_fp32_modules or ())]
    return sorted(name for name in linear if not should_convert_module(name, patterns))


def unfit_widths(model: PreTrainedModel, method: Method) -> list[str]:
    """Return the linear layers whose widths bitsandbytes' 4-bit kernels cannot multiply on every machine.

    The kernel for CPUs with AVX-512 takes inputs block by block and outputs 32 by 32. Results have to load anywhere, so
    such layers are left out wherever they are packed.

    Args:
        model: on any device.
        method: 8 bits fit any width.
    """
    shapes = {name: plain_weight(model.get_submodule(name)).shape for name in packable(model)}
    return [n for n, (outputs, inputs) in shapes.items() if method != "int8" and (outputs % OUTPUTS or inputs % BLOCK)]


def settings(
    method: Method,
    *,
    kept: list[str] | None = None,
    double: bool = True,
    compute_dtype: torch.dtype | None = None,
    storage_dtype: torch.dtype = torch.uint8,
    threshold: float = 6.0,
) -> BitsAndBytesConfig:
    """How transformers packs weights while it loads them.

    Args:
        method: NF4, FP4 or int8.
        kept: modules that are not packed; default: transformers' own.
        double: 4 bits: scales of scales too.
        compute_dtype: 4 bits: default bitsandbytes' own, float32.
        storage_dtype: 4 bits: of the tensors that hold the codes.
        threshold: int8: inputs above it are multiplied in 16 bits (Dettmers et al. 2022, arXiv:2208.07339, sec. 3.2).
    """
    return BitsAndBytesConfig(
        load_in_4bit=method != "int8",
        load_in_8bit=method == "int8",
        llm_int8_threshold=threshold,
        bnb_4bit_quant_type=method if method != "int8" else "nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=storage_dtype,
        llm_int8_skip_modules=kept,
    )


def packed(model: PreTrainedModel, wanted: BitsAndBytesConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A packed copy on the same device, through transformers' own loading.

    Compute and storage dtypes and the whole skip list are written into the config, so that a reload is equal.

    Args:
        model: stays as it is.
        wanted: as `settings` gives it.
        dtype: of all that is not packed; default: that of most of the model's weights.
    """
    with tempfile.TemporaryDirectory() as work:
        model.save_pretrained(work)
        where = {"": str(model.device)}
        kind: Any = type(model)
        found = kind.from_pretrained(
            work, quantization_config=wanted, dtype=dtype or main_dtype(model), device_map=where
        )
    found.config._name_or_path = model.config._name_or_path
    remember_scales_(found)
    return found.eval()  # type: ignore[no-any-return]


def packed_by(config: PretrainedConfig) -> str | None:
    """The method that a model's weights are packed by; None where they are plain."""
    told = getattr(config, "quantization_config", None)
    if not told:
        return None
    method = told.get("quant_method") if isinstance(told, dict) else told.quant_method
    return None if method == METHOD else str(getattr(method, "value", method))


def require_plain(config: PretrainedConfig) -> None:
    """Refuse a model that is packed already.

    Raises:
        UsageError: it is; says by what.
    """
    method = packed_by(config)
    if method is not None:
        raise UsageError(
            f"The model is quantized already ({method}): packed weights cannot be cut, "
            "trained or packed again. Give its 16- or 32-bit original, or unpack it first (hf-pe dequantize)."
        )


@torch.no_grad()
def unpacked(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The plain model that a packed one stands for, with the adapters on it merged.

    What adapters learned is added in float32; the sum is rounded once, to `dtype`.

    Args:
        model: packed by bitsandbytes; stays as it is.
        dtype: of the weights.
    """
    adapter = carried(model)
    if adapter is None:
        return _unpacked(model, dtype)
    with adapters_aside(model):
        plain = _unpacked(model, torch.float32)
    return in_dtype(merged(plain, adapter), dtype)


def _unpacked(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The plain model that one without adapters stands for."""
    plain_layout_(model)
    config = copy.deepcopy(model.config)
    del config.quantization_config
    config.dtype = dtype
    plain, weights = skeleton(config, type(model)), {}
    state = model.state_dict()
    for name in plain.state_dict():
        place = name.rpartition(".")[0]
        if name.endswith(".weight") and hasattr(model.get_submodule(place), "source_cls"):
            weight = unpacked_weight(model.get_submodule(place)).to(dtype)
            weights[name] = weight.T.contiguous() if isinstance(plain.get_submodule(place), Conv1D) else weight
        else:
            weights[name] = state[name]
    return rebuilt(model, config, weights, dtype)


def keep_savable_(model: Any) -> None:
    """Let a model that was loaded from packed files be saved again.

    transformers keeps how it read the files, to write them back in reverse; reading bitsandbytes' codes has no reverse.
    None is needed, since `state_dict` gives codes and scales under the names that are saved.
    """
    kept = getattr(model, "_weight_conversions", None)
    if kept is not None:
        model._weight_conversions = [each for each in kept if _is_reversible(each)]


def _is_reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def remember_scales_(model: nn.Module) -> None:
    """Let `plain_layout_` bring back the scales of 4-bit weights as they are now, before the model is run."""
    for state in _states(model):
        if not getattr(state, "packing_format_for_cpu", False):
            state.as_packed = (state.absmax, state.offset, state.state2, state.nested)


def plain_layout_(model: nn.Module) -> None:
    """Undo what bitsandbytes does to 4-bit weights on a CPU at the first forward pass in evaluation mode.

    The kernel that it lays them out for has no backward pass: training would go on with wrong gradients, unsaid. And
    it rounds scales on the way; those that are not doubly quantized come back in the wrong order (bitsandbytes 0.50):
    saved like that, the model would be another one.
    """
    for module in model.modules():
        for state in _states(module, inside=False):
            if getattr(state, "packing_format_for_cpu", False):
                module.state_dict()  # brings the codes back as they are saved
            kept = getattr(state, "as_packed", None)
            if kept is not None:
                state.absmax, state.offset, state.state2, state.nested = kept
            elif not state.nested and state.absmax.ndim == 2:
                state.absmax = state.absmax.T.reshape(-1).float()


def _states(model: nn.Module, *, inside: bool = True) -> list[Any]:
    """What bitsandbytes knows of the 4-bit weights of a module, and of those inside."""
    weights = [getattr(module, "weight", None) for module in (model.modules() if inside else [model])]
    return [state for weight in weights if (state := getattr(weight, "quant_state", None)) is not None]


def unpacked_weight(module: Any) -> torch.Tensor:
    """The weight that a packed linear layer stands for, [outputs, inputs]; of another layer its own."""
    plain_layout_(module)
    return dequantize_module_weight(module).detach()


def plain_weight(module: Any) -> torch.Tensor:
    """Of a linear layer that is not packed, [outputs, inputs]."""
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight
