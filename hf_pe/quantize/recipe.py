"""bitsandbytes quantization as a recipe: linear layers to NF4 or int8, heads and tied embeddings kept."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel

from hf_pe.anatomy import skeleton
from hf_pe.errors import UsageError
from hf_pe.measure import sketch_size
from hf_pe.packing import BLOCK, is_linear, kept_modules, packed
from hf_pe.plans import Frozen, Plan, Sketch
from hf_pe.tasks import TaskData

OUTER_BLOCK = 256
"""Scales per scale of scales (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""


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
        linear = _packable(model, kept)
        if not linear:
            raise UsageError(
                f"quantize: {sketch.model_class.__name__} has no linear layer that {self.method} can pack."
            )
        bits = sketch.bits | {f"{name}.weight": self.bits for name in linear}
        after = replace(sketch, bits=bits)
        plan = Plan(
            recipe="quantize",
            title=f"{'NF4' if self.method == 'nf4' else 'int8'} quantization by bitsandbytes",
            exact=True,
            notes=(f"{len(linear)} linear layers packed", f"kept as they are: {', '.join(kept) or 'none'}"),
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
        dtype = getattr(torch, self.compute_dtype) if self.compute_dtype else None
        return packed(
            model, self.method, kept=self.kept_modules(model), double=self.double_quantization, compute_dtype=dtype
        )

    def kept_modules(self, model: PreTrainedModel) -> list[str]:
        """The whole skip list; see `hf_pe.packing.kept_modules`."""
        return kept_modules(model, self.method, self.skip)


def _packable(model: PreTrainedModel, kept: list[str]) -> list[str]:
    return [n for n, m in model.named_modules() if is_linear(m) and n not in kept]
