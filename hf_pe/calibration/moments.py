"""Second moments of the inputs of linear layers, optionally with a weight for each token.

With x the input of a layer at one token and q the token's weight, the second moment is the sum over all tokens of
q x x^T. Where a layer's output is added to the residual stream, q says how far an error there rotates the stream:

    r    residual stream: the hidden state that the block adds the update to
    y    output of the layer
    u    update: y itself, or a norm of y where the block has one (Gemma)
    s    the sum r + u
    q    direction_weight(r, u), times mean(u^2) / mean(y^2) where a norm makes u of y, times mean(s^2)^SIZE_EXPONENT
         where no norm reads s before another block adds to it

s is known only after the layer has run: it is the input of the block's next norm, or the block's output. Until then
the layer's tensors wait as a `_PendingUpdate`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import is_norm
from hf_pe.calibration.hooks import hidden_of, same_rows, same_tensor, watch
from hf_pe.calibration.token_weights import SIZE_EXPONENT, direction_weight, mean_square
from hf_pe.regression import Folds, Moments
from hf_pe.tasks import TaskData, counted_rows


def moments(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    data: TaskData,
    what: str,
    added: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, list[Moments]]:
    """Return the second moments of the inputs of `modules`, by their keys, as one `Moments` for each fold.

    Args:
        model: in evaluation mode meanwhile.
        modules: linear layers of the model, whose first argument is their input, by keys of the caller's choice.
        data: has the calibration rows.
        what: names the work in progress lines.
        added: for some of the keys the name of the block that adds the layer's output to the residual stream. These
            layers weigh their tokens by q, see above; in the others all tokens count the same.
    """
    sums = _MomentSums(added)
    if modules:
        with sums.hooked(model), watch(model, modules, sums.collect) as passes:
            passes.run(data, what)
    return sums.pop()


def moments_by_block(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    blocks: Sequence[str],
    data: TaskData,
    what: str,
    added: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[dict[str, list[Moments]]]:
    """Yield the second moments of one block after the other, in one pass over the data.

    Only the moments of one block are in memory at a time.

    Args:
        model: see `moments`.
        modules: see `moments`.
        blocks: names of the blocks that hold `modules`, in the order in which the model runs them.
        data: see `moments`.
        what: see `moments`.
        added: see `moments`.
    """
    sums = _MomentSums(added)
    if modules:
        with sums.hooked(model), watch(model, modules, sums.collect) as passes:
            for _ in passes.by_block(data, blocks, what):
                yield sums.pop()


@dataclass
class _PendingUpdate:
    """Hold the tensors of a layer on one batch until the sum s is known.

    Attributes:
        name: key of the layer.
        batch_number: number of the batch.
        mask: attention mask of the batch; None where all tokens count.
        inputs: x.
        outputs: y.
        update: u, the outputs or a norm of them.
        state: s, once it is known.
    """

    name: str
    batch_number: int
    mask: torch.Tensor | None
    inputs: torch.Tensor
    outputs: torch.Tensor
    update: torch.Tensor
    state: torch.Tensor | None = None

    def rows(self, block_output: Any, is_normed: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the inputs x [tokens, inputs] and the weights q [tokens]; no weights where s has another shape.

        Args:
            block_output: the hidden state that the block handed on.
            is_normed: whether a norm computed that state.
        """
        state = self.state if self.state is not None else block_output
        if not isinstance(state, torch.Tensor) or not same_rows(self.update, state):
            return counted_rows(self.inputs, self.mask), None
        lead = max(state.shape, self.update.shape, key=len)[:-1]  # some models flatten batch and tokens
        state, update = (part.reshape(*lead, -1).float() for part in (state, self.update))
        weight = direction_weight(state - update, update)
        if self.update is not self.outputs:
            weight = weight * mean_square(update) / mean_square(self.outputs.reshape(*lead, -1).float())
        if not is_normed:
            weight = weight * mean_square(state) ** SIZE_EXPONENT
        return counted_rows(self.inputs.reshape(*lead, -1), self.mask), counted_rows(weight, self.mask)[:, 0]


class _MomentSums:
    """Sum up second moments while batches run.

    Args:
        added: see `moments`.
    """

    def __init__(self, added: Mapping[str, str]) -> None:
        self.added = added
        self.pending: list[_PendingUpdate] = []
        self.block_input: Any = None  # the residual stream as the running block reads it
        self.norm_output: Any = None  # output of the last norm that ran in this block
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Folds] = {}
        self.summed_as: dict[str, str] = {}  # layers that read the very same tensor share the sums of the first
        self.last_inputs: torch.Tensor | None = None
        self.last_name = ""

    @contextmanager
    def hooked(self, model: PreTrainedModel) -> Iterator[None]:
        """Hold hooks on the blocks in `added` and on their norms."""

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._settle()
            self.block_input, self.norm_output = args[0] if args else kwargs.get("hidden_states"), None

        def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._settle(hidden_of(output))

        def norm(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._follow(args[0] if args else kwargs["hidden_states"], output)

        blocks = [model.get_submodule(name) for name in dict.fromkeys(self.added.values())]
        norms = dict.fromkeys(m for block in blocks for m in block.modules() if is_norm(m))
        handles = [module.register_forward_hook(norm, with_kwargs=True) for module in norms]
        handles += [block.register_forward_pre_hook(begin, with_kwargs=True) for block in blocks]
        handles += [block.register_forward_hook(end) for block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def collect(self, name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        """Add a layer's inputs to its sums, or hold them until its update has been added to the residual stream."""
        if inputs is self.last_inputs and self.summed_as.setdefault(name, self.last_name) != name:
            return
        self.last_inputs, self.last_name = inputs, self.summed_as.setdefault(name, name)
        if name in self.added:
            self.pending.append(_PendingUpdate(name, number, mask, inputs, output, update=output))
        else:
            self.sums.setdefault(name, Folds()).add(number, counted_rows(inputs, mask))

    def _follow(self, norm_input: torch.Tensor, norm_output: torch.Tensor) -> None:
        """Match a norm with pending updates: its input is an update, which its output replaces, or the sum s."""
        for pending in self.pending:
            if same_tensor(norm_input, pending.update):
                pending.update = norm_output
            elif (
                pending.state is None
                and same_rows(pending.update, norm_input)
                and not same_tensor(norm_input, self.block_input)
            ):
                pending.state = norm_input
        self.norm_output = norm_output

    def _settle(self, block_output: Any = None) -> None:
        """Add all pending updates to the sums, now that their block has ended."""
        for pending in self.pending:
            rows, weight = pending.rows(block_output, is_normed=same_tensor(block_output, self.norm_output))
            self.sums.setdefault(pending.name, Folds()).add(pending.batch_number, rows, weight=weight)
        self.pending.clear()

    def pop(self) -> dict[str, list[Moments]]:
        """Return the moments since the last call, and start again from zero."""
        self._settle()
        sums = {name: folds.moments() for name, folds in self.sums.items()}
        by_name = {name: sums[source] for name, source in self.summed_as.items()}
        self._clear()
        return by_name
