"""Compares a cut model with the same model whose units are ablated, and with deliberately wrong cuts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import EVERYWHERE, Axis
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.kinds import Comparison
from hf_pe.dummies.inputs import ended, possible_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.errors import pass_on_memory_errors
from hf_pe.surgery import cut
from hf_pe.verify.ablate import ablated, narrowed_outputs
from hf_pe.verify.wrong_cuts import wrong_cuts

Inputs = dict[str, torch.Tensor]
Outputs = list[torch.Tensor]

TOLERANCE = 1e-5
"""Largest relative difference, in float32, between ablated and cut."""
EFFECT = 1e-2
"""Smallest relative change that ablating must make, and that a wrong cut must show."""


@dataclass(frozen=True)
class Verification:
    """The outcome for one axis: relative differences, and the reason where it does not hold."""

    axis: str
    holds: bool
    reason: str = ""
    error: float = float("nan")
    effect: float = float("nan")
    sabotage: float = float("nan")


class _Case(NamedTuple):
    """A model, what is cut from it, and the model inside both ("": the whole) that is run."""

    model: PreTrainedModel
    smaller: PreTrainedModel
    axis: Axis
    kept: Kept
    place: str

    def run(self, model: PreTrainedModel, inputs: Inputs) -> Outputs:
        part: Any = model.get_submodule(self.place)
        return outputs_of(part, inputs)

    def narrowed(self, reference: Outputs, found: Outputs) -> Outputs:
        """Return the entries of kept units in the outputs of the whole model, given those of the smaller one."""
        pairs = zip(reference, found, strict=True)
        return [narrowed_outputs(whole, cut_out, self.axis, self.kept) for whole, cut_out in pairs]


def compare(model: PreTrainedModel, axis: Axis, kept: Kept) -> Verification:
    """Compare a cut with an ablation on the whole model, or on a model inside it that holds all of the axis.

    The inner ones are tried, the largest first, where the whole cannot be run or does not depend on the axis (an image
    tower beside a text).
    """
    smaller, first = cut(model, axis, kept), None
    for place in _places(model, axis):
        case = _Case(model, smaller, axis, kept, place)
        part: Any = model.get_submodule(place)
        for inputs in possible_inputs(part):
            try:
                plain = case.run(model, inputs)
            except Exception as error:  # whatever stops it: other inputs, or a smaller part, may still be run
                pass_on_memory_errors(error)
                first = first or Verification(
                    axis.name, False, f"the proof could not run: {type(error).__name__}: {error}"
                )
                continue
            found = COMPARISONS[axis.kind.comparison](case, inputs, plain)
            if found.holds or found.error > TOLERANCE:
                return found
            first = first or found
    assert first is not None
    return first


def _places(model: PreTrainedModel, axis: Axis) -> list[str]:
    """The model ("") and the models inside it that hold all slots, from the outside in."""
    inside = [n for n, m in model.named_modules() if n and isinstance(m, PreTrainedModel)]
    return ["", *(n for n in inside if all(slot.name.startswith(n + ".") for slot in axis.slots))]


def _compare_ablated(
    case: _Case, inputs: Inputs, plain: Outputs, narrow: Callable[[Outputs, Outputs], Outputs] | None = None
) -> Verification:
    """Compare the outputs with units ablated and with units cut out.

    Args:
        case: what is compared.
        inputs: of the model.
        plain: the outputs of the model as it is.
        narrow: from the outputs of the ablated model and of the cut one to what the first has in common with the other.
    """
    with ablated(case.model, case.axis, case.kept):
        reference = case.run(case.model, inputs)
    try:
        found = case.run(case.smaller, inputs)
    except Exception as error:  # the original ran: a larger instance would end in the same way
        pass_on_memory_errors(error)
        return Verification(
            case.axis.name, False, f"what is cut cannot be run: {type(error).__name__}: {error}", math.inf
        )
    effect = difference(plain, reference)
    reference = reference if narrow is None else narrow(reference, found)
    return _verification(case, inputs, reference, found, effect)


def _compare_narrowed(case: _Case, inputs: Inputs, plain: Outputs) -> Verification:
    """Compare likewise where outputs have an entry for each unit: those of the kept units."""
    return _compare_ablated(case, inputs, plain, case.narrowed)


def _compare_tokens(case: _Case, inputs: Inputs, plain: Outputs) -> Verification:
    """Compare on texts of kept tokens only, by their old and by their new numbers; `plain` says nothing of these."""
    units = torch.as_tensor(case.kept[EVERYWHERE])
    ids = [name for name in inputs if name.endswith("input_ids")]
    part: Any = case.smaller.get_submodule(case.place)

    def renumbered(more: int) -> dict[str, torch.Tensor]:
        found = inputs | {name: (inputs[name] + more) % len(units) for name in ids}
        return ended(found, type(part), case.smaller.config)

    new, other = renumbered(0), renumbered(1)
    found = case.run(case.smaller, new)
    reference = case.run(case.model, inputs | {name: units[new[name]] for name in ids})
    reference = case.narrowed(reference, found)
    return _verification(case, new, reference, found, difference(reference, case.run(case.smaller, other)))


def _verification(
    case: _Case,
    inputs: Inputs,
    reference: Outputs,
    found: Outputs,
    effect: float,
) -> Verification:
    error, sabotage, reason = difference(reference, found), float("nan"), ""
    if error <= TOLERANCE and effect >= EFFECT:
        for wrong in wrong_cuts(case.model, case.smaller, case.kept, case.axis):
            sabotage = difference(reference, case.run(wrong, inputs))
            if sabotage >= EFFECT:
                break
    if not error <= TOLERANCE:
        reason = f"cut and ablated differ by {error:.1e} (allowed {TOLERANCE:.0e})"
    elif not effect >= EFFECT:
        reason = f"ablating moves the output by {effect:.1e} only: the proof has no power"
    elif not sabotage >= EFFECT:
        reason = f"a wrong cut moves the output by {sabotage:.1e} only: the proof has no power"
    return Verification(case.axis.name, not reason, reason, error, effect, sabotage)


COMPARISONS: dict[Comparison, Callable[[_Case, Inputs, Outputs], Verification]] = {
    "outputs": _compare_ablated,
    "narrowed_outputs": _compare_narrowed,
    "renumbered_tokens": _compare_tokens,
}
"""By the name that the record of a kind of axis gives (`hf_pe.anatomy.AxisKind.comparison`)."""
