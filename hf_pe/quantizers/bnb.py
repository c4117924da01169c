"""Wrap bitsandbytes: NF4 and FP4 in blocks of 64 weights, int8 by row."""

from typing import Any, ClassVar

import bitsandbytes.functional as bnb
import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from hf_pe.quantizers.base import Encode, Method, QuantizationSettings, Quantizer, layer_shapes

BLOCK = 64
"""Weights per 4-bit scale (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""
OUTER_BLOCK = 256
"""Number of scales that share a scale in double quantization (the same paper)."""
OUTPUTS = 32
"""Number of outputs that bitsandbytes' 4-bit kernel for CPUs with AVX-512 computes at once; it needs a multiple."""
QLORA, LLM_INT8 = "https://arxiv.org/abs/2305.14314", "https://arxiv.org/abs/2208.07339"


class BitsAndBytes(Quantizer):
    """Quantize to 4 bits (NF4, FP4) or 8 bits (LLM.int8) by bitsandbytes."""

    name = "bitsandbytes"
    tag = "bitsandbytes"
    config_names = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
    methods: ClassVar = {
        "nf4": Method("NF4", QLORA, has_grid=True),
        "fp4": Method("FP4", QLORA, has_grid=True),
        "int8": Method("int8", LLM_INT8),
    }
    block = input_multiple = BLOCK
    shape_attribute = "quant_state.shape"
    unfit_reason = f"4-bit kernels need inputs in multiples of {BLOCK} and outputs in multiples of {OUTPUTS}"

    def bits(self, settings: QuantizationSettings) -> float:
        """Return 8, or 4 plus the bits of the block's scales per weight."""
        if settings.method == "int8":
            return 8.0
        return 4 + (8 / BLOCK + 32 / (BLOCK * OUTER_BLOCK) if settings.double_quantization else 32 / BLOCK)

    def unfit_layers(self, model: PreTrainedModel, method: str) -> list[str]:
        """Return the linear layers whose widths bitsandbytes' 4-bit kernels do not support on every machine.

        The kernel for CPUs with AVX-512 reads inputs block by block and computes outputs 32 by 32. A result has to load
        on any machine, so such layers keep their weights on all of them. 8 bits support any width.
        """
        if method == "int8":
            return []
        shapes = layer_shapes(model, self.quantizable_layers(model))
        return [name for name, (outputs, inputs) in shapes.items() if outputs % OUTPUTS or inputs % BLOCK]

    def config(self, settings: QuantizationSettings) -> BitsAndBytesConfig:
        """Return the config for transformers.

        `outlier_threshold` is the threshold of Dettmers et al. 2022, arXiv:2208.07339, section 3.2.
        """
        eight = settings.method == "int8"
        kept = settings.modules_to_not_convert
        return BitsAndBytesConfig(
            load_in_4bit=not eight,
            load_in_8bit=eight,
            llm_int8_threshold=settings.outlier_threshold,
            bnb_4bit_quant_type="nf4" if eight else settings.method,
            bnb_4bit_use_double_quant=settings.double_quantization,
            bnb_4bit_compute_dtype=settings.compute_dtype,
            bnb_4bit_quant_storage=settings.storage_dtype,
            llm_int8_skip_modules=None if kept is None else list(kept),
        )

    def is_quantized(self, module: nn.Module) -> bool:
        """Return whether transformers has replaced this layer by one of bitsandbytes."""
        return hasattr(module, "source_cls")

    def weight(self, module: nn.Module) -> torch.Tensor:
        """Return the dequantized weight, of shape (outputs, inputs)."""
        self.restore_layout_(module)
        return dequantize_module_weight(module).detach()

    def scale_bytes(self, module: nn.Module) -> int:
        """Return the bytes of the scales of 4-bit weights, which are stored beside the parameters."""
        states = [getattr(parameter, "quant_state", None) for parameter in module.parameters()]
        return sum(_state_bytes(state) for state in states if state is not None)

    def remember_layout_(self, model: nn.Module) -> None:
        """Record the current scales of 4-bit weights."""
        for state in _states(model):
            if not getattr(state, "packing_format_for_cpu", False):
                state.original_scales = (state.absmax, state.offset, state.state2, state.nested)

    def restore_layout_(self, model: nn.Module) -> None:
        """Undo the new layout that bitsandbytes gives 4-bit weights in their first forward pass on a CPU.

        The kernel for that layout has no backward pass, so training would silently use wrong gradients. The layout also
        rounds scales, and without double quantization they are saved in the wrong order (bitsandbytes 0.50), so that
        the saved model would have other outputs.
        """
        for module in model.modules():
            for state in _states(module, inside=False):
                if getattr(state, "packing_format_for_cpu", False):
                    module.state_dict()  # restores the layout of the codes
                kept = getattr(state, "original_scales", None)
                if kept is not None:
                    state.absmax, state.offset, state.state2, state.nested = kept
                elif not state.nested and state.absmax.ndim == 2:
                    state.absmax = state.absmax.T.reshape(-1).float()

    def encode_(self, module: nn.Module, encode: Encode) -> None:
        """Replace codes and scales of a 4-bit weight; a byte has two codes, the first one in its higher half."""
        quantized: Any = module.weight
        state = quantized.quant_state

        def stored(scales: torch.Tensor) -> torch.Tensor:
            if not state.nested:
                state.absmax = scales.flatten()
                return scales
            state.offset = scales.mean()
            state.absmax, state.state2 = bnb.quantize_blockwise(scales.flatten() - state.offset, blocksize=OUTER_BLOCK)
            rounded: torch.Tensor = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
            return rounded.view_as(scales)

        pairs = encode(state.code.float(), stored).to(torch.uint8).flatten()
        halves = (pairs[::2] << 4 | pairs[1::2])[:, None].contiguous()
        quantized.data = halves.flatten().view(quantized.dtype).view(quantized.shape)


def _states(model: nn.Module, *, inside: bool = True) -> list[Any]:
    """Return the quantization states of the 4-bit weights of a module and, by default, of the modules inside it."""
    weights = [getattr(module, "weight", None) for module in (model.modules() if inside else [model])]
    return [state for weight in weights if (state := getattr(weight, "quant_state", None)) is not None]


def _state_bytes(state: Any) -> int:
    return int(state.absmax.nbytes) + (int(state.state2.absmax.nbytes) if state.nested else 0)
