"""Norms that run over units of an axis."""

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy.axis import Axis, Kept


def norms_along(model: PreTrainedModel, axis: Axis) -> dict[str, nn.Module]:
    """The modules that hold vectors along `axis` and nothing else, by name: its norms (and layer scales).

    All hold the hidden width; of heads, OLMo 2 norms all queries as one; of the FFN, some norm what is in between.
    """
    found = {}
    for slot in axis.slots if axis.kind.has_norms else ():
        module = model.get_submodule(slot.name.rpartition(".")[0])
        own, width = [*module.parameters()], slot.layout.length(axis.size)
        if own and all(p.ndim not in (0, 2) and p.numel() == p.shape[-1] == width for p in own):  # a matrix is a map
            found[slot.name.rpartition(".")[0]] = module
    return found


def kept_along(model: PreTrainedModel, axis: Axis, kept: Kept) -> dict[str, torch.Tensor]:
    """Which coordinates stay of what each of the norms along `axis` is given."""
    slots = {slot.name.rpartition(".")[0]: slot for slot in axis.slots}
    return {
        name: slots[name].layout.places(torch.as_tensor(kept[slots[name].group]), axis.size)
        for name in norms_along(model, axis)
    }
