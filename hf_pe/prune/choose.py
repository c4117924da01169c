"""Choose the units to keep: layers by a depth order, experts by their tokens' gates, all other units by a criterion."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from hf_pe.anatomy import EVERYWHERE, Axis
from hf_pe.anatomy.kinds import Choice
from hf_pe.calibration.cache import StatisticsKey
from hf_pe.calibration.coverage import require_reached
from hf_pe.calibration.experts import routed_tokens
from hf_pe.calibration.gradients import Gradients, consumer_gradients
from hf_pe.calibration.influence import block_influence
from hf_pe.prune.criteria import CRITERIA, reap
from hf_pe.prune.sizes.layers import removable
from hf_pe.prune.sizes.sensitivity import greedy_depth_order
from hf_pe.prune.statistics.cached import moments_of
from hf_pe.prune.statistics.unit_statistics import unit_statistics
from hf_pe.recipe import StageState
from hf_pe.regression import Moments


@dataclass(frozen=True)
class ChoiceSettings:
    """The settings of a prune recipe that decide which units are kept.

    Attributes:
        criterion: name of an entry of `CRITERIA`.
        depth: how layers are ordered: by block influence, or greedily.
        rotates: whether the residual stream is rotated before it is cut, so that its first coordinates matter most.
    """

    criterion: str
    depth: Literal["influence", "greedy"]
    rotates: bool


def choose(settings: ChoiceSettings, state: StageState, axis: Axis, size: int) -> dict[str, list[int]]:
    """Return the indices of `size` kept units for each group of an axis, rising.

    Raises:
        UsageError: more layers than that have to stay, or no calibration row reaches the units.
    """
    return CHOICES[axis.kind.choice](settings, state, axis, size)


def _choose_layers(settings: ChoiceSettings, state: StageState, axis: Axis, size: int) -> dict[str, list[int]]:
    free = removable(state.spec, axis, size)
    if settings.depth == "greedy":
        order = state.statistics.get(state.model, StatisticsKey[list[int]]("greedy depth order", axis.name), list)
        removed = greedy_depth_order(state.model, axis, free, axis.size - size, state.data, order)[: axis.size - size]
    else:
        influence = block_influence(state.model, axis, state.data)
        removed = sorted(free, key=lambda layer: influence[layer])[: axis.size - size]
    return {stack: [i for i in range(axis.size) if i not in removed] for stack in axis.groups}


def _choose_experts(settings: ChoiceSettings, state: StageState, axis: Axis, size: int) -> dict[str, list[int]]:
    tokens = routed_tokens(state.model, axis, state.data)
    scores = {g: torch.stack([reap(gates, norms) for gates, norms in experts]) for g, experts in tokens.items()}
    return {g: axis.top_units(g, scores.get(g, torch.rand(axis.size)), size) for g in axis.groups}


def _choose_units(settings: ChoiceSettings, state: StageState, axis: Axis, size: int) -> dict[str, list[int]]:
    model, data, criterion = state.model, state.data, CRITERIA[settings.criterion]
    kept = {group: axis.first_units(group, size) for group in _sorted_groups(settings, axis)}
    groups = [group for group in axis.groups if group not in kept]
    if not groups:
        return kept
    gradients = {}
    if "gradients" in criterion.needs:
        key = StatisticsKey[dict[str, Gradients]]("gradients", axis.name)
        gradients = state.statistics.get(model, key, lambda: consumer_gradients(model, axis, data))
        require_reached(gradients, axis)
    tensors = model.state_dict()

    def choose(groups: Iterable[str], moments: dict[str, list[Moments]] | None) -> None:
        for group in groups:
            scores = criterion.score(unit_statistics(tensors, axis, group, size, moments, gradients))
            kept[group] = axis.top_units(group, scores, size)

    weighted, reached = "weighted activations" in criterion.needs, set[str]()
    if not weighted and "activations" not in criterion.needs:
        choose(groups, None)
        return kept
    group_of = {slot.key: slot.group for slot in axis.slots if slot.consumes}
    for moments in moments_of(state, axis, weighted=weighted):
        reached.update(moments)
        choose(dict.fromkeys(g for key in moments if (g := group_of[key]) in groups), moments)
    require_reached(reached, axis)
    choose([group for group in groups if group not in kept], {})  # experts that no token reached
    return {group: kept[group] for group in axis.groups}


def _sorted_groups(settings: ChoiceSettings, axis: Axis) -> list[str]:
    """Return the groups whose units a change of basis sorts before the cut, the most important first."""
    if not axis.kind.is_residual:
        return []
    inside = [group for group in axis.groups if group != EVERYWHERE and axis.narrows_heads]
    return [*inside, *([EVERYWHERE] if settings.rotates else [])]


CHOICES: dict[Choice, Callable[[ChoiceSettings, StageState, Axis, int], dict[str, list[int]]]] = {
    "criterion": _choose_units,
    "depth": _choose_layers,
    "routing": _choose_experts,
}
"""How units are chosen, by the name that the kind of an axis states (`hf_pe.anatomy.AxisKind.choice`)."""
