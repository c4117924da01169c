"""Notes factors that depend on the hidden width, such as embeddings that are multiplied by its root.

After a cut the model computes such a factor from the new width, so stored weights are scaled to undo the change.
"""

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy.axis import Axis
from hf_pe.anatomy.fields import HEADS_BY_ROOT
from hf_pe.anatomy.module_names import float_attributes, is_norm, owner_of


def with_scales(axis: Axis, base: PreTrainedModel, probe: PreTrainedModel, size: int) -> Axis:
    """Set the `power` of slots whose weights the model multiplies or divides by the root of its hidden width.

    Embeddings that are multiplied by it (Gemma, M2M-100, BioGPT) grow as the width falls, so that the residual stream
    stays as it was. Where the output head is the same matrix, the last norm undoes that; likewise where the head
    divides its input by the root of the width (T5).

    Args:
        axis: the hidden width.
        base: the model on the meta device.
        probe: the same with another width.
        size: that width.
    """
    probed, root = dict(probe.named_modules()), (axis.size / size) ** 0.5
    multiplied, divided = set[int](), set[int]()  # ids of weights, by what the model does with the root of its width
    for name, module in base.named_modules():
        before, after = float_attributes(module), float_attributes(probed[name]) if name in probed else {}
        if any(abs(value - root * after.get(key, 0.0)) < 1e-6 * value for key, value in before.items()):
            tables = [module, getattr(module, "embed_tokens", None)]
            multiplied |= {id(table.weight) for table in tables if isinstance(table, nn.Embedding)}
        for key, value in before.items():
            layer = getattr(module, key.removesuffix("_scale"), None)  # per_layer_model_projection(_scale) of Gemma 4
            if isinstance(layer, nn.Linear) and abs(root * value - after.get(key, 0.0)) < 1e-6 * value:
                divided.add(id(layer.weight))
    head_divides = _divides_by_root(base)
    if not multiplied and not divided and not head_divides:
        return axis
    tensors = dict(base.named_parameters(remove_duplicate=False))
    powers = {slot.name: -0.5 for slot in axis.slots if id(tensors.get(slot.name)) in multiplied}
    norms = [slot for slot in axis.slots if is_norm(owner_of(base, slot.name))]
    if norms and (head_divides or any(not isinstance(owner_of(base, name), nn.Embedding) for name in powers)):
        last = norms[-1].name.rpartition(".")[0]
        powers |= {slot.name: 0.5 for slot in norms if slot.name.rpartition(".")[0] == last}
    powers |= {slot.name: 0.5 for slot in axis.slots if id(tensors.get(slot.name)) in divided}
    offsets = {name: _offset(owner_of(base, name)) for name in powers if name.endswith("weight") and powers[name] > 0}
    slots = (replace(slot, power=powers[slot.name], offset=offsets.get(slot.name, 0.0))
             if slot.name in powers else slot for slot in axis.slots)  # fmt: skip
    return replace(axis, slots=tuple(slots))


def _divides_by_root(model: PreTrainedModel) -> bool:
    """Return whether the output head divides the last hidden state by the root of its width."""
    field = HEADS_BY_ROOT.get(model.config.model_type)
    return field is not None and hasattr(model, "lm_head") and bool(getattr(model.config, field))


def _offset(norm: Any) -> float:
    """Return what a norm adds to its weight: 1 where new ones have a weight of 0 and multiply with 1 + weight."""
    try:
        return 1.0 - float(type(norm)(1).weight.detach())
    except Exception:  # the class takes other arguments
        return 0.0
