"""Proves that a cut does what it says, for this very config, before anyone relies on it.

A tiny model of the same architecture, with lively weights, must give the same output with the units neutralised as
with those units cut out. The proof has power only if neutralising changes the output and a wrong cut is noticed.
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
from hf_pe.dummies.fields import LARGEST
from hf_pe.dummies.tiny import randomize_weights_, tiny, tiny_configs
from hf_pe.errors import UsageError, pass_on_memory_errors
from hf_pe.padding import classifies_rows_alone, name_padding_
from hf_pe.surgery import cut_config
from hf_pe.verify.comparison import TOLERANCE, Verification, compare
from hf_pe.verify.generation import depth_fault, generation_fault

NOT_THERE = "the axis is not found in a tiny instance"


def verify_cut(
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    axis: Axis,
    kept: Kept | None = None,
    *,
    generates: bool = True,
) -> Verification:
    """Prove the cut of `axis` alone on a tiny instance of `config`.

    Args:
        config, model_class: of the model.
        axis: that is cut.
        kept: of depth, the pattern; default: without a layer in the middle.
        generates: the model still has to generate; of several towers that may need a cut of the others as well.
    """
    return _verify_cut(Architecture.of(config, model_class), axis, _as_pattern(axis, kept), generates=generates)


def _as_pattern(axis: Axis, kept: Kept | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((stack, tuple(units)) for stack, units in kept.items()) if kept and axis.kind.is_depth else ()


def require_verified_cut(
    config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis, kept: Kept | None = None
) -> None:
    """Refuse the cut of `axis` where `verify_cut` finds none.

    Whether a model that lost layers still generates depends on all of its towers: see `require_generation`.

    Raises:
        UsageError: the proof does not hold.
    """
    pattern, generates = _as_pattern(axis, kept), not axis.kind.is_depth
    verification = _verify_cut(Architecture.of(config, model_class), axis, pattern, generates=generates)
    if not verification.holds:
        raise UsageError(
            f"Cutting '{axis.name}' of {model_class.__name__} could not be verified and is refused: "
            f"{verification.reason}. See `hf-pe inspect` for the axes that can be cut."
        )


def require_generation(
    config: PretrainedConfig, model_class: type[PreTrainedModel], kept: Mapping[str, Kept]
) -> tuple[str, ...]:
    """Refuse cuts of depth after which a model that generates cannot do so, or says other tokens with its cache.

    Args:
        config: of the model before.
        model_class: of the model.
        kept: the kept layers of each stack, by axis.

    Returns:
        A sentence where it could not be checked, else nothing.

    Raises:
        UsageError: it cannot generate any more.
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
        return Verification(axis.name, False, "needs the plug-in form (the stock config cannot say it)")
    if axis.size < 2 and not kept:
        return Verification(axis.name, False, "there is only one")
    first = found = None
    try:
        for small, again in tiny_configs(config, depth=axis.kind.is_depth):
            if again and found is not None and not math.isnan(found.effect):
                continue
            found = _on_tiny_model(small, model_class, axis, kept, generates)
            if found.holds or found.error > TOLERANCE:
                return found
            first = first or found  # it could not be run, or says nothing: a larger one may
        if first is not None and first.reason == NOT_THERE and not axis.kind.is_depth:  # Jamba's only attention is deep
            return _on_tiny_model(tiny(config, depth=True), model_class, axis, kept, generates)
    except Exception as error:  # a config that cannot be made smaller in this way
        pass_on_memory_errors(error)
        first = first or Verification(axis.name, False, f"the proof could not run: {type(error).__name__}: {error}")
    assert first is not None
    return first


def _on_tiny_model(
    config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis, kept: Kept, generates: bool
) -> Verification:
    try:
        if sum(p.numel() for p in meta_model(config, model_class).parameters()) > LARGEST:
            return Verification(axis.name, False, f"an instance that can be built has more than {LARGEST:,} parameters")
        if classifies_rows_alone(config, model_class):
            name_padding_(config, 0)  # no input has it
        model = randomize_weights_(model_class(copy.deepcopy(config)))
        found = [a for a in discover(config, model_class).axes if a.name == axis.name]
        if not found:
            return Verification(axis.name, False, NOT_THERE)
        kept = kept or _pattern(found[0], model)
        verification = compare(model, found[0], kept)
        after = cut_config(config, found[0], len(next(iter(kept.values()))), kept)
        fault = generation_fault(config, after, model_class) if verification.holds and generates else ""
        return (
            replace(verification, holds=False, reason=f"cut alone, it cannot generate: {fault}", error=math.inf)
            if fault
            else verification
        )
    except Exception as error:  # whatever stops the proof is the reason why the axis is refused
        pass_on_memory_errors(error)
        return Verification(axis.name, False, f"the proof could not run: {type(error).__name__}: {error}")


def _pattern(axis: Axis, model: PreTrainedModel) -> Kept:
    """Return a fraction of the units, different ones per group; for depth all but a middle removable layer."""
    if axis.kind.is_depth:
        free = removable_layers(model.config, type(model), axis)
        if not free:
            raise ValueError("each layer is built in another way than its neighbours")
        gone = free[len(free) // 2]
        return {group: [i for i in range(axis.size) if i != gone] for group in axis.groups}
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
    """The config and all its parts."""
    yield config
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            yield from _configs(part)
