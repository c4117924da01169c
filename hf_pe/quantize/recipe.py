"""Define the recipe that quantizes linear layers to NF4, FP4 or int8, and keeps heads and tied embeddings."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from hf_pe.errors import UsageError
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.progress import say
from hf_pe.quantize.coverage import unquantized
from hf_pe.quantize.layers import LinearLayers, linear_layers
from hf_pe.quantize.mix import keep_most_sensitive
from hf_pe.quantize.refit import refit_
from hf_pe.quantize.sensitivity import by_metric, estimated, measured, output_change
from hf_pe.quantizers.base import Method, QuantizationSettings, Quantizer
from hf_pe.quantizers.bnb import BitsAndBytes
from hf_pe.quantizers.registry import METHODS, MethodName
from hf_pe.recipe import Recipe, StageState
from hf_pe.surgery import main_dtype
from hf_pe.tasks import TaskData

Dtype = Literal["float32", "bfloat16", "float16"]
REFIT_PAPER = "https://arxiv.org/abs/2210.17323"
SENSITIVITIES = {"measured": measured, "metric": by_metric, "estimated": estimated}


class BitsAndBytesQuantization(Recipe):
    """Quantize linear layers to 4 bits (NF4, FP4) or 8 bits (int8): all of them, or as many as a budget requires.

    Compute dtype, storage dtype and the complete skip list are written into the config, so that a reloaded model is
    equal.
    """

    tag = BitsAndBytes.tag
    changes = "precision"
    needs_plain_weights = "quantized weights cannot be quantized again"
    takes_custom_modules = False
    width_multiple = BitsAndBytes.input_multiple
    old_names: ClassVar = {"repair": "refit", "drift": "max_kl"}

    recipe: Literal["quantize"] = "quantize"
    method: MethodName = Field("nf4", description="format of the quantized weights")
    double_quantization: bool = Field(True, description="4 bits: 4.13 instead of 4.5 bits per weight")
    outlier_threshold: float = Field(
        6.0, ge=0, description="int8: larger inputs are multiplied in 16 bits; 0: none are"
    )
    compute_dtype: Dtype | None = Field(None, description="4 bits: dtype of matrix products; default: `dtype`")
    storage_dtype: Literal["uint8", "float32", "bfloat16", "float16"] = Field(
        "uint8", description="4 bits: dtype of the tensors with the codes; FSDP needs it to be `dtype`"
    )
    dtype: Dtype | None = Field(
        None, description="dtype of the other weights; default: the model's, and bfloat16 under a budget"
    )
    skip: tuple[str, ...] = Field((), description="further modules that are not quantized, by full name or last part")
    refit: Literal["none", "gptq"] | None = Field(
        None,
        description="4 bits: gptq chooses codes and scales by the inputs of each layer, without training; default: "
        "gptq where there are calibration rows",
    )
    mean_bits: float | None = Field(None, description="budget: mean bits per weight of those layers, scales included")
    weight_bytes: int | None = Field(None, gt=0, description="budget: bytes of all weights of the model")
    sensitivity: Literal["measured", "metric", "estimated"] = Field(
        "measured",
        description="how a budget ranks layers. With only one layer quantized at a time: measured takes the change of "
        "the model's outputs, metric the loss of the task's metric; estimated takes the change of the layer's own "
        "outputs, in one pass, for large models",
    )
    max_kl: float | None = Field(
        None,
        gt=0,
        description="refuse a result whose outputs differ more than this from those before: KL divergence, for "
        "embeddings 1 - cosine",
    )

    @model_validator(mode="after")
    def _fits(self) -> "BitsAndBytesQuantization":
        if problem := _contradiction(self):
            raise ValueError(problem)
        return self

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer that has the method."""
        return METHODS[self.method]

    @property
    def format(self) -> Method:
        """The record of the method."""
        return self.quantizer.methods[self.method]

    @property
    def bits(self) -> float:
        """The bits of a quantized weight, scales included."""
        return self.quantizer.bits(self.settings(None))

    @property
    def budgeted(self) -> bool:
        """Whether a budget decides which layers are quantized."""
        return self.mean_bits is not None or self.weight_bytes is not None

    @property
    def needs_data(self) -> bool:
        """Whether the settings need calibration rows."""
        return self.budgeted or self.refit == "gptq" or self.max_kl is not None

    @property
    def refits(self) -> bool:
        """Whether quantized weights are refitted where there are calibration rows."""
        return self.format.has_grid and self.refit != "none"

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Compute the sizes after quantization from the config alone; under a budget their sum only.

        Raises:
            UsageError: No layer can be quantized, or the budget is smaller than the model with all layers quantized.
        """
        layers = self._layers(spec)
        bits, count = self.bits, len(layers.weights)
        first = f"{count} linear layers in {self.format.title}"
        if self.budgeted:
            bits += min(self._room(layers) / layers.total, layers.own_bits - self.bits)
            first = f"{count} linear layers at {bits:.3g} bits on average; the weights decide which are kept"
        after = layers.with_bits(dict.fromkeys(layers.weights, bits))
        return self._plan(after, (first, *layers.notes), exact=not self.budgeted), after

    def plan(self, state: StageState) -> Plan:
        """Return the plan of the dry run; under a budget, a plan that keeps the most sensitive layers.

        Raises:
            UsageError: See `dry_run`; or there are no calibration rows and the settings need them.
        """
        data = state.task_data
        if data is None and self.needs_data:
            raise UsageError(
                "quantize: a budget, refit and max_kl need calibration rows, got no data. Give data, or leave them out."
            )
        if data is None:
            return self.model_copy(update={"refit": "none"}).dry_run(state.spec)[0]
        if not self.budgeted:
            return self.dry_run(state.spec)[0]
        return self._plan_mixed(state.model, data, self._layers(state.spec))

    def _plan_mixed(self, model: PreTrainedModel, data: TaskData, layers: LinearLayers) -> Plan:
        """Return the plan that keeps the most sensitive layers, as far as the budget has room for them."""
        names = list(layers.weights)
        all_quantized = self._quantized(model, layers.kept)
        if self.refits:
            refit_(all_quantized, model, names, data, self.quantizer)
        lost = SENSITIVITIES[self.sensitivity](model, all_quantized, names, data)
        mix = keep_most_sensitive(layers, lost, self._room(layers), self.bits)
        notes = (*mix.notes(self.format.title, self.sensitivity), *layers.notes)
        return self._plan(
            mix.spec, notes, exact=True, modules_to_not_convert=(*layers.kept, *mix.kept), sensitivity=lost
        )

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Quantize a copy through transformers' own loading, then refit it where there are calibration rows.

        Raises:
            UsageError: Its outputs differ by more than `max_kl` from the model's.
        """
        model, data = state.model, state.task_data
        kept = list(plan.modules_to_not_convert or self.modules_to_not_convert(model))
        result = self._quantized(model, kept)
        if self.refits and data is not None:
            rounded = refit_(result, model, self.quantizer.quantizable_layers(model, kept), data, self.quantizer)
            if rounded:
                say(f"not refitted, since no calibration row reaches them: {', '.join(rounded)}")
        if self.max_kl is not None and data is not None:
            _require_small_divergence(output_change(model, result, data), self.max_kl, refitted=self.refit != "none")
        return state.with_model(result)

    def modules_to_not_convert(self, model: PreTrainedModel) -> list[str]:
        """Return the skip list without regard to a budget; see `hf_pe.quantizers.base.Quantizer.kept_layers`."""
        return self.quantizer.kept_layers(model, self.method, self.skip)

    def rest_dtype(self, own: Any) -> torch.dtype:
        """Return the dtype of the weights that are not quantized.

        Args:
            own: Dtype of the model, or its name; None stands for float32.
        """
        dtype = self.dtype or ("bfloat16" if self.budgeted else own or "float32")
        rest: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return rest

    def settings(self, kept: list[str] | None, dtype: torch.dtype | None = None) -> QuantizationSettings:
        """Return the settings for the quantizer.

        Args:
            kept: Modules that are not quantized.
            dtype: Their dtype, which is also the default of `compute_dtype`.
        """
        return QuantizationSettings(
            self.method,
            modules_to_not_convert=kept,
            double_quantization=self.double_quantization,
            compute_dtype=getattr(torch, self.compute_dtype) if self.compute_dtype else dtype,
            storage_dtype=getattr(torch, self.storage_dtype),
            outlier_threshold=self.outlier_threshold,
        )

    def _quantized(self, model: PreTrainedModel, kept: list[str]) -> PreTrainedModel:
        dtype = self.rest_dtype(main_dtype(model))
        return self.quantizer.quantized(model, self.settings(kept, dtype), dtype)

    def _layers(self, spec: ModelSpec) -> LinearLayers:
        """Return the linear layers of the model in the dtype of the weights that are not quantized."""
        config = copy.deepcopy(spec.config)
        config.dtype = self.rest_dtype(config.dtype)
        return linear_layers(replace(spec, config=config), self.quantizer, self.method, self.skip)

    def _room(self, layers: LinearLayers) -> float:
        """Return the bits that the budget leaves above those of the model with all layers quantized."""
        if self.mean_bits is not None:
            return (self.mean_bits - self.bits) * layers.total
        return layers.bits_left(self.weight_bytes or 0, self.bits, self.format.title)

    def _plan(self, after: ModelSpec, notes: Sequence[str], *, exact: bool, **more: Any) -> Plan:
        rest = unquantized(after)
        return self.planned(
            tag=self.quantizer.tag,
            dequantizes=True,
            title=f"{self.format.title} quantization by {self.quantizer.name}"
            + (", refitted by GPTQ" if self.refits else ""),
            exact=exact,
            notes=(*notes, *rest.notes),
            warnings=rest.warnings(self.quantizer.name),
            references=(self.format.reference, *((REFIT_PAPER,) if self.refits else ())),
            **spec_sizes(after),
            **more,
        )


def _with_grid() -> list[str]:
    return [method for method, quantizer in METHODS.items() if quantizer.methods[method].has_grid]


def _require_small_divergence(divergence: float, limit: float, *, refitted: bool) -> None:
    if not divergence <= limit:
        way_out = "Use" if refitted else "Refit the weights (refit: gptq), use"
        raise UsageError(
            f"quantize.max_kl: quantization changes the outputs by {divergence:.3g}, expected at most {limit:g}. "
            f"{way_out} more bits (mean_bits, method: int8), or raise max_kl."
        )


def _contradiction(recipe: BitsAndBytesQuantization) -> str:
    """Return which settings contradict each other, and the way out; "" where none do."""
    if recipe.refit == "gptq" and not recipe.format.has_grid:
        expected = " or ".join(_with_grid())
        return f"refit is for 4 bits; expected method {expected} with it, got {recipe.method}. Leave out refit"
    if recipe.mean_bits is not None and recipe.weight_bytes is not None:
        return "expected one budget, got mean_bits and weight_bytes. Leave one out"
    if recipe.mean_bits is not None and not recipe.bits <= recipe.mean_bits < 16:
        least = f"{recipe.bits:.3g} (all layers {recipe.format.title}, scales included)"
        return f"mean_bits: expected at least {least} and less than 16, got {recipe.mean_bits:g}. For less, prune first"
    return ""
