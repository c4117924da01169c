"""Forward passes over the calibration rows, and what flows into modules meanwhile."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.calibration.lockstep import Stop, lockstep
from hf_pe.progress import advance
from hf_pe.regression import Folds, Moments
from hf_pe.tasks import Batch, TaskData, counted_rows, model_inputs

BATCH = 8
"""Calibration rows a forward pass takes."""


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
        added: by some of these keys the block that adds what the module gives to the state that it was given: there
            each token counts by `turning`.
    """
    sums = _Sums(added)
    if modules:
        with _given(model, added.values(), sums.given), watch(model, modules, sums.collect) as passes:
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
        with _given(model, added.values(), sums.given), watch(model, modules, sums.collect) as passes:
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
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside, the mode it was in afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


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


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states among what a block gives."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def _given(model: PreTrainedModel, blocks: Iterable[str], found: dict[str, Any]) -> Iterator[None]:
    """Note in `found` the hidden states that the last of `blocks` to run was given, by its name."""

    def hook(name: str) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.clear()  # one block's are enough memory
            found[name] = args[0] if args else kwargs.get("hidden_states")

        return read

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True)
        for name in dict.fromkeys(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


class _Sums:
    """Moments by slot as they come in."""

    def __init__(self, added: Mapping[str, str]) -> None:
        self.added = added
        self.given: dict[str, Any] = {}  # what the block at work was given
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Folds] = {}
        self.first: dict[str, str] = {}  # one is enough of maps that read the very same tensor
        self.last: list[Any] = [None, ""]

    def collect(self, name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        if inputs is self.last[0] and self.first.setdefault(name, self.last[1]) != name:
            return
        self.last[:] = inputs, self.first.setdefault(name, name)
        state, weight = self.given.get(self.added.get(name, "")), None
        if isinstance(state, torch.Tensor) and (state.numel(), state.shape[-1]) == (output.numel(), output.shape[-1]):
            # some flatten batch and tokens
            weight = counted_rows(turning(state.reshape(output.shape), output), mask)[:, 0]
        self.sums.setdefault(name, Folds()).add(number, counted_rows(inputs, mask), weight=weight)

    def taken(self) -> dict[str, list[Moments]]:
        """What came since it was last asked for."""
        sums = {name: folds.moments() for name, folds in self.sums.items()}
        found = {name: sums[source] for name, source in self.first.items()}
        self._clear()
        return found


def _body(model: PreTrainedModel, modules: list[nn.Module]) -> nn.Module:
    """The model without its head, whose logits nobody asks for, where all `modules` lie in it."""
    body = model.base_model
    inside = {id(module) for module in body.modules()}
    return body if all(id(module) in inside for module in modules) else model
