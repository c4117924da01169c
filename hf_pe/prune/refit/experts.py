"""Refit the experts that a mixture keeps, so that its blocks return what they did with the removed experts.

The router stays as it is; only the output projections of the kept experts change, by least squares on calibration rows.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.calibration import BATCH, Passes, hidden_of, watching
from hf_pe.calibration.experts import Call, counted_tokens, expert_inner
from hf_pe.modes import evaluating
from hf_pe.regression import CHANGE, Folds, fit
from hf_pe.tasks import TaskData

HELD_BACK = 4
"""One of this many batches is not fitted on: a refit is kept if it brings the block's output nearer there."""


@torch.no_grad()
def refit_experts_(smaller: PreTrainedModel, model: PreTrainedModel, axis: Axis, data: TaskData) -> tuple[int, int]:
    """Refit the kept experts of `smaller` in place, so that they take over the work of the removed ones.

    Let d be the difference between the outputs of the original block and of the smaller one at a token, and g the gates
    of the token's experts. Expert e is fitted to its part of the least-norm correction, g_e^2 / sum(g^2) of d, by a
    ridge regression on g_e times the input of its output projection. A block stays as it was where this does not bring
    its output nearer on batches that were not fitted on.

    Args:
        smaller: the model cut along `axis`.
        model: the original. The blocks of both models are compared on its hidden states.
        axis: the experts of `model`.
        data: has the calibration rows.

    Returns:
        The number of blocks that were refitted, and of those that could be: their experts say how weights are stacked.
    """
    owners = dict.fromkeys(s.name.rpartition(".")[0] for s in axis.slots if s.name.endswith("down_proj"))
    blocks = {
        name.rpartition(".")[0]: _SparseBlock(smaller, name)
        for name in owners
        if hasattr(model.get_submodule(name), "is_transposed")
    }
    if not blocks or len(data.calibration) <= BATCH:
        return 0, len(blocks)
    passes = Passes(model, model.base_model)
    last = -(-len(data.calibration) // BATCH) - 1

    def comparing(block: _SparseBlock) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            call = BlockCall(args, kwargs, hidden_of(output), passes.mask)
            if passes.number % HELD_BACK == HELD_BACK - 1 or passes.number == last:
                block.held_back.append(call)
            else:
                block.collect(call, passes.number)

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(comparing(block), with_kwargs=True)
        for name, block in blocks.items()
    ]
    refitted = 0
    with watching(passes, handles), evaluating(smaller):
        for name in passes.by_block(data, list(blocks), "refit of the experts"):
            refitted += blocks[name].refit_()
            blocks[name].clear()
    return refitted, len(blocks)


class BlockCall(NamedTuple):
    """One call of a sparse block of the original.

    Attributes:
        args: its positional arguments.
        kwargs: its keyword arguments.
        output: the hidden states that it returned. *Shape:* (batch, tokens, width)
        mask: the attention mask of the batch; None where all tokens count.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    mask: torch.Tensor | None


class _SparseBlock:
    """A block with fewer experts, and what it has to learn from the calls of the original block."""

    def __init__(self, smaller: PreTrainedModel, name: str) -> None:
        self.block: Any = smaller.get_submodule(name.rpartition(".")[0])
        self.experts: Any = smaller.get_submodule(name)
        self.clear()

    def clear(self) -> None:
        """Drop the statistics of all batches."""
        self.held_back: list[BlockCall] = []
        self.folds: dict[int, Folds] = {}

    def difference(self, call: BlockCall) -> tuple[torch.Tensor, Call]:
        """Return what the smaller block's output lacks, [tokens, width], and the call of its experts."""
        calls: list[Call] = []
        handle = self.experts.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(Call.read(module, args, kwargs)), with_kwargs=True
        )
        try:
            difference = call.output - hidden_of(self.block(*call.args, **call.kwargs))
        finally:
            handle.remove()
        difference = difference.reshape(-1, difference.shape[-1]).float()
        counts = counted_tokens(call.mask, len(difference)).to(difference.device)
        return difference[counts], Call(*(part[counts] for part in calls[0]))

    def collect(self, call: BlockCall, number: int) -> None:
        """Add batch `number` to the sums that each expert's regression is fitted on."""
        difference, expert_call = self.difference(call)
        total = expert_call.gates.float().square().sum(1).clamp_min(1e-12)
        for expert in range(len(self.experts.down_proj)):
            token, gates = expert_call.of(expert)
            if len(token):
                x = expert_inner(self.experts, expert, expert_call.hidden[token]).float() * gates[:, None]
                part = (gates.float().square() / total[token])[:, None] * difference[token]
                self.folds.setdefault(expert, Folds()).add(number, x, part)

    def refit_(self) -> bool:
        """Change the experts' output projections; undo it and return False where the held-back error does not fall."""
        weights = self.experts.down_proj.data
        original, error = weights.clone(), self._held_back_error()
        for expert, folds in self.folds.items():
            move = fit(folds.moments(), bias=False, by_size=CHANGE).move
            weights[expert] += (move if self.experts.is_transposed else move.T).to(weights)
        if self._held_back_error() < error:
            return True
        weights.copy_(original)
        return False

    def _held_back_error(self) -> float:
        return sum(float(self.difference(call)[0].square().sum()) for call in self.held_back)
