"""Refits the scale of norms that run over cut units."""

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
    """0 where a norm's weight is what it multiplies with, 1 where that is 1 + weight (Gemma)."""
    weight = next(norm.parameters())
    if isinstance(norm, nn.LayerNorm):
        return 0.0
    given = norm(torch.ones(1, len(weight)).to(weight))[0]
    return 1.0 if (given - weight - 1).abs().mean() < (given - weight).abs().mean() else 0.0


@torch.no_grad()
def rescale_norms_(smaller: PreTrainedModel, model: PreTrainedModel, axis: Axis, kept: Kept, data: TaskData) -> None:
    """Let each norm along `axis` of `smaller` give what stays at the size it had: its mean now runs over fewer.

    The factor is sqrt(d / d') E[ ||x_S|| / ||x|| ], x what the norm of the original is given, S the kept of d.
    """
    _keep_normed_weights_(smaller, model, axis, kept)
    places = kept_along(model, axis, kept)
    norms = {name: norm for name in places if _normalises(norm := model.get_submodule(name))}
    if not norms:
        return
    for name, share in kept_length(model, norms, places, data).items():
        norm = smaller.get_submodule(name)
        weight = next(norm.parameters())
        offset, before = gain_offset(norm), len(next(norms[name].parameters()))
        weight.copy_((weight + offset) * share * (before / len(places[name])) ** 0.5 - offset)


def _normalises(norm: nn.Module) -> bool:
    """Whether a module gives the same for an input at any size: a layer scale does not, nor does a batch norm."""
    some = next(norm.parameters())
    if some.ndim != 1 or isinstance(norm, nn.LayerNorm):
        return some.ndim == 1
    trial = torch.randn(4, len(some), generator=torch.Generator().manual_seed(0)).to(some)
    try:
        return torch.allclose(norm(trial), norm(3 * trial), rtol=1e-2, atol=1e-2)
    except Exception:  # it wants another shape
        return False


def _keep_normed_weights_(smaller: PreTrainedModel, model: PreTrainedModel, axis: Axis, kept: Kept) -> None:
    """Weights stored as direction and length (wav2vec 2.0's positions): those that stay are what they were."""
    weights: dict[str, Any] = {}
    for slot in axis.slots:
        name, _, stored = slot.name.partition(".parametrizations.weight.")
        if stored == "original1" and slot.dim is not None:
            weight = weights.get(name, model.get_submodule(name).weight)
            weights[name] = narrowed(weight, slot, axis, kept)
    for name, weight in weights.items():
        smaller.get_submodule(name).weight = weight
