"""Ablates units, heads and layers: makes them ineffective without removing them from the model."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from hf_pe.anatomy import (
    EVERYWHERE,
    Axis,
    Layout,
    is_norm,
)
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.kinds import Ablation
from hf_pe.anatomy.norms import kept_along


def ablated(model: PreTrainedModel, axis: Axis, kept: Kept) -> contextlib.AbstractContextManager[None]:
    """Return a context inside which the removed units have no effect."""
    return ABLATIONS[axis.kind.ablation](model, axis, kept)


@contextlib.contextmanager
def _skipped_layers(model: PreTrainedModel, axis: Axis, kept: Kept) -> Iterator[None]:
    """Let removed layers return their inputs inside the block."""
    names = [f"{stack}.{i}" for stack, units in kept.items() for i in set(range(axis.size)) - set(units)]
    with skipped([model.get_submodule(name) for name in names]):
        yield


@contextlib.contextmanager
def _zeroed(model: PreTrainedModel, axis: Axis, kept: Kept) -> Iterator[None]:
    """Hold the removed units at zero in every slot inside the block."""
    state = model.state_dict()
    saved = {slot.name: state[slot.name].clone() for slot in axis.slots if slot.name in state}
    for slot in axis.slots:
        if slot.name in state:
            removed = torch.tensor(sorted(set(range(axis.size)) - set(kept[slot.group])), dtype=torch.long)
            slot.of(state).index_fill_(slot.dim or 0, slot.layout.positions(removed, axis.size), 0)
    hooks = _narrow_norms(model, axis, kept)
    try:
        yield
    finally:
        for name, tensor in saved.items():
            state[name].copy_(tensor)
        for hook in hooks:
            hook.remove()


NEVER = -1e30
"""The router logit of a removed expert, so low that no token is routed to it."""


class _Logits(TorchFunctionMode):
    """Set the logits of removed experts to `NEVER` wherever a router's weight is multiplied with."""

    def __init__(self, removed: dict[int, list[int]]) -> None:
        """Take the removed experts by the id of the router's weight."""
        super().__init__()
        self.removed = removed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        experts = self.removed.get(id(args[1])) if func is nn.functional.linear and len(args) > 1 else None
        if experts:
            result = result.clone()
            result[..., experts] = NEVER
        return result


@contextlib.contextmanager
def _never_routed(model: PreTrainedModel, axis: Axis, kept: Kept) -> Iterator[None]:
    """Route no token to the removed experts inside the block; with a row of zeros they would have a logit of 0."""
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    slots = [slot for slot in axis.slots if slot.name in state]
    removed = {slot.name: sorted(set(range(axis.size)) - set(kept[slot.group])) for slot in slots}
    biases = {slot.name: state[slot.name].clone() for slot in slots if state[slot.name].ndim == 1}
    for name in biases:
        state[name].data[removed[name]] = NEVER
    try:
        with _Logits({id(state[s.name]): removed[s.name] for s in slots if state[s.name].ndim == 2}):
            yield
    finally:
        for name, tensor in biases.items():
            state[name].data.copy_(tensor)


def _narrow_norms(model: PreTrainedModel, axis: Axis, kept: Kept) -> list[Any]:  # noqa: C901  one step after the other
    """Let every norm along `axis` normalize the kept coordinates only, and return the hooks that do so.

    For the hidden width these are also the norms without weights.
    """

    def narrowed(module: nn.Module, kept_units: torch.Tensor, width: int) -> Any:
        small = copy.deepcopy(module)
        for parameter in small.parameters():
            parameter.data = parameter.data[..., kept_units]
        if hasattr(small, "normalized_shape"):
            small.normalized_shape = (len(kept_units),)  # type: ignore[assignment]
        if isinstance(small, nn.GroupNorm):
            small.num_channels = len(kept_units)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not args:
                return None
            dim = next((d for d in (-1, 1) if args[0].shape[d] == width), None)
            if dim is None:  # the norm runs over a head
                return None
            normed = small(args[0].index_select(dim, kept_units), *args[1:], **kwargs)
            if isinstance(output, tuple):  # with the scale of its integers (I-BERT)
                return (torch.zeros_like(output[0]).index_copy(dim, kept_units, normed[0]), *normed[1:])
            return torch.zeros_like(output).index_copy(dim, kept_units, normed)

        return module.register_forward_hook(hook, with_kwargs=True)

    hooks = []
    for name, kept_units in kept_along(model, axis, kept).items():
        module = model.get_submodule(name)
        grouped = isinstance(module, nn.GroupNorm) and module.num_groups > 1  # its groups would get other channels
        if not grouped and not isinstance(module, _BatchNorm):  # which normalizes each channel alone
            hooks.append(narrowed(module, kept_units, next(module.parameters()).shape[-1]))
    if axis.kind.is_residual:
        units = torch.as_tensor(kept[EVERYWHERE])
        without_weights = [m for m in model.modules() if is_norm(m) and not [*m.parameters(), *m.buffers()]]
        hooks += [narrowed(module, units, axis.size) for module in without_weights]
    return hooks


ABLATIONS: dict[Ablation, Callable[[PreTrainedModel, Axis, Kept], contextlib.AbstractContextManager[None]]] = {
    "zero": _zeroed,
    "skip": _skipped_layers,
    "never_route": _never_routed,
}
"""The ablations by the name in the record of a kind of axis (`hf_pe.anatomy.AxisKind.ablation`)."""


def narrowed_outputs(output: torch.Tensor, cut_output: torch.Tensor, axis: Axis, kept: Kept) -> torch.Tensor:
    """Return an output of the whole model without the entries of removed units.

    These are coordinates of the hidden width, or a multiple of it (Swin's later stages), or layers, where the output
    has one entry for each (a detector's boxes).

    Args:
        output: of the whole model.
        cut_output: the same of the cut model, which shows which dimensions became shorter.
        axis: that was cut.
        kept: its kept units.
    """
    units = torch.as_tensor(kept[axis.groups[0]])
    for dim, (length, cut_length) in enumerate(zip(output.shape, cut_output.shape, strict=False)):
        times = length // axis.size
        if length != cut_length and length == times * axis.size and cut_length == times * len(units):
            positions = Layout((1,) * times).positions(units, axis.size)
            output = output.index_select(dim, positions.to(output.device))
    return output


@contextlib.contextmanager
def skipped(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let layers return their inputs inside the block."""
    hooks = [layer.register_forward_hook(_skip, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Replace each output of a layer by the first unused input of the same shape, as a forward hook.

    A module without such an input (a head on top of a layer, such as a detector's boxes, which correct those of the
    layer before) returns 0.
    """
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    replaced = 0

    def with_inputs(value: Any) -> Any:
        nonlocal replaced
        if isinstance(value, (tuple, list)):
            return type(value)(with_inputs(item) for item in value)
        is_tensor = isinstance(value, torch.Tensor)
        match = next((i for i, tensor in enumerate(inputs) if is_tensor and tensor.shape == value.shape), None)
        if match is None:
            return value
        replaced += 1
        return inputs.pop(match)

    skipped_output = with_inputs(output)
    return skipped_output if replaced or not isinstance(output, torch.Tensor) else torch.zeros_like(output)
