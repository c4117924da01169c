"""Map a student's layers to a teacher's by their hidden states on some rows: pairs, projections, scales."""

import itertools
from typing import Literal

import torch
from torch import nn

from hf_pe.distill.layer_map import LayerMapping, LayerPairs, last, similar, uniform
from hf_pe.distill.losses.hidden import side_by_side
from hf_pe.distill.losses.registry import losses_of
from hf_pe.errors import UsageError
from hf_pe.tasks import counted_rows

Layers = Literal["uniform", "last", "similar"] | tuple[int, ...]
DEFAULT_LAYERS: Literal["uniform"] = "uniform"


def layer_mapping(
    layers: Layers, student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], mask: torch.Tensor | None
) -> LayerMapping:
    """Return how a student's layers learn from a teacher's: projections are drawn where the widths differ.

    Args:
        layers: as in a recipe.
        student, teacher: hidden states of all layers on the same rows. *Shape:* (batch, tokens, width) each
        mask: tokens that count. *Shape:* (batch, tokens); None: all

    Raises:
        UsageError: see `pair_layers`; or two states do not stand at the same places.
    """
    pairs = pair_layers(layers, student, teacher, mask)
    states = [_at_same_places(student[i], teacher[j]) for i, j in pairs]
    scales = [counted_rows(target.float(), mask).square().mean() for _, target in states]
    widths = [(state.shape[-1], target.shape[-1]) for state, target in states]
    if all(width == target_width for width, target_width in widths):
        return LayerMapping(pairs, scales=scales)
    projections = [nn.Linear(*each, bias=False, device=student[0].device) for each in widths]
    return LayerMapping(pairs, projections, scales)


def pair_layers(
    layers: Layers,
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None = None,
) -> LayerPairs:
    """Return which hidden state learns from which.

    Args:
        layers, student, teacher, mask: see `layer_mapping`.

    Raises:
        UsageError: given ones are too many or too few, do not rise, or are out of range; `similar` ones stand at
            different places.
    """
    if layers == "similar":
        rows = [counted_rows(state, mask) for state in _at_same_places(*student, *teacher)]
        return similar(rows[: len(student)], rows[len(student) :])
    if layers == "last":
        return last(len(student), len(teacher))
    if isinstance(layers, str):
        return uniform(len(student), len(teacher))
    rising = all(lower < higher for lower, higher in itertools.pairwise((-1, *layers, len(teacher))))
    if len(layers) != len(student) or not rising:
        raise UsageError(
            f"distil.layers: expected {len(student)} rising numbers within 0..{len(teacher) - 1} (0: what the "
            f"embeddings give), one for each hidden state of the student; got {list(layers)}."
        )
    return list(enumerate(layers))


def _at_same_places(*states: torch.Tensor) -> list[torch.Tensor]:
    """Return states as `side_by_side` does.

    Raises:
        UsageError: some stand at other places than the first.
    """
    aligned = side_by_side(*states)
    places = aligned[0].shape[:-1]
    different = next((state.shape[:-1] for state in aligned if state.shape[:-1] != places), None)
    if different is not None:
        names, reused = (", ".join(losses_of([signal])) for signal in ("hidden_states", "features"))
        raise UsageError(
            f"distil.losses.{names}: the student's hidden states stand at other places ({tuple(places)}) than those "
            f"they would learn from ({tuple(different)}). Use `{reused}` and losses of the logits."
        )
    return aligned
