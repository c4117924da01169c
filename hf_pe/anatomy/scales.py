"""Factors that depend on the hidden width: embeddings times its root, output heads over it."""

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy.axis import Axis
from hf_pe.anatomy.fields import HEADS_BY_ROOT
from hf_pe.anatomy.module_names import float_attributes, is_norm, owner_of


def with_scales(axis: Axis, base: PreTrainedModel, other: PreTrainedModel, size: int) -> Axis:
    """Tell what the model multiplies by the root of its width, embeddings (Gemma, M2M-100, BioGPT), or divides by it.

    Their rows grow where the width falls, so that the stream stays as it was. Where the output head is the same matrix,
    the last norm takes that back; also where the head itself divides what it reads by the root of the width (T5).
    `other` is the model with the width `size`.
    """
    others, root, scaled, shrunk = dict(other.named_modules()), (axis.size / size) ** 0.5, set[int](), set[int]()
    for name, module in base.named_modules():
        before, after = float_attributes(module), float_attributes(others[name]) if name in others else {}
        if any(abs(value - root * after.get(key, 0.0)) < 1e-6 * value for key, value in before.items()):
            tables = [module, getattr(module, "embed_tokens", None)]
            scaled |= {id(table.weight) for table in tables if isinstance(table, nn.Embedding)}
        for key, value in before.items():
            read = getattr(module, key.removesuffix("_scale"), None)  # per_layer_model_projection(_scale) of Gemma 4
            if isinstance(read, nn.Linear) and abs(root * value - after.get(key, 0.0)) < 1e-6 * value:
                shrunk.add(id(read.weight))
    by_root = _divides_by_root(base)
    if not scaled and not shrunk and not by_root:
        return axis
    tensors = dict(base.named_parameters(remove_duplicate=False))
    powers = {slot.name: -0.5 for slot in axis.slots if id(tensors.get(slot.name)) in scaled}
    norms = [slot for slot in axis.slots if is_norm(owner_of(base, slot.name))]
    if norms and (by_root or any(not isinstance(owner_of(base, name), nn.Embedding) for name in powers)):
        last = norms[-1].name.rpartition(".")[0]
        powers |= {slot.name: 0.5 for slot in norms if slot.name.rpartition(".")[0] == last}
    powers |= {slot.name: 0.5 for slot in axis.slots if id(tensors.get(slot.name)) in shrunk}
    offsets = {name: _offset(owner_of(base, name)) for name in powers if name.endswith("weight") and powers[name] > 0}
    slots = (replace(slot, power=powers[slot.name], offset=offsets.get(slot.name, 0.0))
             if slot.name in powers else slot for slot in axis.slots)  # fmt: skip
    return replace(axis, slots=tuple(slots))


def _divides_by_root(model: PreTrainedModel) -> bool:
    """Whether the output head reads the last state over the root of its width."""
    field = HEADS_BY_ROOT.get(model.config.model_type)
    return field is not None and hasattr(model, "lm_head") and bool(getattr(model.config, field))


def _offset(norm: Any) -> float:
    """1 where a norm of this kind starts from a weight of 0, so that 1 + weight is what it multiplies with."""
    try:
        return 1.0 - float(type(norm)(1).weight.detach())
    except Exception:  # it is made in another way
        return 0.0
