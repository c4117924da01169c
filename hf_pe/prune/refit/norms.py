"""Refit the scale of norms that run over cut units."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.norms import kept_along
from hf_pe.prune.statistics.residual import kept_length
from hf_pe.surgery import narrowed
from hf_pe.tasks import TaskData


def gain_offset(norm: nn.Module) -> float:
    """Return 0 where a norm multiplies by its weight, and 1 where it multiplies by 1 + weight (Gemma)."""
    weight = next(norm.parameters())
    if isinstance(norm, nn.LayerNorm):
        return 0.0
    gain = norm(torch.ones(1, len(weight)).to(weight))[0]
    return 1.0 if (gain - weight - 1).abs().mean() < (gain - weight).abs().mean() else 0.0


@torch.no_grad()
def rescale_norms_(smaller: PreTrainedModel, model: PreTrainedModel, axis: Axis, kept: Kept, data: TaskData) -> None:
    """Scale the weights of the norms along an axis in place, so that their kept outputs have the size they had.

    A norm divides by the size of its input, which is now a mean over fewer coordinates. With x the input of the norm in
    the original, S its d' kept coordinates of d, the factor is sqrt(d / d') E[ ||x_S|| / ||x|| ].

    Args:
        smaller: the model cut along `axis`.
        model: the model before this cut.
        axis: the axis.
        kept: the kept units of each group.
        data: has the calibration rows, which the expectation is taken over.
    """
    _restore_normed_weights_(smaller, model, axis, kept)
    indices = kept_along(model, axis, kept)
    norms = {name: norm for name in indices if _normalizes(norm := model.get_submodule(name))}
    if not norms:
        return
    for name, fraction in kept_length(model, norms, indices, data).items():
        norm = smaller.get_submodule(name)
        weight = next(norm.parameters())
        offset, width = gain_offset(norm), len(next(norms[name].parameters()))
        weight.copy_((weight + offset) * fraction * (width / len(indices[name])) ** 0.5 - offset)


def _normalizes(norm: nn.Module) -> bool:
    """Return whether a module is a norm: it ignores the size of its input, unlike a layer scale or a batch norm."""
    weight = next(norm.parameters())
    if weight.ndim != 1 or isinstance(norm, nn.LayerNorm):
        return weight.ndim == 1
    trial = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        return torch.allclose(norm(trial), norm(3 * trial), rtol=1e-2, atol=1e-2)
    except Exception:  # the module takes inputs of another shape
        return False


def _restore_normed_weights_(smaller: PreTrainedModel, model: PreTrainedModel, axis: Axis, kept: Kept) -> None:
    """Copy the kept rows of weights that are stored as direction and length (positions of wav2vec 2.0).

    Cutting both parts would change the length that the direction is divided by, and with it the kept rows.
    """
    weights: dict[str, Any] = {}
    for slot in axis.slots:
        name, _, stored = slot.name.partition(".parametrizations.weight.")
        if stored == "original1" and slot.dim is not None:
            weight = weights.get(name, model.get_submodule(name).weight)
            weights[name] = narrowed(weight, slot, axis, kept)
    for name, weight in weights.items():
        smaller.get_submodule(name).weight = weight
