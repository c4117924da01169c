"""bitsandbytes quantization as a recipe: linear layers to NF4, FP4 or int8, heads and tied embeddings kept."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from transformers import BitsAndBytesConfig, PreTrainedModel

from hf_pe.anatomy import skeleton
from hf_pe.errors import UsageError, listed
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.progress import say
from hf_pe.quantize.coverage import unquantized
from hf_pe.quantize.mix import Offer, worth_most
from hf_pe.quantize.repair import repair_
from hf_pe.quantize.sensitivity import by_metric, estimated, lost_answers, measured
from hf_pe.quantizers import bnb as packing
from hf_pe.quantizers.bnb import BLOCK, OUTPUTS, Method, packable, packed_bits, unfit_widths
from hf_pe.recipe import Recipe, StageState
from hf_pe.report import percent
from hf_pe.surgery import main_dtype

Dtype = Literal["float32", "bfloat16", "float16"]
TITLES = {"nf4": "NF4", "fp4": "FP4", "int8": "int8"}
PAPERS = {
    "nf4": "https://arxiv.org/abs/2305.14314",
    "fp4": "https://arxiv.org/abs/2305.14314",
    "int8": "https://arxiv.org/abs/2208.07339",
}
REPAIR_PAPER = "https://arxiv.org/abs/2210.17323"
SENSITIVITIES = {"measured": measured, "metric": by_metric, "estimated": estimated}


class BitsAndBytesQuantization(Recipe):
    """Pack the linear layers into 4 bits (NF4, FP4) or 8 (int8), all of them or as many as a budget asks for.

    Compute and storage dtypes and the whole skip list are written into the config, so that a reload is equal.
    """

    tag = "bitsandbytes"
    changes = "precision"
    needs_plain_weights = "packed weights cannot be packed again"
    takes_custom_modules = False
    width_multiple = BLOCK

    recipe: Literal["quantize"] = "quantize"
    method: Method = "nf4"
    double_quantization: bool = Field(True, description="4 bits: 4.13 bits a weight in place of 4.5")
    outlier_threshold: float = Field(6.0, ge=0, description="int8: inputs above it are multiplied in 16 bits; 0: none")
    compute_dtype: Dtype | None = Field(None, description="4 bits: what is multiplied in; default: `dtype`")
    storage_dtype: Literal["uint8", "float32", "bfloat16", "float16"] = Field(
        "uint8", description="4 bits: of the tensors that hold the codes; FSDP wants that of the rest"
    )
    dtype: Dtype | None = Field(
        None, description="of all that is not packed; default: the model's, and bfloat16 under a budget"
    )
    skip: tuple[str, ...] = Field((), description="more modules to keep, by full name or last part")
    repair: Literal["none", "gptq"] | None = Field(
        None,
        description="4 bits: gptq chooses codes and scales by what flows into each layer, without training; default: "
        "where there are calibration rows",
    )
    mean_bits: float | None = Field(
        None, description="budget: bits a weight of those layers takes in the mean, scales included"
    )
    weight_bytes: int | None = Field(None, gt=0, description="budget: bytes of all weights of the model")
    sensitivity: Literal["measured", "metric", "estimated"] = Field(
        "measured",
        description="what a budget is spent by: how far answers move with one layer packed, how much worse the task's "
        "metric is then, or, for big models, how far that layer's outputs move, in one pass",
    )
    drift: float | None = Field(
        None,
        gt=0,
        description="refused where packing moves answers further than this: KL divergence, of embeddings 1 - cosine",
    )

    @model_validator(mode="after")
    def _fits(self) -> "BitsAndBytesQuantization":
        if self.repair == "gptq" and self.method == "int8":
            raise ValueError("repair is for 4 bits; expected method nf4 or fp4 with it, got int8. Leave out repair")
        if self.mean_bits is not None and self.weight_bytes is not None:
            raise ValueError("expected one budget, got mean_bits and weight_bytes. Leave one out")
        if self.mean_bits is not None and not self.bits <= self.mean_bits < 16:
            raise ValueError(
                f"mean_bits: expected at least {self.bits:.3g} (all layers {TITLES[self.method]}, scales included) and "
                f"less than 16, got {self.mean_bits:g}. For less, prune first"
            )
        return self

    @property
    def bits(self) -> float:
        """Bits a packed weight takes, scales included."""
        return packed_bits(self.method, double=self.double_quantization)

    @property
    def budgeted(self) -> bool:
        """Whether some layers stay because a budget has room for them."""
        return self.mean_bits is not None or self.weight_bytes is not None

    @property
    def needs_data(self) -> bool:
        """Whether calibration rows are."""
        return self.budgeted or self.repair == "gptq" or self.drift is not None

    @property
    def repairs(self) -> bool:
        """Whether packed weights are repaired, given calibration rows."""
        return self.method != "int8" and self.repair != "none"

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Which layers are packed, from the config alone; under a budget, how many bits they take together.

        Raises:
            UsageError: nothing can be packed, or the budget is below what packing everything takes.
        """
        spec, linear, _, kept_notes = self._layers(spec)
        bits = self.bits
        if self.budgeted:
            weights = sum(linear.values())
            bits += min(self._room(spec, linear) / weights, _own_bits(spec) - self.bits)
        after = replace(spec, bits=spec.bits | {f"{name}.weight": bits for name in linear})
        first = f"{len(linear)} linear layers in {TITLES[self.method]}"
        if self.budgeted:
            first = f"{len(linear)} linear layers at {bits:.3g} bits in the mean; which stay, the weights decide"
        return self._plan(after, (first, *kept_notes), exact=not self.budgeted), after

    def plan(self, state: StageState) -> Plan:
        """Return the plan of the dry run; under a budget, with the layers that stay: the most sensitive ones.

        Raises:
            UsageError: as above.
        """
        model, data, spec = state.model, state.task_data, state.spec
        if data is None and self.needs_data:
            raise UsageError(
                "quantize: a budget, repair and drift need calibration rows, got no data. Give data, or neither."
            )
        if data is None:
            return self.model_copy(update={"repair": "none"}).dry_run(spec)[0]
        if not self.budgeted:
            return self.dry_run(spec)[0]
        spec, linear, kept, kept_notes = self._layers(spec)
        room, extra = self._room(spec, linear), _own_bits(spec) - self.bits
        all_packed = self._packed(model, kept)
        if self.repairs:
            repair_(all_packed, model, list(linear), data)
        lost = SENSITIVITIES[self.sensitivity](model, all_packed, list(linear), data)
        offers = [Offer(name, _own_bits(spec), lost[name], count * extra) for name, count in linear.items()]
        taken = {each.layer: each for each in worth_most(offers, room)}
        staying = list(taken)
        bits = {name: taken[name].bits if name in taken else self.bits for name in linear}
        after = replace(spec, bits=spec.bits | {f"{n}.weight": b for n, b in bits.items() if n not in staying})
        took = sum(linear[name] * bits[name] for name in linear) / sum(linear.values())
        whole, spared = sum(lost.values()), sum(each.spared for each in taken.values())
        notes = (
            f"{len(linear) - len(staying)} of {len(linear)} linear layers in {TITLES[self.method]}: "
            f"{took:.3g} bits a weight in the mean",
            f"{len(staying)} kept by their {self.sensitivity} sensitivity",
            f"loss expected: {percent(1 - spared / max(whole, 1e-30))} of all packed",
            *kept_notes,
        )
        return self._plan(after, notes, exact=True, unpacked=(*kept, *staying), sensitivity=lost)

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Quantize a copy, through transformers' own loading; then repair it, where there are calibration rows.

        Raises:
            UsageError: its answers have moved further than `drift`.
        """
        model, data = state.model, state.task_data
        kept = list(plan.unpacked or self.kept_modules(model))
        made = self._packed(model, kept)
        if self.repairs and data is not None:
            rounded = repair_(made, model, packable(model, kept), data)
            if rounded:
                say(f"not repaired, no calibration row came by: {', '.join(rounded)}")
        if self.drift is not None and data is not None:
            moved = lost_answers(model, made, data)
            if not moved <= self.drift:
                more = "Give" if self.repair != "none" else "Repair the weights (repair: gptq), give"
                raise UsageError(
                    f"quantize.drift: packing moves answers by {moved:.3g}, expected at most {self.drift:g}. {more} "
                    "more bits (mean_bits, method: int8), or allow more."
                )
        return state.with_model(made)

    def kept_modules(self, model: PreTrainedModel) -> list[str]:
        """The skip list whatever the budget; see `hf_pe.quantizers.bnb.kept_modules`."""
        return packing.kept_modules(model, self.method, self.skip)

    def rest_dtype(self, own: Any) -> torch.dtype:
        """The dtype of what is not packed.

        Args:
            own: the model's, or its name; None is float32.
        """
        told = self.dtype or ("bfloat16" if self.budgeted else own or "float32")
        found: torch.dtype = getattr(torch, told) if isinstance(told, str) else told
        return found

    def settings(self, kept: list[str], dtype: torch.dtype) -> BitsAndBytesConfig:
        """As transformers is told.

        Args:
            kept: modules that are not packed.
            dtype: of these; computed in by default.
        """
        return packing.settings(
            self.method,
            kept=kept,
            double=self.double_quantization,
            compute_dtype=getattr(torch, self.compute_dtype) if self.compute_dtype else dtype,
            storage_dtype=getattr(torch, self.storage_dtype),
            threshold=self.outlier_threshold,
        )

    def _packed(self, model: PreTrainedModel, kept: list[str]) -> PreTrainedModel:
        dtype = self.rest_dtype(main_dtype(model))
        return packing.packed(model, self.settings(kept, dtype), dtype)

    def _layers(self, spec: ModelSpec) -> tuple[ModelSpec, dict[str, int], list[str], tuple[str, ...]]:
        """The spec in the dtype of the rest, the layers that can be packed with their weights, the other layers, and
        notes on these."""
        config = copy.deepcopy(spec.config)
        config.dtype = self.rest_dtype(config.dtype)
        spec = replace(spec, config=config)
        model = skeleton(spec.config, spec.model_class)
        kept = self.kept_modules(model)
        anyway = packing.kept_modules(model, "int8", self.skip)
        unfit = [name for name in unfit_widths(model, self.method) if name not in anyway]
        others = [name for name in kept if name not in unfit]
        notes = [f"kept as they are: {listed(others, layers_as_one=True)}"] if others else []
        if unfit:
            notes.append(
                f"kept because of their widths (4-bit kernels want inputs in multiples of {BLOCK} and outputs in "
                f"multiples of {OUTPUTS}): {listed(unfit, layers_as_one=True)}"
            )
        linear = {name: model.get_parameter(f"{name}.weight").numel() for name in packable(model, kept)}
        if not linear:
            raise UsageError(
                f"quantize: {spec.model_class.__name__} has no linear layer that {self.method} can pack; "
                f"{'; '.join(notes)}."
            )
        return spec, linear, kept, tuple(notes)

    def _room(self, spec: ModelSpec, linear: dict[str, int]) -> float:
        """Bits that the budget leaves above all of `linear` packed."""
        if self.mean_bits is not None:
            return (self.mean_bits - self.bits) * sum(linear.values())
        assert self.weight_bytes is not None
        least = spec_sizes(replace(spec, bits=dict.fromkeys((f"{name}.weight" for name in linear), self.bits)))
        room = self.weight_bytes - least["weight_bytes"]
        if room < 0:
            raise UsageError(
                f"quantize.weight_bytes: expected at least {least['weight_bytes']:,} (all {len(linear)} layers that "
                f"can be packed in {TITLES[self.method]}), got {self.weight_bytes:,}. Ask for more, or prune first."
            )
        return 8.0 * float(room)

    def _plan(self, after: ModelSpec, notes: Sequence[str], *, exact: bool, **more: Any) -> Plan:
        rest = unquantized(after)
        return self.planned(
            dequantizes=True,
            title=f"{TITLES[self.method]} quantization by bitsandbytes"
            + (", repaired by what flows in" if self.repairs else ""),
            exact=exact,
            notes=(*notes, rest.note),
            warnings=rest.warnings,
            references=(PAPERS[self.method], *((REPAIR_PAPER,) if self.repairs else ())),
            **spec_sizes(after),
            **more,
        )


def _own_bits(spec: ModelSpec) -> int:
    dtype: Any = spec.config.dtype
    return torch.finfo(dtype).bits
