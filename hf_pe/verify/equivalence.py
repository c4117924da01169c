"""Proves that a cut does what it says, for this very config, before anyone relies on it.

A tiny model of the same architecture, with lively weights, must give the same output with the units neutralised as
with those units cut out. The proof has power only if neutralising changes the output and a wrong cut is noticed.
"""

import copy
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import (
    EVERYWHERE,
    EXPERT_STEP,
    Architecture,
    Axis,
    discover,
    rows_in_place,
    skeleton,
    tokens_named,
)
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.depth import removable_layers
from hf_pe.dummies.fields import LARGEST
from hf_pe.dummies.inputs import ended, possible_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import instances, lively, tiny
from hf_pe.errors import UsageError, pass_on_memory_errors
from hf_pe.padding import classifies_rows_alone, name_padding_
from hf_pe.surgery import cut, cut_config
from hf_pe.verify.ablate import ablated, narrowed_outputs
from hf_pe.verify.generation import depth_fault, generation_fault
from hf_pe.verify.wrong_cuts import wrong_cuts

TOLERANCE = 1e-5
"""Largest relative difference, in float32, between neutralised and cut."""
EFFECT = 1e-2
"""Smallest relative change that neutralising must make, and that a wrong cut must show."""
NOT_THERE = "the axis is not found in a tiny instance"


@dataclass(frozen=True)
class Proof:
    """The outcome for one axis: relative differences, and the reason where it does not hold."""

    axis: str
    holds: bool
    reason: str = ""
    error: float = float("nan")
    effect: float = float("nan")
    sabotage: float = float("nan")


def prove(
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    axis: Axis,
    kept: Kept | None = None,
    *,
    generates: bool = True,
) -> Proof:
    """Prove the cut of `axis` alone on a tiny instance of `config`.

    Args:
        config, model_class: of the model.
        axis: that is cut.
        kept: of depth, the pattern; default: without a layer in the middle.
        generates: the model still has to generate; of several towers that may need a cut of the others as well.
    """
    return _prove(Architecture.of(config, model_class), axis, _as_pattern(axis, kept), generates=generates)


def _as_pattern(axis: Axis, kept: Kept | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((stack, tuple(units)) for stack, units in kept.items()) if kept and axis.kind == "layers" else ()


def require_proof(
    config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis, kept: Kept | None = None
) -> None:
    """Refuse the cut of `axis` where `prove` finds none.

    Whether a model that lost layers still generates depends on all of its towers: see `require_generation`.

    Raises:
        UsageError: the proof does not hold.
    """
    pattern, generates = _as_pattern(axis, kept), axis.kind != "layers"
    proof = _prove(Architecture.of(config, model_class), axis, pattern, generates=generates)
    if not proof.holds:
        raise UsageError(
            f"Cutting '{axis.name}' of {model_class.__name__} could not be proved and is refused: {proof.reason}. See "
            "`hf-pe inspect` for the axes that can be cut."
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
def _prove(
    architecture: Architecture, axis: Axis, pattern: tuple[tuple[str, tuple[int, ...]], ...], *, generates: bool
) -> Proof:
    config, model_class, kept = architecture.config, architecture.model_class, dict(pattern)
    if not axis.native:
        return Proof(axis.name, False, "needs the plug-in form (the stock config cannot say it)")
    if axis.size < 2 and not kept:
        return Proof(axis.name, False, "there is only one")
    first = found = None
    try:
        for small, again in instances(config, depth=axis.kind == "layers"):
            if again and found is not None and not math.isnan(found.effect):
                continue
            found = _on_instance(small, model_class, axis, kept, generates)
            if found.holds or found.error > TOLERANCE:
                return found
            first = first or found  # it could not be run, or says nothing: a larger one may
        if first is not None and first.reason == NOT_THERE and axis.kind != "layers":  # Jamba's only attention is deep
            return _on_instance(tiny(config, depth=True), model_class, axis, kept, generates)
    except Exception as error:  # a config that cannot be made smaller in this way
        pass_on_memory_errors(error)
        first = first or Proof(axis.name, False, f"the proof could not run: {type(error).__name__}: {error}")
    assert first is not None
    return first


def _on_instance(
    config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis, kept: Kept, generates: bool
) -> Proof:
    try:
        if sum(p.numel() for p in skeleton(config, model_class).parameters()) > LARGEST:
            return Proof(axis.name, False, f"an instance that can be built has more than {LARGEST:,} parameters")
        if classifies_rows_alone(config, model_class):
            name_padding_(config, 0)  # no input has it
        model = lively(model_class(copy.deepcopy(config)))
        found = [a for a in discover(config, model_class).axes if a.name == axis.name]
        if not found:
            return Proof(axis.name, False, NOT_THERE)
        kept = kept or _pattern(found[0], model)
        proof = _compare(model, found[0], kept)
        after = cut_config(config, found[0], len(next(iter(kept.values()))), kept)
        fault = generation_fault(config, after, model_class) if proof.holds and generates else ""
        return (
            replace(proof, holds=False, reason=f"cut alone, it cannot generate: {fault}", error=math.inf)
            if fault
            else proof
        )
    except Exception as error:  # whatever stops the proof is the reason why the axis is refused
        pass_on_memory_errors(error)
        return Proof(axis.name, False, f"the proof could not run: {type(error).__name__}: {error}")


class _Case(NamedTuple):
    """A model, what is cut from it, and the model inside both ("": the whole) that is run."""

    model: PreTrainedModel
    smaller: PreTrainedModel
    axis: Axis
    kept: Kept
    place: str

    def run(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        part: Any = model.get_submodule(self.place)
        return outputs_of(part, inputs)


def _compare(model: PreTrainedModel, axis: Axis, kept: Kept) -> Proof:
    """On the whole model; where that cannot be run or does not depend on the axis (an image tower beside a text), on
    the largest model inside that holds all of the axis."""
    smaller, first = cut(model, axis, kept), None
    for place in _places(model, axis):
        case = _Case(model, smaller, axis, kept, place)
        part: Any = model.get_submodule(place)
        for inputs in possible_inputs(part):
            try:
                plain = case.run(model, inputs)
            except Exception as error:  # whatever stops it: other inputs, or a smaller part, may still be run
                pass_on_memory_errors(error)
                first = first or Proof(axis.name, False, f"the proof could not run: {type(error).__name__}: {error}")
                continue
            found = _compare_tokens(case, inputs) if axis.kind == "vocabulary" else _compare_at(case, inputs, plain)
            if found.holds or found.error > TOLERANCE:
                return found
            first = first or found
    assert first is not None
    return first


def _places(model: PreTrainedModel, axis: Axis) -> list[str]:
    """The model ("") and the models inside it that hold all slots, from the outside in."""
    inside = [n for n, m in model.named_modules() if n and isinstance(m, PreTrainedModel)]
    return ["", *(n for n in inside if all(slot.name.startswith(n + ".") for slot in axis.slots))]


def _compare_at(case: _Case, inputs: dict[str, torch.Tensor], plain: list[torch.Tensor]) -> Proof:
    """Units neutralised and units cut out; `plain` is what the model gives as it is."""
    with ablated(case.model, case.axis, case.kept):
        reference = case.run(case.model, inputs)
    try:
        found = case.run(case.smaller, inputs)
    except Exception as error:  # the original ran: a larger instance would end in the same way
        pass_on_memory_errors(error)
        return Proof(case.axis.name, False, f"what is cut cannot be run: {type(error).__name__}: {error}", math.inf)
    effect = difference(plain, reference)
    if case.axis.kind in ("hidden", "layers"):
        reference = [
            narrowed_outputs(one, other, case.axis, case.kept) for one, other in zip(reference, found, strict=True)
        ]
    return _judged(case, inputs, reference, found, effect)


def _compare_tokens(case: _Case, inputs: dict[str, torch.Tensor]) -> Proof:
    """Rows of the vocabulary: on texts of kept tokens only, by their old and by their new numbers."""
    units = torch.as_tensor(case.kept[EVERYWHERE])
    ids = [name for name in inputs if name.endswith("input_ids")]
    part: Any = case.smaller.get_submodule(case.place)

    def renumbered(more: int) -> dict[str, torch.Tensor]:
        found = inputs | {name: (inputs[name] + more) % len(units) for name in ids}
        return ended(found, type(part), case.smaller.config)

    new, other = renumbered(0), renumbered(1)
    found = case.run(case.smaller, new)
    reference = case.run(case.model, inputs | {name: units[new[name]] for name in ids})
    reference = [
        narrowed_outputs(one, narrow, case.axis, case.kept) for one, narrow in zip(reference, found, strict=True)
    ]
    return _judged(case, new, reference, found, difference(reference, case.run(case.smaller, other)))


def _judged(
    case: _Case,
    inputs: dict[str, torch.Tensor],
    reference: list[torch.Tensor],
    found: list[torch.Tensor],
    effect: float,
) -> Proof:
    error, sabotage, reason = difference(reference, found), float("nan"), ""
    if error <= TOLERANCE and effect >= EFFECT:
        for wrong in wrong_cuts(case.model, case.smaller, case.kept, case.axis):
            sabotage = difference(reference, case.run(wrong, inputs))
            if sabotage >= EFFECT:
                break
    if not error <= TOLERANCE:
        reason = f"cut and neutralised differ by {error:.1e} (allowed {TOLERANCE:.0e})"
    elif not effect >= EFFECT:
        reason = f"neutralising moves the output by {effect:.1e} only: the proof has no power"
    elif not sabotage >= EFFECT:
        reason = f"a wrong cut moves the output by {sabotage:.1e} only: the proof has no power"
    return Proof(case.axis.name, not reason, reason, error, effect, sabotage)


def _pattern(axis: Axis, model: PreTrainedModel) -> Kept:
    """Two thirds of the units, different ones per group; for depth all but a middle removable layer."""
    if axis.kind == "layers":
        free = removable_layers(model.config, type(model), axis)
        if not free:
            raise ValueError("each layer is built in another way than its neighbours")
        gone = free[len(free) // 2]
        return {group: [i for i in range(axis.size) if i != gone] for group in axis.groups}
    draw = torch.Generator().manual_seed(1)
    count = max(axis.size * 3 // 4 if axis.kind == "hidden" else axis.size * 2 // 3, 1)  # heads may have to divide it
    count -= count % (EXPERT_STEP if axis.in_experts else axis.heads)
    drawn = {g: axis.largest(g, torch.rand(axis.size, generator=draw), count) for g in axis.groups}
    if axis.kind == "vocabulary":
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
