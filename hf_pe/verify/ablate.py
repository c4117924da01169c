"""Ablates units, heads and layers: they stay in the model but no longer have an effect."""

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
    """Inside the block, removed layers hand on what they are given."""
    names = [f"{stack}.{i}" for stack, units in kept.items() for i in set(range(axis.size)) - set(units)]
    with skipped([model.get_submodule(name) for name in names]):
        yield


@contextlib.contextmanager
def _zeroed(model: PreTrainedModel, axis: Axis, kept: Kept) -> Iterator[None]:
    """Inside the block, the removed units are zero in every slot."""
    state = model.state_dict()
    saved = {slot.name: state[slot.name].clone() for slot in axis.slots if slot.name in state}
    for slot in axis.slots:
        if slot.name in state:
            gone = torch.tensor(sorted(set(range(axis.size)) - set(kept[slot.group])), dtype=torch.long)
            slot.of(state).index_fill_(slot.dim or 0, slot.layout.positions(gone, axis.size), 0)
    norms = _told_the_width(model, axis, kept)
    try:
        yield
    finally:
        for name, tensor in saved.items():
            state[name].copy_(tensor)
        for norm in norms:
            norm.remove()


NEVER = -1e30
"""The router's logit of an expert that is not there."""


class _Logits(TorchFunctionMode):
    """Where a router's weight is multiplied with, the logits of its removed experts become `NEVER`."""

    def __init__(self, gone: dict[int, list[int]]) -> None:
        super().__init__()
        self.gone = gone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        units = self.gone.get(id(args[1])) if func is nn.functional.linear and len(args) > 1 else None
        if units:
            found = found.clone()
            found[..., units] = NEVER
        return found


@contextlib.contextmanager
def _never_routed(model: PreTrainedModel, axis: Axis, kept: Kept) -> Iterator[None]:
    """Inside the block the removed experts get no token: a zero router row would still be a logit of 0."""
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    slots = [slot for slot in axis.slots if slot.name in state]
    gone = {slot.name: sorted(set(range(axis.size)) - set(kept[slot.group])) for slot in slots}
    biases = {slot.name: state[slot.name].clone() for slot in slots if state[slot.name].ndim == 1}
    for name in biases:
        state[name].data[gone[name]] = NEVER
    try:
        with _Logits({id(state[s.name]): gone[s.name] for s in slots if state[s.name].ndim == 2}):
            yield
    finally:
        for name, tensor in biases.items():
            state[name].data.copy_(tensor)


def _told_the_width(model: PreTrainedModel, axis: Axis, kept: Kept) -> list[Any]:  # noqa: C901  one step after the other
    """Let every norm along `axis`, of the hidden width those without weights too, count the kept coordinates only."""

    def narrowed(module: nn.Module, places: torch.Tensor, width: int) -> Any:
        small = copy.deepcopy(module)
        for parameter in small.parameters():
            parameter.data = parameter.data[..., places]
        if hasattr(small, "normalized_shape"):
            small.normalized_shape = (len(places),)  # type: ignore[assignment]
        if isinstance(small, nn.GroupNorm):
            small.num_channels = len(places)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not args:
                return None
            dim = next((d for d in (-1, 1) if args[0].shape[d] == width), None)
            if dim is None:  # of a head
                return None
            given = small(args[0].index_select(dim, places), *args[1:], **kwargs)
            if isinstance(output, tuple):  # with the scale of its integers (I-BERT)
                return (torch.zeros_like(output[0]).index_copy(dim, places, given[0]), *given[1:])
            return torch.zeros_like(output).index_copy(dim, places, given)

        return module.register_forward_hook(hook, with_kwargs=True)

    hooks = []
    for name, places in kept_along(model, axis, kept).items():
        module = model.get_submodule(name)
        grouped = isinstance(module, nn.GroupNorm) and module.num_groups > 1  # other channels would come together
        if not grouped and not isinstance(module, _BatchNorm):  # which takes each channel for itself
            hooks.append(narrowed(module, places, next(module.parameters()).shape[-1]))
    if axis.kind.is_residual:
        units = torch.as_tensor(kept[EVERYWHERE])
        free = [m for m in model.modules() if is_norm(m) and not [*m.parameters(), *m.buffers()]]
        hooks += [narrowed(module, units, axis.size) for module in free]
    return hooks


ABLATIONS: dict[Ablation, Callable[[PreTrainedModel, Axis, Kept], contextlib.AbstractContextManager[None]]] = {
    "zero": _zeroed,
    "skip": _skipped_layers,
    "never_route": _never_routed,
}
"""By the name that the record of a kind of axis gives (`hf_pe.anatomy.AxisKind.ablation`)."""


def narrowed_outputs(one: torch.Tensor, other: torch.Tensor, axis: Axis, kept: Kept) -> torch.Tensor:
    """Of an output that has the hidden width, or a multiple of it (Swin's later stages), the kept coordinates; of one
    with an entry for each layer (a detector's boxes) those of the kept layers."""
    units = torch.as_tensor(kept[axis.groups[0]])
    for dim, (length, left) in enumerate(zip(one.shape, other.shape, strict=False)):
        times = length // axis.size
        if length != left and length == times * axis.size and left == times * len(units):
            places = Layout((1,) * times).positions(units, axis.size)
            one = one.index_select(dim, places.to(one.device))
    return one


@contextlib.contextmanager
def skipped(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, layers hand on what they are given."""
    hooks = [layer.register_forward_hook(_skip, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook: the layer gives back each stream that it was given; a head of its own on top of it (a detector's
    boxes, each layer correcting the last) gives 0."""
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
    passed = 0

    def through(found: Any) -> Any:
        nonlocal passed
        if isinstance(found, (tuple, list)):
            return type(found)(through(each) for each in found)
        same = next(
            (i for i, e in enumerate(given) if isinstance(found, torch.Tensor) and e.shape == found.shape), None
        )
        if same is None:
            return found
        passed += 1
        return given.pop(same)

    skipped = through(output)
    return skipped if passed or not isinstance(output, torch.Tensor) else torch.zeros_like(output)
