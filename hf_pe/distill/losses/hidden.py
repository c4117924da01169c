"""Losses on hidden states and on feature maps."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from hf_pe.distill.layer_map import LayerPairs, uniform
from hf_pe.distill.losses.masked_mean import masked_mean, mean_of_rows
from hf_pe.tasks import as_map


def hidden(
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None,
    pairs: LayerPairs | None = None,
    projections: Sequence[nn.Module] = (),
    scales: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Return the mean squared difference of hidden states divided by the teacher's mean square, averaged over pairs.

    It is TinyBERT's hidden loss (Jiao et al. 2020, arXiv:1909.10351, eq. 8), scaled per layer; for feature maps, the
    hints of FitNets (Romero et al. 2015, arXiv:1412.6550, eq. 3) on the coarser of the two grids.

    Args:
        student: hidden states of all layers, or feature maps, see `on_common_grid`. *Shape:* (batch, tokens, width)
        teacher: as `student`.
        mask: tokens that count; None: all. *Shape:* (batch, tokens)
        pairs: which hidden state learns from which; default: `uniform`.
        projections: one for each pair, from the student's width to the teacher's; empty if these are equal.
        scales: the teacher's mean square for each pair; default: that of this batch.

    Returns:
        *Shape:* ()

    Raises:
        ValueError: the widths differ, and there are no projections.

    Example:
        >>> state = torch.ones(1, 2, 4)  # the second token is padding: it does not count
        >>> padded = torch.cat([2 * torch.ones(1, 1, 4), 100 * torch.ones(1, 1, 4)], 1)
        >>> hidden((state,), (padded,), mask=torch.tensor([[1, 0]]))  # (2 - 1)^2 / 2^2
        tensor(0.2500)
    """
    terms = []
    for number, (layer, teacher_layer) in enumerate(pairs or uniform(len(student), len(teacher))):
        state, target = on_common_grid(student[layer], teacher[teacher_layer].float())
        if projections:
            state = projections[number](state)
        elif state.shape[-1] != target.shape[-1]:
            raise ValueError(
                f"hidden: expected equal widths, got {state.shape[-1]} (student) and {target.shape[-1]} (teacher)."
            )
        gap = (state.float() - target).square().mean(-1)
        scale = scales[number] if scales else masked_mean(target.square().mean(-1), mask)
        terms.append(masked_mean(gap, mask) / scale.to(gap.device).clamp_min(1e-12))
    return torch.stack(terms).mean()


def on_common_grid(*states: torch.Tensor) -> list[torch.Tensor]:
    """Return feature maps averaged down to the coarsest grid among them, as [batch, positions, channels].

    Hidden states [batch, tokens, width] are returned unchanged; `as_map` tells what a feature map is.
    """
    if any(state.ndim != 4 for state in states):
        return list(states)
    maps = [m for m in map(as_map, states) if m is not None]
    grid = (min(m.shape[2] for m in maps), min(m.shape[3] for m in maps))
    return [functional.adaptive_avg_pool2d(m, grid).flatten(2).mT for m in maps]


def features(student: torch.Tensor, teacher: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean squared difference of the inputs of the two heads, divided by the teacher's mean square.

    Chen et al. 2022, arXiv:2203.14001, eq. 3: a stitching layer maps the student's features to the teacher's width, and
    the student uses the teacher's head.

    Args:
        student: features of the positions that count; the loss is 0 if there are none. *Shape:* (positions, width)
        teacher: as `student`.
        scale: the teacher's mean square; default: that of this batch.

    Returns:
        *Shape:* ()

    Example:
        >>> features(torch.ones(3, 4), 2 * torch.ones(3, 4))  # (2 - 1)^2 / 2^2
        tensor(0.2500)
    """
    target = teacher.float()
    scale = mean_of_rows(target.square()) if scale is None else scale.to(target.device)
    return mean_of_rows((student.float() - target).square()) / scale.clamp_min(1e-12)
