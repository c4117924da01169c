"""Second moments of what flows into modules, optionally weighted by token."""

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
from hf_pe.calibration.token_weights import GROWN, mean_square, turning
from hf_pe.regression import Folds, Moments
from hf_pe.tasks import TaskData, counted_rows


def moments(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    data: TaskData,
    what: str,
    added: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, list[Moments]]:
    """Moments of what flows into `modules`, by their keys, one for each fold.

    Args:
        model: in evaluation mode meanwhile.
        modules: of the model; each takes what it maps as its first argument.
        data: calibration rows.
        what: as progress is told.
        added: by some of these keys the block that adds what the module gives to the state on its way: there each token
            counts by `turning`, and by `GROWN` where no norm follows at once.
    """
    sums = _Sums(added)
    if modules:
        with sums.looking(model), watch(model, modules, sums.collect) as passes:
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
    """The same block by block, in one pass over the data, with the moments of one block in memory.

    Args:
        model, modules, data, what, added: as above.
        blocks: names of modules that hold `modules`, as the model comes by.
    """
    sums = _Sums(added)
    if modules:
        with sums.looking(model), watch(model, modules, sums.collect) as passes:
            for _ in passes.walk(data, blocks, what):
                yield sums.taken()


@dataclass
class _Term:
    """What a map gave in one batch, until it is known what became of it.

    Attributes:
        name: of the slot.
        number, mask: of the batch.
        inputs, gives: of the map.
        added: what is added to the state: `gives`, or what a norm made of it.
        state: what came of adding.
    """

    name: str
    number: int
    mask: torch.Tensor | None
    inputs: torch.Tensor
    gives: torch.Tensor
    added: torch.Tensor
    state: torch.Tensor | None = None

    def rows(self, end: Any, normed: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the map read [tokens, inputs], and what each token counts [tokens], in a block that ends in `end`, whose
        states come out of norms or not; all count the same where no state is of the shape of what was given."""
        state = self.state if self.state is not None else end
        if not isinstance(state, torch.Tensor) or not fits(self.added, state):
            return counted_rows(self.inputs, self.mask), None
        lead = max(state.shape, self.added.shape, key=len)[:-1]  # some flatten batch and tokens
        state, added = (part.reshape(*lead, -1).float() for part in (state, self.added))
        weight = turning(state - added, added)
        if self.added is not self.gives:
            weight = weight * mean_square(added) / mean_square(self.gives.reshape(*lead, -1).float())
        if not normed:
            weight = weight * mean_square(state) ** GROWN
        return counted_rows(self.inputs.reshape(*lead, -1), self.mask), counted_rows(weight, self.mask)[:, 0]


class _Sums:
    """Moments by slot as they come in.

    A map of a block in `added` waits until what it gave has been added: the next norm in the block reads the sum, or
    the block ends. (Gemma's norms read what the map gave, and what they make of it is added.)
    """

    def __init__(self, added: Mapping[str, str]) -> None:
        self.added = added
        self.terms: list[_Term] = []
        self.begun: Any = None  # the state that the block at work was given
        self.normed: Any = None  # what its last norm gave
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Folds] = {}
        self.first: dict[str, str] = {}  # one is enough of maps that read the very same tensor
        self.last: list[Any] = [None, ""]

    @contextmanager
    def looking(self, model: PreTrainedModel) -> Iterator[None]:
        """Keep hooks on the blocks in `added` and on their norms."""

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._settle()
            self.begun, self.normed = args[0] if args else kwargs.get("hidden_states"), None

        def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._settle(hidden_of(output))

        def norm(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            reads: Any = args[0] if args else kwargs["hidden_states"]
            for term in self.terms:
                if same(reads, term.added):
                    term.added = output
                elif term.state is None and fits(term.added, reads) and not same(reads, self.begun):
                    term.state = reads
            self.normed = output

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
        if inputs is self.last[0] and self.first.setdefault(name, self.last[1]) != name:
            return
        self.last[:] = inputs, self.first.setdefault(name, name)
        if name in self.added:
            self.terms.append(_Term(name, number, mask, inputs, output, output))
        else:
            self.sums.setdefault(name, Folds()).add(number, counted_rows(inputs, mask))

    def _settle(self, end: Any = None) -> None:
        """Sum what waits, now that its block has ended in the state `end`."""
        for term in self.terms:
            rows, weight = term.rows(end, normed=same(end, self.normed))
            self.sums.setdefault(term.name, Folds()).add(term.number, rows, weight=weight)
        self.terms.clear()

    def taken(self) -> dict[str, list[Moments]]:
        """What came since it was last asked for."""
        self._settle()
        sums = {name: folds.moments() for name, folds in self.sums.items()}
        found = {name: sums[source] for name, source in self.first.items()}
        self._clear()
        return found
