"""Second moments of what flows into modules, optionally weighted by token.

With x the input of a linear map at one token and q the token's weight, the second moment is the sum over all tokens of
q x x^T. A map whose output is added to the residual stream weighs its tokens by how far an error turns the stream:

    r    residual state that the block adds to
    y    output of the map
    u    update: y itself, or what a norm of the block makes of it (Gemma)
    s    state that comes of adding, r + u
    q    direction_weight(r, u), times mean(u^2) / mean(y^2) where a norm lies between, times mean(s^2)^SIZE_EXPONENT
         where no norm reads s at once

s is only known after the map has run: the next norm of the block reads it, or the block ends with it. Until then the
map's tensors wait as a `_PendingUpdate`.
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
from hf_pe.calibration.hooks import fits, hidden_of, same, watch
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
    """Return second moments of what flows into `modules`, by their keys, one for each fold.

    Args:
        model: in evaluation mode meanwhile.
        modules: of the model; each takes what it maps as its first argument.
        data: calibration rows.
        what: as progress is told.
        added: by some of these keys the block that adds the module's output to the residual stream: there each token
            has the weight q of this module's docstring; elsewhere all count the same.
    """
    sums = _MomentSums(added)
    if modules:
        with sums.hooked(model), watch(model, modules, sums.collect) as passes:
            passes.run(data, what)
    return sums.taken()


def moments_by_block(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    blocks: Sequence[str],
    data: TaskData,
    what: str,
    added: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[dict[str, list[Moments]]]:
    """Yield the same block by block, in one pass over the data, with the moments of one block in memory.

    Args:
        model, modules, data, what, added: as above.
        blocks: names of modules that hold `modules`, as the model comes by.
    """
    sums = _MomentSums(added)
    if modules:
        with sums.hooked(model), watch(model, modules, sums.collect) as passes:
            for _ in passes.walk(data, blocks, what):
                yield sums.taken()


@dataclass
class _PendingUpdate:
    """What a map gave in one batch, until the state that it was added to is known.

    Attributes:
        name: of the map.
        batch_number: of the batch.
        mask: tokens of the batch that count.
        inputs: x, of the map.
        outputs: y, of the map.
        update: u, the map's outputs or what a norm made of them.
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
        """Return the inputs x [tokens, inputs], and the weights q [tokens]; None: no state is of the update's shape.

        Args:
            block_output: the state that the block ended with.
            is_normed: whether that state is the output of a norm.
        """
        state = self.state if self.state is not None else block_output
        if not isinstance(state, torch.Tensor) or not fits(self.update, state):
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
    """Moments by map, summed up as batches come by.

    Args:
        added: by name of a map the block that adds its output to the residual stream.
    """

    def __init__(self, added: Mapping[str, str]) -> None:
        self.added = added
        self.pending: list[_PendingUpdate] = []
        self.block_input: Any = None  # r of the block that runs
        self.norm_output: Any = None  # of the last norm that ran in it
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Folds] = {}
        self.summed_as: dict[str, str] = {}  # maps that read the very same tensor share the sums of the first
        self.last_inputs: torch.Tensor | None = None
        self.last_name = ""

    @contextmanager
    def hooked(self, model: PreTrainedModel) -> Iterator[None]:
        """Keep hooks on the blocks in `added` and on their norms."""

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
        """Sum a map's inputs, or keep them until its update has been added."""
        if inputs is self.last_inputs and self.summed_as.setdefault(name, self.last_name) != name:
            return
        self.last_inputs, self.last_name = inputs, self.summed_as.setdefault(name, name)
        if name in self.added:
            self.pending.append(_PendingUpdate(name, number, mask, inputs, output, update=output))
        else:
            self.sums.setdefault(name, Folds()).add(number, counted_rows(inputs, mask))

    def _follow(self, norm_input: torch.Tensor, norm_output: torch.Tensor) -> None:
        """Note what a norm says of pending updates: it reads the update, which it replaces, or the state r + u."""
        for update in self.pending:
            if same(norm_input, update.update):
                update.update = norm_output
            elif update.state is None and fits(update.update, norm_input) and not same(norm_input, self.block_input):
                update.state = norm_input
        self.norm_output = norm_output

    def _settle(self, block_output: Any = None) -> None:
        """Sum all pending updates, now that their block has ended."""
        for update in self.pending:
            rows, weight = update.rows(block_output, is_normed=same(block_output, self.norm_output))
            self.sums.setdefault(update.name, Folds()).add(update.batch_number, rows, weight=weight)
        self.pending.clear()

    def taken(self) -> dict[str, list[Moments]]:
        """Return the moments since the last call."""
        self._settle()
        sums = {name: folds.moments() for name, folds in self.sums.items()}
        by_name = {name: sums[source] for name, source in self.summed_as.items()}
        self._clear()
        return by_name
