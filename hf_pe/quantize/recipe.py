"""bitsandbytes quantization as a recipe: linear layers to NF4 or int8, heads and tied embeddings kept."""

import tempfile
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from hf_pe.anatomy import skeleton
from hf_pe.errors import UsageError
from hf_pe.measure import sketch_size
from hf_pe.plans import Frozen, Plan, Sketch
from hf_pe.tasks import TaskData

BLOCK, OUTER_BLOCK = 64, 256
"""Weights per 4-bit scale, and scales per scale of scales (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""


class BitsAndBytesQuantization(Frozen):
    """Pack the linear layers into 4 bits (NF4) or 8 (int8).

    Compute and storage dtypes and the whole skip list are written into the config, so that a reload is equal.
    """

    recipe: Literal["quantize"] = "quantize"
    method: Literal["nf4", "int8"] = "nf4"
    double_quantization: bool = Field(True, description="NF4: 4.13 bits a weight in place of 4.5")
    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="default: the model's")
    skip: tuple[str, ...] = Field((), description="more modules to keep, by full name or last part")

    @property
    def bits(self) -> float:
        """Bits a packed weight takes, scales included."""
        if self.method == "int8":
            return 8.0
        return 4 + (8 / BLOCK + 32 / (BLOCK * OUTER_BLOCK) if self.double_quantization else 32 / BLOCK)

    def outline(self, sketch: Sketch) -> tuple[Plan, Sketch]:
        """Which layers are packed, from the config alone."""
        model = skeleton(sketch.config, sketch.model_class)
        kept = self.kept_modules(model)
        packed = _packable(model, kept)
        if not packed:
            raise UsageError(
                f"quantize: {sketch.model_class.__name__} has no linear layer that {self.method} can pack."
            )
        bits = sketch.bits | {f"{name}.weight": self.bits for name in packed}
        after = replace(sketch, bits=bits)
        plan = Plan(
            recipe="quantize",
            title=f"{'NF4' if self.method == 'nf4' else 'int8'} quantization by bitsandbytes",
            exact=True,
            notes=(f"{len(packed)} linear layers packed", f"kept as they are: {', '.join(kept) or 'none'}"),
            references=(
                "https://arxiv.org/abs/2305.14314" if self.method == "nf4" else "https://arxiv.org/abs/2208.07339",
            ),
            **sketch_size(after),
        )
        return plan, after

    def plan(self, model: PreTrainedModel, data: TaskData) -> Plan:
        """The outline: the skip list follows from the architecture."""
        return self.outline(Sketch(config=model.config, model_class=type(model)))[0]

    def apply(self, model: PreTrainedModel, plan: Plan, data: TaskData) -> PreTrainedModel:
        """Quantize a copy, through transformers' own loading."""
        settings = BitsAndBytesConfig(
            load_in_4bit=self.method == "nf4",
            load_in_8bit=self.method == "int8",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.double_quantization,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype) if self.compute_dtype else model.dtype,
            bnb_4bit_quant_storage=torch.uint8,
            llm_int8_skip_modules=self.kept_modules(model),
        )
        with tempfile.TemporaryDirectory() as work:
            model.save_pretrained(work)
            packed = type(model).from_pretrained(work, quantization_config=settings, dtype=model.dtype)
        packed.config._name_or_path = model.config._name_or_path
        return packed.eval()  # type: ignore[no-any-return]

    def kept_modules(self, model: PreTrainedModel) -> list[str]:
        """The whole skip list: transformers' own, ties, everything outside the backbone (heads), the user's.

        And for NF4 what bitsandbytes' CPU kernel cannot multiply: input widths that are no whole number of blocks.
        """
        default = {name.removesuffix(".bias") for name in get_keys_to_not_convert(model)}
        inside = model.base_model_prefix + "."
        has_backbone = model.base_model is not model
        heads = {n for n, m in model.named_modules() if _linear(m) and has_backbone and not n.startswith(inside)}
        linear = {n for n, m in model.named_modules() if _linear(m)}
        if not has_backbone:  # transformers' "last module" is a head only where there is one
            default -= linear
        odd = {n for n in linear if self.method == "nf4" and _inputs(model.get_submodule(n)) % BLOCK}
        return sorted((default & linear) | heads | odd | {n for n in linear if n.endswith(self.skip)})


def _packable(model: PreTrainedModel, kept: list[str]) -> list[str]:
    return [n for n, m in model.named_modules() if _linear(m) and n not in kept]


def _linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _inputs(module: Any) -> int:
    return int(module.nx if isinstance(module, Conv1D) else module.in_features)
