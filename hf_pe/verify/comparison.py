"""Compares a cut model with the same model whose units are ablated, and with deliberately wrong cuts."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import EVERYWHERE, Axis
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.kinds import Comparison
from hf_pe.dummies.inputs import possible_inputs, with_end_token
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.errors import pass_on_memory_errors
from hf_pe.surgery import cut
from hf_pe.verify.ablate import ablated, narrowed_outputs
from hf_pe.verify.wrong_cuts import wrong_cuts

Inputs = dict[str, torch.Tensor]
Outputs = list[torch.Tensor]

TOLERANCE = 1e-5
"""Largest relative difference between the outputs with units cut and with units ablated, in float32 or in float64."""
EFFECT = 1e-2
"""Smallest relative change of the outputs that ablation must cause, and that a wrong cut must cause too."""


@dataclass(frozen=True)
class Verification:
    """Hold the outcome for one axis.

    Attributes:
        axis: its name.
        holds: whether the cut is verified.
        reason: why it is not; "" where it is.
        error: relative difference between the outputs with units cut and with units ablated.
        effect: relative change of the outputs by the ablation.
        sabotage: relative change of the outputs by a cut that is wrong on purpose.
    """

    axis: str
    holds: bool
    reason: str = ""
    error: float = float("nan")
    effect: float = float("nan")
    sabotage: float = float("nan")


class _Case(NamedTuple):
    """Hold a model, the same after a cut, and the name of the model inside both ("": the whole) that is run."""

    model: PreTrainedModel
    smaller: PreTrainedModel
    axis: Axis
    kept: Kept
    submodel: str

    def run(self, model: PreTrainedModel, inputs: Inputs) -> Outputs:
        part: Any = model.get_submodule(self.submodel)
        return outputs_of(part, inputs)

    def in_float64(self) -> "_Case":
        """Return the same with copies of both models in float64."""
        model, smaller = (copy.deepcopy(each).double() for each in (self.model, self.smaller))
        return self._replace(model=model, smaller=smaller)

    def narrowed(self, reference: Outputs, cut_outputs: Outputs) -> Outputs:
        """Return the outputs of the whole model without removed units, so that they compare with the cut model's."""
        pairs = zip(reference, cut_outputs, strict=True)
        return [narrowed_outputs(output, cut_output, self.axis, self.kept) for output, cut_output in pairs]


def compare(model: PreTrainedModel, axis: Axis, kept: Kept) -> Verification:
    """Compare a cut with an ablation on the whole model, or on a model inside it that holds all of the axis.

    Inner models are tried, the largest first, where the whole model cannot be run or its outputs do not depend on the
    axis (an image tower beside a text model).
    """
    smaller, first = cut(model, axis, kept), None
    for submodel in _submodels(model, axis):
        case = _Case(model, smaller, axis, kept, submodel)
        part: Any = model.get_submodule(submodel)
        for inputs in possible_inputs(part):
            try:
                plain = case.run(model, inputs)
            except Exception as error:  # other inputs, or a smaller part, may still be run
                pass_on_memory_errors(error)
                reason = f"verification failed with {type(error).__name__}: {error}"
                first = first or Verification(axis.name, False, reason)
                continue
            result = _compare_precisely(case, inputs, plain)
            if result.holds or result.error > TOLERANCE:
                return result
            first = first or result
    assert first is not None
    return first


def _compare_precisely(case: _Case, inputs: Inputs, plain: Outputs) -> Verification:
    """Compare in float32, and again in float64 where the outputs differ.

    Some models amplify rounding (VITS's waveforms by its untrained vocoder). In float64 only a cut that is wrong still
    differs.
    """
    compare_outputs = COMPARISONS[case.axis.kind.comparison]
    result = compare_outputs(case, inputs, plain)
    if not TOLERANCE < result.error < math.inf:
        return result
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    try:
        precise_case = case.in_float64()
        precise = compare_outputs(precise_case, wide, precise_case.run(precise_case.model, wide))
    except Exception as error:  # a model may compute in float32 whatever its weights are
        pass_on_memory_errors(error)
        return result
    return precise if precise.error <= TOLERANCE else result


def _submodels(model: PreTrainedModel, axis: Axis) -> list[str]:
    """Return the names of the model ("") and of the models inside it that hold all slots, from the outside in."""
    inside = [n for n, m in model.named_modules() if n and isinstance(m, PreTrainedModel)]
    return ["", *(n for n in inside if all(slot.name.startswith(n + ".") for slot in axis.slots))]


def _compare_ablated(
    case: _Case, inputs: Inputs, plain: Outputs, narrow: Callable[[Outputs, Outputs], Outputs] | None = None
) -> Verification:
    """Compare the outputs with units ablated and with units cut out.

    Args:
        case: the models and the cut.
        inputs: of the model.
        plain: the outputs of the model as it is.
        narrow: takes the outputs of the ablated and of the cut model, and returns the former without removed units.
    """
    with ablated(case.model, case.axis, case.kept):
        reference = case.run(case.model, inputs)
    try:
        cut_outputs = case.run(case.smaller, inputs)
    except Exception as error:  # the original could be run, so a larger model would fail in the same way
        pass_on_memory_errors(error)
        reason = f"the cut model cannot be run: {type(error).__name__}: {error}"
        return Verification(case.axis.name, False, reason, math.inf)
    effect = difference(plain, reference)
    reference = reference if narrow is None else narrow(reference, cut_outputs)
    return _verification(case, inputs, reference, cut_outputs, effect)


def _compare_narrowed(case: _Case, inputs: Inputs, plain: Outputs) -> Verification:
    """Compare the entries of kept units where outputs have one entry for each unit."""
    return _compare_ablated(case, inputs, plain, case.narrowed)


def _compare_tokens(case: _Case, inputs: Inputs, plain: Outputs) -> Verification:
    """Compare outputs for texts of kept tokens, by their old token ids and by their new ones; `plain` is not used."""
    units = torch.as_tensor(case.kept[EVERYWHERE])
    ids = [name for name in inputs if name.endswith("input_ids")]
    part: Any = case.smaller.get_submodule(case.submodel)

    def renumbered(shift: int) -> dict[str, torch.Tensor]:
        shifted = inputs | {name: (inputs[name] + shift) % len(units) for name in ids}
        return with_end_token(shifted, type(part), case.smaller.config)

    new_ids, different_ids = renumbered(0), renumbered(1)
    cut_outputs = case.run(case.smaller, new_ids)
    reference = case.run(case.model, inputs | {name: units[new_ids[name]] for name in ids})
    reference = case.narrowed(reference, cut_outputs)
    effect = difference(reference, case.run(case.smaller, different_ids))
    return _verification(case, new_ids, reference, cut_outputs, effect)


def _verification(
    case: _Case,
    inputs: Inputs,
    reference: Outputs,
    cut_outputs: Outputs,
    effect: float,
) -> Verification:
    """Return whether the outputs agree, and whether ablation and wrong cuts change them enough to say so."""
    error, sabotage, reason = difference(reference, cut_outputs), float("nan"), ""
    if error <= TOLERANCE and effect >= EFFECT:
        for wrong in wrong_cuts(case.model, case.smaller, case.kept, case.axis):
            sabotage = difference(reference, case.run(wrong, inputs))
            if sabotage >= EFFECT:
                break
    if not error <= TOLERANCE:
        reason = f"outputs with units cut and with units ablated differ by {error:.1e} (allowed {TOLERANCE:.0e})"
    elif not effect >= EFFECT:
        reason = f"ablation changes the output by only {effect:.1e}, so the check could not detect a wrong cut"
    elif not sabotage >= EFFECT:
        reason = f"a wrong cut changes the output by only {sabotage:.1e}, so the check could not detect it"
    return Verification(case.axis.name, not reason, reason, error, effect, sabotage)


COMPARISONS: dict[Comparison, Callable[[_Case, Inputs, Outputs], Verification]] = {
    "outputs": _compare_ablated,
    "narrowed_outputs": _compare_narrowed,
    "renumbered_tokens": _compare_tokens,
}
"""The comparisons by the name in the record of a kind of axis (`hf_pe.anatomy.AxisKind.comparison`)."""
