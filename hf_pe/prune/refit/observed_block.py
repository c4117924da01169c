"""Run one block on one batch and record the tensors that the sequential refit needs.

These are the input and output of one linear layer, the norms around it, and the hidden state that results. The symbols
are those of `hf_pe.prune.refit.sequential`: the layer reads x and returns y; the update u is y, or a norm of the block
applied to y; the block adds g u to the residual stream r; the hidden state h that the block hands on is the sum s, or
the block's last norm applied to s.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import is_norm
from hf_pe.calibration import PausedBatch, hidden_of, same_tensor
from hf_pe.prune.refit.observed_norm import TOLERANCE, ObservedNorm


class LastLinear(NamedTuple):
    """The linear layer that ends a block's FFN.

    Attributes:
        name: its name inside the block.
        factor: g, by which each coordinate of its update u is multiplied before it is added. *Shape:* (width,)
    """

    name: str
    factor: torch.Tensor


@dataclass
class ObservedLinear:
    """Hold what a linear layer computed on one batch.

    Attributes:
        inputs: x. *Shape:* (batch, tokens, inputs)
        outputs: y. *Shape:* (batch, tokens, width)
        update: u, the output of the norm that reads y, or y itself. *Shape:* (batch, tokens, width)
        update_module: the module whose output u is.
        norm: the norm that reads y, if any.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    update: torch.Tensor
    update_module: nn.Module
    norm: ObservedNorm | None = None

    def follow(self, module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Take the output of a norm as the update u, where the norm reads y."""
        is_read = self.norm is None and same_tensor(inputs, self.outputs)
        if is_read and (norm := ObservedNorm.of(module, inputs, outputs)):
            self.norm, self.update, self.update_module = norm, outputs, module

    def in_float32(self, like: torch.Tensor) -> None:
        """Convert the tensors to float32, and to the shape of `like` where a model flattened batch and tokens."""
        self.inputs, self.outputs, self.update = self.inputs.float(), self.outputs.float(), self.update.float()
        if self.outputs.numel() == like.numel():
            self.inputs = self.inputs.reshape(*like.shape[:-1], -1)
            self.outputs, self.update = self.outputs.reshape(like.shape), self.update.reshape(like.shape)


class ObservedBlock(NamedTuple):
    """The tensors that a block computed on one batch.

    Attributes:
        linear: the tensors of the linear layer, as float32.
        state: h, the hidden state after the block, or the one that its FFN reads. *Shape:* (batch, tokens, width)
        norm: the norm whose output h is, if any.
        sum: s, the input of that norm; h where there is none. *Shape:* (batch, tokens, width)
    """

    linear: ObservedLinear
    state: torch.Tensor
    norm: ObservedNorm | None
    sum: torch.Tensor


class _NormRun(NamedTuple):
    """The input and output of a norm on one batch."""

    module: nn.Module
    inputs: torch.Tensor
    outputs: torch.Tensor


def observe(
    model: PreTrainedModel, block: str, name: str, last: LastLinear | None, paused: PausedBatch
) -> ObservedBlock:
    """Run one block on one batch and return what its linear layer `name` and its norms computed.

    Args:
        model: the model that the block belongs to.
        block: name of the block.
        name: name of the linear layer inside the block.
        last: the linear layer that ends the block's FFN, to get the hidden state before the FFN's update is added.
            None: the hidden state after the block.
        paused: a batch that waits before the block.
    """
    module = model.get_submodule(block)
    linears: dict[str, ObservedLinear] = {}
    norms: list[_NormRun] = []

    def record_linear(key: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            linears[key] = ObservedLinear(args[0], output, output, module)

        return record

    def record_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(output, torch.Tensor):
            norms.append(_NormRun(module, args[0], output))
            for linear in linears.values():
                linear.follow(module, args[0], output)

    names = (name, last.name) if last else (name,)
    handles = [module.get_submodule(key).register_forward_hook(record_linear(key)) for key in dict.fromkeys(names)]
    handles += [norm.register_forward_hook(record_norm) for norm in module.modules() if is_norm(norm)]
    try:
        with torch.no_grad():
            state = hidden_of(module(*paused.args, **paused.kwargs)).float()
    finally:
        for handle in handles:
            handle.remove()
    norm, total = _norm_before(norms, state)
    if last is not None:
        state = total - last.factor * linears[last.name].update.float().reshape(total.shape)
        norm, total = _norm_before(norms, state)
    observed = linears[name]
    observed.in_float32(like=total)
    return ObservedBlock(observed, state, norm, total)


def _norm_before(norms: list[_NormRun], state: torch.Tensor) -> tuple[ObservedNorm | None, torch.Tensor]:
    """Return the norm whose output is `state`, and that norm's input; None and `state` itself where there is none."""
    tolerance = TOLERANCE * state.square().mean().sqrt()
    for run in reversed(norms):
        is_state = run.outputs.shape == state.shape and (run.outputs.float() - state).abs().max() <= tolerance
        if is_state and (norm := ObservedNorm.of(*run)):
            return norm, run.inputs.float()
    return None, state


def update_factor(
    model: PreTrainedModel, block: str, name: str, last: LastLinear | None, paused: PausedBatch
) -> torch.Tensor | None:
    """Return g, the factor of each coordinate of a linear layer's update u in the sum s.

    It is measured: a random step is added to u, and s must move by g times this step at every token.

    Args:
        model: see `observe`, as for all arguments.
        block: name of the block.
        name: name of the linear layer inside the block.
        last: the linear layer that ends the block's FFN, or None.
        paused: a batch that waits before the block.

    Returns:
        *Shape:* (width,). None where the factor differs between tokens, or s depends on u in another way.
    """
    before = observe(model, block, name, last, paused)
    update = before.linear.update
    if update.shape != before.sum.shape:
        return None
    step = torch.randn(update.shape, generator=torch.Generator().manual_seed(0)).to(update.device)
    step = step * update.abs().mean()
    handle = before.linear.update_module.register_forward_hook(
        lambda module, args, output: output + step.reshape(output.shape).to(output)
    )
    try:
        moved = observe(model, block, name, last, paused).sum - before.sum
    finally:
        handle.remove()
    tokens = tuple(range(step.ndim - 1))
    factor = (moved * step).sum(tokens) / step.square().sum(tokens)
    return factor if bool((moved - factor * step).abs().max() < 0.05 * (factor * step).abs().max()) else None
