"""Forward passes over the calibration rows, and what flows into modules meanwhile."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import is_norm
from hf_pe.calibration.blockwise import Stop, lockstep
from hf_pe.dummies.inputs import no_cache
from hf_pe.modes import evaluating
from hf_pe.progress import advance
from hf_pe.regression import Folds, Moments
from hf_pe.tasks import Batch, TaskData, counted_rows, model_inputs

BATCH = 8
"""Calibration rows a forward pass takes."""
GROWN = 0.5
"""Power of a state's mean square that an error counts by beside `turning` where the state goes on without a norm: later
blocks add to it before a norm divides by its size, which is then neither that of now (0) nor the same for all (1)."""


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


class Passes:
    """Forward passes of a model in evaluation mode, whose hooks can ask which batch is on its way.

    Attributes:
        number, mask: of the batch, and its attention mask.
    """

    def __init__(self, model: PreTrainedModel, body: nn.Module) -> None:
        self.model, self.body = model, body
        self.number = 0
        self.mask: torch.Tensor | None = None

    def run(self, data: TaskData, what: str) -> None:
        """All calibration rows, batch by batch."""
        done = 0
        with torch.no_grad():
            for number, batch in enumerate(data.batches(data.calibration, BATCH)):
                batch = {k: v.to(self.model.device) for k, v in batch.items()}
                self._turn(number, batch)
                self.body(**model_inputs(batch))
                done += len(next(iter(batch.values())))
                advance(what, done, len(data.calibration))

    def walk(self, data: TaskData, blocks: Sequence[str], what: str) -> Iterator[str]:
        """All calibration rows through one block after the other; each is given when they are through."""
        batches = data.batches(data.calibration, BATCH)
        with lockstep(self.model, batches, [Stop(block, after=True) for block in blocks], self._turn) as doors:
            for done, (block, _) in enumerate(zip(blocks, doors, strict=True), 1):
                advance(what, done, len(blocks))
                yield block

    def _turn(self, number: int, batch: Batch) -> None:
        self.number, self.mask = number, batch.get("attention_mask")


@contextmanager
def watching(passes: Passes, handles: list[Any]) -> Iterator[Passes]:
    """Keep hooks, and evaluation mode, while `passes` run."""
    with evaluating(passes.model):
        try:
            yield passes
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def watch(model: PreTrainedModel, modules: Mapping[str, nn.Module], collect: Callable[..., None]) -> Iterator[Passes]:
    """`collect` gets what each of `modules` reads and gives."""
    passes = Passes(model, _body(model, list(modules.values())))

    def hook(name: str) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            collect(name, passes.number, passes.mask, inputs, output)

        return read

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    with watching(passes, handles):
        yield passes


@torch.no_grad()
def comes_by(model: PreTrainedModel, modules: Mapping[str, nn.Module], batch: Batch) -> Counter[str]:
    """How often a batch comes by each of `modules`, by their keys."""
    calls: Counter[str] = Counter()
    hooks = [m.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, m in modules.items()]
    with watching(Passes(model, model), hooks):
        model(**model_inputs({k: v.to(model.device) for k, v in batch.items()}), **no_cache(model))
    return calls


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states among what a block gives."""
    while isinstance(output, tuple):
        output = output[0]
    return cast(torch.Tensor, output)


def turning(before: torch.Tensor, gives: torch.Tensor) -> torch.Tensor:
    """What a squared error of a map counts, token by token [..., 1].

    A few tokens of many models are a hundred times as large as the others, and a plain regression would give the others
    up for them. But later blocks see states through norms: their direction alone. So an error counts by how far the
    state turns where what the map gives is missing: sin^2 of the angle between `before` and before + gives, over the
    mean square of `gives`. For something small at right angles that is 1 / the mean square of the state.

    Args:
        before: what the map's output is added to, [..., width].
        gives: that output.
    """
    before, gives = before.float(), gives.float()
    state = before + gives
    along = (state * gives).mean(-1, keepdim=True) / mean_square(state)
    return mean_square(gives - along * state) / mean_square(gives) / mean_square(before)  # by the law of sines


def mean_square(states: torch.Tensor) -> torch.Tensor:
    """Of each token, never zero, [..., 1]."""
    return states.square().mean(-1, keepdim=True).clamp_min(1e-12)


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
        if not isinstance(state, torch.Tensor) or not _fits(self.added, state):
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
                elif term.state is None and _fits(term.added, reads) and not same(reads, self.begun):
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


def same(one: Any, other: Any) -> bool:
    """Whether two tensors are one memory in one shape (what dropout returns that does nothing is another object)."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _fits(gives: torch.Tensor, state: torch.Tensor) -> bool:
    """Whether what a map gives is of a state's shape, batch and tokens flattened in one of them or not."""
    flat = 2 in (gives.ndim, state.ndim) and gives.flatten(0, -2).shape == state.flatten(0, -2).shape
    return gives.shape == state.shape or flat


def _body(model: PreTrainedModel, modules: list[nn.Module]) -> nn.Module:
    """The model without its head, whose logits nobody asks for, where all `modules` lie in it."""
    body = model.base_model
    inside = {id(module) for module in body.modules()}
    return body if all(id(module) in inside for module in modules) else model
