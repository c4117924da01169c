"""Experts of sparse models: what reaches them, what flows inside them, and how those that are left make up for others.

Routing is never changed: a repair moves the maps that experts give their output by.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.calibration import BATCH, Passes, hidden_of, watching
from hf_pe.calibration.experts import Call, count_tokens, inner
from hf_pe.modes import evaluating
from hf_pe.regression import CHANGE, Folds, fit
from hf_pe.tasks import TaskData

HELD_BACK = 4
"""Every so many batches one is kept back: a correction stays if it brings the block's output nearer there."""


@torch.no_grad()
def correct_(smaller: PreTrainedModel, model: PreTrainedModel, axis: Axis, data: TaskData) -> tuple[int, int]:
    """Let the experts that are left make up for the removed ones, in place, with the routing as it is.

    With d the gap between the block's output before and now, and g the gates of the token's experts, expert e takes
    its part of the least-squares step, g_e^2 / sum g^2 of d, by ridge regression on g_e times what flows into its
    output map. A block whose output does not come nearer on batches that were held back stays as it was.

    Args:
        smaller: cut along `axis`.
        model: the original, whose hidden states both see.
        axis: the experts of `model`.
        data: calibration rows.

    Returns:
        Blocks that were corrected, and all that could be: those whose experts say how their weights lie.
    """
    owners = dict.fromkeys(s.name.rpartition(".")[0] for s in axis.slots if s.name.endswith("down_proj"))
    pairs = {
        name.rpartition(".")[0]: _Pair(smaller, name)
        for name in owners
        if hasattr(model.get_submodule(name), "is_transposed")
    }
    if not pairs or len(data.calibration) <= BATCH:
        return 0, len(pairs)
    passes = Passes(model, model.base_model)
    last = -(-len(data.calibration) // BATCH) - 1

    def watch(pair: _Pair) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen = Seen(args, kwargs, hidden_of(output), passes.mask)
            if passes.number % HELD_BACK == HELD_BACK - 1 or passes.number == last:
                pair.held.append(seen)
            else:
                pair.learn(seen, passes.number)

        return hook

    handles = [
        model.get_submodule(block).register_forward_hook(watch(pair), with_kwargs=True) for block, pair in pairs.items()
    ]
    nearer = 0
    with watching(passes, handles), evaluating(smaller):
        for block in passes.walk(data, list(pairs), "correction of the experts"):
            nearer += pairs[block].corrected()
            pairs[block].clear()
    return nearer, len(pairs)


class Seen(NamedTuple):
    """What one batch meant for a sparse block: what it was given, gave, and which tokens count."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    mask: torch.Tensor | None


class _Pair:
    """A sparse block with fewer experts beside what the whole one gives."""

    def __init__(self, smaller: PreTrainedModel, name: str) -> None:
        self.block: Any = smaller.get_submodule(name.rpartition(".")[0])
        self.experts: Any = smaller.get_submodule(name)
        self.clear()

    def clear(self) -> None:
        """Forget all batches."""
        self.held: list[Seen] = []
        self.folds: dict[int, Folds] = {}

    def gap(self, seen: Seen) -> tuple[torch.Tensor, Call]:
        """What the output lacks, [tokens, width], and how the experts that are left were called."""
        calls: list[Call] = []
        handle = self.experts.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(Call.read(module, args, kwargs)), with_kwargs=True
        )
        try:
            gap = seen.output - hidden_of(self.block(*seen.args, **seen.kwargs))
        finally:
            handle.remove()
        gap = gap.reshape(-1, gap.shape[-1]).float()
        counts = count_tokens(seen.mask, len(gap)).to(gap.device)
        return gap[counts], Call(*(part[counts] for part in calls[0]))

    def learn(self, seen: Seen, number: int) -> None:
        """Add up what each expert's step is fitted on."""
        gap, call = self.gap(seen)
        total = call.gates.float().square().sum(1).clamp_min(1e-12)
        for expert in range(len(self.experts.down_proj)):
            token, gates = call.of(expert)
            if len(token):
                x = inner(self.experts, expert, call.hidden[token]).float() * gates[:, None]
                part = (gates.float().square() / total[token])[:, None] * gap[token]
                self.folds.setdefault(expert, Folds()).add(number, x, part)

    def corrected(self) -> bool:
        """Move the experts' output maps; back again where that does not help on what was held back."""
        weights = self.experts.down_proj.data
        plain, before = weights.clone(), self._error()
        for expert, folds in self.folds.items():
            move = fit(folds.moments(), bias=False, by_size=CHANGE).move
            weights[expert] += (move if self.experts.is_transposed else move.T).to(weights)
        if self._error() < before:
            return True
        weights.copy_(plain)
        return False

    def _error(self) -> float:
        return sum(float(self.gap(seen)[0].square().sum()) for seen in self.held)
