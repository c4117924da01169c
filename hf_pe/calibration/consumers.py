"""Look up the linear layers that read the units of an axis (its consumers), and the blocks that hold them."""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import EVERYWHERE, Axis


def consumer_blocks(axis: Axis, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the block of each of `modules`; none where the axis has one group of units for all blocks."""
    return {s.name: s.group for s in axis.slots if s.consumes and s.name in modules and s.group != EVERYWHERE}


def consumers_of(model: PreTrainedModel, axis: Axis) -> dict[str, nn.Module]:
    """Return the linear layers that read the units of `axis`, by their weights' names; experts are left out."""
    slots = (s for s in axis.slots if s.consumes and s.entry is None)
    return {s.name: model.get_submodule(s.name.rpartition(".")[0]) for s in slots}
