"""Lists the norms that run over the units of an axis."""

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy.axis import Axis, Kept


def norms_along(model: PreTrainedModel, axis: Axis) -> dict[str, nn.Module]:
    """Return by name the modules whose parameters are all vectors along `axis`: its norms and layer scales.

    Most run over the hidden width. Along heads, OLMo 2 normalizes all queries together; along the FFN, some models
    normalize its inner activations.
    """
    norms = {}
    for slot in axis.slots if axis.kind.has_norms else ():
        name = slot.name.rpartition(".")[0]
        module = model.get_submodule(name)
        parameters, width = [*module.parameters()], slot.layout.length(axis.size)
        if parameters and all(p.ndim not in (0, 2) and p.numel() == p.shape[-1] == width for p in parameters):
            norms[name] = module  # with a matrix it would be a linear layer or an embedding
    return norms


def kept_along(model: PreTrainedModel, axis: Axis, kept: Kept) -> dict[str, torch.Tensor]:
    """Return for each norm along `axis`, by name, the indices of its input coordinates that are kept."""
    slots = {slot.name.rpartition(".")[0]: slot for slot in axis.slots}
    return {
        name: slots[name].layout.positions(torch.as_tensor(kept[slots[name].group]), axis.size)
        for name in norms_along(model, axis)
    }
