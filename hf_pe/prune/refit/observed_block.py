"""One block run on one batch, with one of its linear maps, the norms around it and the state that comes of it.

The symbols are those of `hf_pe.prune.refit.sequential`: the map reads x and gives y; u is y, or what a norm of the
block makes of y; the block adds g u to the residual stream r, and the sum s, or what a last norm of the block makes of
it, is the state h that the block hands on.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import is_norm
from hf_pe.calibration import Waiting, hidden_of, same
from hf_pe.prune.refit.observed_norm import TOLERANCE, ObservedNorm


class LastMap(NamedTuple):
    """The map that ends a block's FFN.

    Attributes:
        name: inside the block.
        factor: g, by which each coordinate of its u is multiplied before it is added. *Shape:* (width,)
    """

    name: str
    factor: torch.Tensor


@dataclass
class ObservedMap:
    """A linear map at work.

    Attributes:
        inputs: x. *Shape:* (batch, tokens, inputs)
        outputs: y. *Shape:* (batch, tokens, width)
        update: u, what the norm that reads y gives, or y. *Shape:* (batch, tokens, width)
        update_module: the module that gives u.
        norm: the norm that reads y, if any.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    update: torch.Tensor
    update_module: nn.Module
    norm: ObservedNorm | None = None

    def follow(self, module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Note that a norm ran: where it reads y, u is what it gives."""
        if self.norm is None and same(inputs, self.outputs) and (norm := ObservedNorm.of(module, inputs, outputs)):
            self.norm, self.update, self.update_module = norm, outputs, module

    def in_float32(self, like: torch.Tensor) -> None:
        """Turn the tensors into float32, of the shape of `like` where y is as large: some models flatten tokens."""
        self.inputs, self.outputs, self.update = self.inputs.float(), self.outputs.float(), self.update.float()
        if self.outputs.numel() == like.numel():
            self.inputs = self.inputs.reshape(*like.shape[:-1], -1)
            self.outputs, self.update = self.outputs.reshape(like.shape), self.update.reshape(like.shape)


class ObservedBlock(NamedTuple):
    """One map of a block at work, and what comes of it.

    Attributes:
        map: with tensors in float32.
        state: h, at the block's end, or the state that its FFN is handed. *Shape:* (batch, tokens, width)
        norm: that gives h, if any.
        sum: s, the input of that norm, or h. *Shape:* (batch, tokens, width)
    """

    map: ObservedMap
    state: torch.Tensor
    norm: ObservedNorm | None
    sum: torch.Tensor


class _NormRun(NamedTuple):
    """One pass of a batch through a norm."""

    module: nn.Module
    inputs: torch.Tensor
    outputs: torch.Tensor


def observe(model: PreTrainedModel, block: str, name: str, last: LastMap | None, waiting: Waiting) -> ObservedBlock:
    """Run one block and return its map `name` at work, and the state at its end.

    Args:
        model: that the block is part of.
        block: its name.
        name: of the map inside it.
        last: the map that ends the block's FFN: the state is then the one before what this map adds.
        waiting: a batch before the block.
    """
    module = model.get_submodule(block)
    maps: dict[str, ObservedMap] = {}
    norms: list[_NormRun] = []

    def keep_map(key: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            maps[key] = ObservedMap(args[0], output, output, module)

        return keep

    def keep_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(output, torch.Tensor):
            norms.append(_NormRun(module, args[0], output))
            for each in maps.values():
                each.follow(module, args[0], output)

    names = (name, last.name) if last else (name,)
    handles = [module.get_submodule(key).register_forward_hook(keep_map(key)) for key in dict.fromkeys(names)]
    handles += [each.register_forward_hook(keep_norm) for each in module.modules() if is_norm(each)]
    try:
        with torch.no_grad():
            state = hidden_of(module(*waiting.args, **waiting.kwargs)).float()
    finally:
        for handle in handles:
            handle.remove()
    norm, total = _norm_behind(norms, state)
    if last is not None:
        state = total - last.factor * maps[last.name].update.float().reshape(total.shape)
        norm, total = _norm_behind(norms, state)
    observed = maps[name]
    observed.in_float32(like=total)
    return ObservedBlock(observed, state, norm, total)


def _norm_behind(norms: list[_NormRun], state: torch.Tensor) -> tuple[ObservedNorm | None, torch.Tensor]:
    """Return the norm whose output a state is, and the norm's input; None and the state where there is none."""
    tolerance = TOLERANCE * state.square().mean().sqrt()
    for run in reversed(norms):
        is_state = run.outputs.shape == state.shape and (run.outputs.float() - state).abs().max() <= tolerance
        if is_state and (norm := ObservedNorm.of(*run)):
            return norm, run.inputs.float()
    return None, state


def update_factor(
    model: PreTrainedModel, block: str, name: str, last: LastMap | None, waiting: Waiting
) -> torch.Tensor | None:
    """Return g, what each coordinate of a map's update u is multiplied by before the block adds it.

    A random step is added to u, and the sum s must move by g times this step at every token.

    Args:
        model, block, name, last, waiting: see `observe`.

    Returns:
        *Shape:* (width,); None where that is not the same for every token, or something else happens to u.
    """
    before = observe(model, block, name, last, waiting)
    update = before.map.update
    if update.shape != before.sum.shape:
        return None
    step = torch.randn(update.shape, generator=torch.Generator().manual_seed(0)).to(update.device)
    step = step * update.abs().mean()
    handle = before.map.update_module.register_forward_hook(
        lambda module, args, output: output + step.reshape(output.shape).to(output)
    )
    try:
        moved = observe(model, block, name, last, waiting).sum - before.sum
    finally:
        handle.remove()
    tokens = tuple(range(step.ndim - 1))
    factor = (moved * step).sum(tokens) / step.square().sum(tokens)
    return factor if bool((moved - factor * step).abs().max() < 0.05 * (factor * step).abs().max()) else None
