"""Verifies that units can be cut from a model of a given config, before any cut is made.

A tiny model of the same architecture with random weights has to give the same outputs with some units cut out as with
these units ablated. The check has power only where the ablation changes the outputs, and where a cut that is wrong on
purpose changes them too; otherwise the axis is refused.
"""

import copy
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import (
    EXPERT_STEP,
    Architecture,
    Axis,
    discover,
    meta_model,
    rows_in_place,
    tokens_named,
)
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.depth import removable_layers
from hf_pe.dummies.fields import MAX_PARAMETERS
from hf_pe.dummies.tiny import randomize_weights_, tiny, tiny_configs
from hf_pe.errors import UsageError, pass_on_memory_errors
from hf_pe.padding import classifies_rows_alone, name_padding_
from hf_pe.surgery import cut_config
from hf_pe.verify.comparison import TOLERANCE, Verification, compare
from hf_pe.verify.generation import depth_fault, generation_fault

NOT_IN_TINY_MODEL = "a tiny model does not have the axis"


def verify_cut(
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    axis: Axis,
    kept: Kept | None = None,
    *,
    generates: bool = True,
) -> Verification:
    """Verify a cut of `axis` alone on a tiny model.

    Args:
        config: of the model.
        model_class: of the model.
        axis: that is cut.
        kept: the kept layers, where depth is cut; default: all but one in the middle.
        generates: also verify that the model still generates, which may need a cut of other towers as well.
    """
    return _verify_cut(Architecture.of(config, model_class), axis, _as_pattern(axis, kept), generates=generates)


def _as_pattern(axis: Axis, kept: Kept | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((stack, tuple(units)) for stack, units in kept.items()) if kept and axis.kind.is_depth else ()


def require_verified_cut(
    config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis, kept: Kept | None = None
) -> None:
    """Refuse a cut of `axis` that `verify_cut` does not verify.

    Whether a model that lost layers still generates depends on all of its towers; see `require_generation`.

    Raises:
        UsageError: the cut is not verified.
    """
    pattern, generates = _as_pattern(axis, kept), not axis.kind.is_depth
    verification = _verify_cut(Architecture.of(config, model_class), axis, pattern, generates=generates)
    if not verification.holds:
        raise UsageError(
            f"Cutting '{axis.name}' of {model_class.__name__} could not be verified and is refused: "
            f"{verification.reason}. `hf-pe inspect` lists the axes that can be cut."
        )


def require_generation(
    config: PretrainedConfig, model_class: type[PreTrainedModel], kept: Mapping[str, Kept]
) -> tuple[str, ...]:
    """Refuse cuts of depth after which a model no longer generates, or generates other tokens with its cache.

    Args:
        config: of the model before.
        model_class: of the model.
        kept: the kept layers of each stack, by axis.

    Returns:
        A note where generation could not be checked, else nothing.

    Raises:
        UsageError: the model would no longer generate.
    """
    after = config
    for name, layers in kept.items():
        axis = next(axis for axis in discover(after, model_class).axes if axis.name == name)
        after = cut_config(after, axis, len(next(iter(layers.values()))), layers)
    fault = depth_fault(config, after, model_class) if kept else ""
    if fault:
        raise UsageError(
            f"Cutting {', '.join(kept)} of {model_class.__name__} like this leaves a model that cannot generate: "
            f"{fault}. Keep other layers, or as many in each tower."
        )
    if fault is not None:
        return ()
    return (
        f"whether {model_class.__name__} still generates could not be checked: no tiny model of this kind generates",
    )


@functools.lru_cache(maxsize=256)
def _verify_cut(
    architecture: Architecture, axis: Axis, pattern: tuple[tuple[str, tuple[int, ...]], ...], *, generates: bool
) -> Verification:
    config, model_class, kept = architecture.config, architecture.model_class, dict(pattern)
    if not axis.native:
        return Verification(axis.name, False, "the stock config cannot express a smaller size")
    if axis.size < 2 and not kept:
        return Verification(axis.name, False, "there is only one unit")
    first = latest = None
    try:
        for small, other_sections in tiny_configs(config, depth=axis.kind.is_depth):
            if other_sections and latest is not None and not math.isnan(latest.effect):
                continue
            latest = _on_tiny_model(small, model_class, axis, kept, generates)
            if latest.holds or latest.error > TOLERANCE:
                return latest
            first = first or latest  # a larger model may run, or show an effect
        is_absent = first is not None and first.reason == NOT_IN_TINY_MODEL
        if is_absent and not axis.kind.is_depth:  # Jamba has attention in deep layers only
            return _on_tiny_model(tiny(config, depth=True), model_class, axis, kept, generates)
    except Exception as error:  # the config cannot be made smaller in this way
        pass_on_memory_errors(error)
        first = first or Verification(axis.name, False, f"verification failed with {type(error).__name__}: {error}")
    assert first is not None
    return first


def _on_tiny_model(
    config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis, kept: Kept, generates: bool
) -> Verification:
    try:
        if sum(p.numel() for p in meta_model(config, model_class).parameters()) > MAX_PARAMETERS:
            return Verification(axis.name, False, f"the smallest model has more than {MAX_PARAMETERS:,} parameters")
        if classifies_rows_alone(config, model_class):
            name_padding_(config, 0)  # no input has this token
        model = randomize_weights_(model_class(copy.deepcopy(config)))
        own_axis = next((a for a in discover(config, model_class).axes if a.name == axis.name), None)
        if own_axis is None:
            return Verification(axis.name, False, NOT_IN_TINY_MODEL)
        kept = kept or _pattern(own_axis, model)
        verification = compare(model, own_axis, kept)
        after = cut_config(config, own_axis, len(next(iter(kept.values()))), kept)
        fault = generation_fault(config, after, model_class) if verification.holds and generates else ""
        if fault:
            reason = f"after a cut of this axis alone, the model cannot generate: {fault}"
            return replace(verification, holds=False, reason=reason, error=math.inf)
        return verification
    except Exception as error:  # any error here is the reason why the axis is refused
        pass_on_memory_errors(error)
        return Verification(axis.name, False, f"verification failed with {type(error).__name__}: {error}")


def _pattern(axis: Axis, model: PreTrainedModel) -> Kept:
    """Return the units that verification keeps: a fraction, different ones per group; for depth all layers but one."""
    if axis.kind.is_depth:
        removable = removable_layers(model.config, type(model), axis)
        if not removable:
            raise ValueError("each layer is built in another way than its neighbours")
        removed = removable[len(removable) // 2]
        return {group: [i for i in range(axis.size) if i != removed] for group in axis.groups}
    draw = torch.Generator().manual_seed(1)
    numerator, denominator = axis.kind.kept_fraction
    count = max(axis.size * numerator // denominator, 1)
    count -= count % (EXPERT_STEP if axis.in_experts else axis.size_multiple)
    drawn = {g: axis.top_units(g, torch.rand(axis.size, generator=draw), count) for g in axis.groups}
    if axis.kind.is_vocabulary:
        named = {i for part in _configs(model.config) for i in tokens_named(part.to_dict())}
        named |= {*range(rows_in_place(model, {slot.name.rpartition(".")[0] for slot in axis.slots}))}
        drawn = {g: [*units, *(i for i in named if i < axis.size)] for g, units in drawn.items()}
    return {g: sorted({*units}) for g, units in drawn.items()}


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Yield the config and all its sub-configs."""
    yield config
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            yield from _configs(part)
