"""Maps a student's layers to a teacher's by their hidden states on some rows: pairs, projections and scales."""

import itertools
from typing import Literal

import torch
from torch import nn

from hf_pe.distill.layer_map import LayerMapping, LayerPairs, last, similar, uniform
from hf_pe.distill.losses.hidden import on_common_grid
from hf_pe.distill.losses.registry import losses_of
from hf_pe.errors import UsageError
from hf_pe.tasks import counted_rows

Layers = Literal["uniform", "last", "similar"] | tuple[int, ...]
DEFAULT_LAYERS: Literal["uniform"] = "uniform"


def layer_mapping(
    layers: Layers, student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], mask: torch.Tensor | None
) -> LayerMapping:
    """Return how a student's layers learn from a teacher's, with random projections if the widths differ.

    Args:
        layers: as in a recipe.
        student: hidden states of all layers. *Shape:* (batch, tokens, width) each
        teacher: hidden states of all layers on the same rows. *Shape:* (batch, tokens, width) each
        mask: tokens that count; None: all. *Shape:* (batch, tokens)

    Raises:
        UsageError: see `pair_layers`; or two paired states have different positions.
    """
    pairs = pair_layers(layers, student, teacher, mask)
    states = [_on_same_positions(student[i], teacher[j]) for i, j in pairs]
    scales = [counted_rows(target.float(), mask).square().mean() for _, target in states]
    widths = [(state.shape[-1], target.shape[-1]) for state, target in states]
    if all(width == target_width for width, target_width in widths):
        return LayerMapping(pairs, scales=scales)
    projections = [nn.Linear(*sizes, bias=False, device=student[0].device) for sizes in widths]
    return LayerMapping(pairs, projections, scales)


def pair_layers(
    layers: Layers,
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None = None,
) -> LayerPairs:
    """Return which hidden state of the student learns from which of the teacher.

    Args:
        layers: as in a recipe.
        student: see `layer_mapping`.
        teacher: see `layer_mapping`.
        mask: see `layer_mapping`.

    Raises:
        UsageError: numbers in `layers` are too many or too few, do not rise, or are out of range; or `layers` is
            "similar" and hidden states have different positions.
    """
    if layers == "similar":
        rows = [counted_rows(state, mask) for state in _on_same_positions(*student, *teacher)]
        return similar(rows[: len(student)], rows[len(student) :])
    if layers == "last":
        return last(len(student), len(teacher))
    if isinstance(layers, str):
        return uniform(len(student), len(teacher))
    rising = all(lower < higher for lower, higher in itertools.pairwise((-1, *layers, len(teacher))))
    if len(layers) != len(student) or not rising:
        raise UsageError(
            f"distil.layers: expected {len(student)} rising numbers within 0..{len(teacher) - 1} (0: the output of the "
            f"embeddings), one for each hidden state of the student; got {list(layers)}."
        )
    return list(enumerate(layers))


def _on_same_positions(*states: torch.Tensor) -> list[torch.Tensor]:
    """Return hidden states with feature maps on a common grid, as `on_common_grid` does.

    Raises:
        UsageError: the states have different numbers of rows or positions.
    """
    aligned = on_common_grid(*states)
    shape = aligned[0].shape[:-1]
    different = next((state.shape[:-1] for state in aligned if state.shape[:-1] != shape), None)
    if different is not None:
        names, reused = (", ".join(losses_of([signal])) for signal in ("hidden_states", "features"))
        raise UsageError(
            f"distil.losses.{names}: the hidden states of student {tuple(shape)} and teacher {tuple(different)} have "
            f"different positions. Use `{reused}` and losses of the logits, or keep the patch size."
        )
    return aligned
