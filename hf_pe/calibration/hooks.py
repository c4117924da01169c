"""Forward passes over the calibration rows, and what flows into modules meanwhile."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.calibration.blockwise import Stop, lockstep
from hf_pe.dummies.outputs import no_cache
from hf_pe.modes import evaluating
from hf_pe.progress import advance
from hf_pe.tasks import Batch, TaskData, model_inputs, on_device

BATCH = 8
"""Calibration rows a forward pass takes."""


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
                batch = on_device(self.model, batch)
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
        model(**model_inputs(on_device(model, batch)), **no_cache(model))
    return calls


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states among what a block gives."""
    while isinstance(output, tuple):
        output = output[0]
    return cast(torch.Tensor, output)


def same(one: Any, other: Any) -> bool:
    """Whether two tensors are one memory in one shape (what dropout returns that does nothing is another object)."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def fits(gives: torch.Tensor, state: torch.Tensor) -> bool:
    """Whether what a map gives is of a state's shape, batch and tokens flattened in one of them or not."""
    flat = 2 in (gives.ndim, state.ndim) and gives.flatten(0, -2).shape == state.flatten(0, -2).shape
    return gives.shape == state.shape or flat


def _body(model: PreTrainedModel, modules: list[nn.Module]) -> nn.Module:
    """The model without its head, whose logits nobody asks for, where all `modules` lie in it."""
    body = model.base_model
    inside = {id(module) for module in body.modules()}
    return body if all(id(module) in inside for module in modules) else model
