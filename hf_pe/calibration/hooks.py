"""Run forward passes over the calibration rows, with hooks that look at module inputs and outputs."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.calibration.blockwise import Stop, blockwise_passes
from hf_pe.dummies.outputs import no_cache
from hf_pe.modes import evaluating
from hf_pe.progress import advance
from hf_pe.tasks import Batch, TaskData, model_inputs, on_device

BATCH = 8
"""Calibration rows in one forward pass."""


class Passes:
    """Forward passes over the calibration rows, whose hooks can ask which batch runs.

    Attributes:
        model: the model.
        body: the part of it that is run: the model itself, or the model without its head.
        number: number of the batch that runs.
        mask: attention mask of that batch; None where it has none.
    """

    def __init__(self, model: PreTrainedModel, body: nn.Module) -> None:
        self.model, self.body = model, body
        self.number = 0
        self.mask: torch.Tensor | None = None

    def run(self, data: TaskData, what: str) -> None:
        """Run all calibration rows, batch by batch; `what` names the work in progress lines."""
        done = 0
        with torch.no_grad():
            for number, batch in enumerate(data.batches(data.calibration, BATCH)):
                batch = on_device(self.model, batch)
                self._set_batch(number, batch)
                self.body(**model_inputs(batch))
                done += len(next(iter(batch.values())))
                advance(what, done, len(data.calibration))

    def by_block(self, data: TaskData, blocks: Sequence[str], what: str) -> Iterator[str]:
        """Run all calibration rows through one block after the other, and yield each block when they have passed it.

        Args:
            data: has the calibration rows.
            blocks: names of the blocks, in the order in which the model runs them.
            what: names the work in progress lines.
        """
        batches = data.batches(data.calibration, BATCH)
        with blockwise_passes(
            self.model, batches, [Stop(block, after=True) for block in blocks], self._set_batch
        ) as pauses:
            for done, (block, _) in enumerate(zip(blocks, pauses, strict=True), 1):
                advance(what, done, len(blocks))
                yield block

    def _set_batch(self, number: int, batch: Batch) -> None:
        self.number, self.mask = number, batch.get("attention_mask")


@contextmanager
def watching(passes: Passes, handles: list[Any]) -> Iterator[Passes]:
    """Hold a model in evaluation mode while `passes` run, and remove hooks afterwards."""
    with evaluating(passes.model):
        try:
            yield passes
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def watch(model: PreTrainedModel, modules: Mapping[str, nn.Module], collect: Callable[..., None]) -> Iterator[Passes]:
    """Call `collect` with the inputs and the output of each of `modules` while the passes run.

    Args:
        model: the model.
        modules: modules of it, by keys of the caller's choice. Where all of them lie in the model's body, only the
            body is run, so that no logits are computed.
        collect: called with key, batch number, attention mask or None, first input and output.
    """
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
def count_calls(model: PreTrainedModel, modules: Mapping[str, nn.Module], batch: Batch) -> Counter[str]:
    """Return how often one forward pass calls each of `modules`, by their keys."""
    calls: Counter[str] = Counter()
    hooks = [m.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, m in modules.items()]
    with watching(Passes(model, model), hooks):
        model(**model_inputs(on_device(model, batch)), **no_cache(model))
    return calls


def hidden_of(output: Any) -> torch.Tensor:
    """Return the hidden states from the output of a block, which may be a tuple that begins with them."""
    while isinstance(output, tuple):
        output = output[0]
    return cast(torch.Tensor, output)


def same_tensor(first: Any, second: Any) -> bool:
    """Return whether two values are tensors of one shape in the same memory.

    A comparison of the objects is not enough: dropout in evaluation mode returns a new object over the same memory.
    """
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return False
    return first.data_ptr() == second.data_ptr() and first.shape == second.shape


def same_rows(output: torch.Tensor, state: torch.Tensor) -> bool:
    """Return whether two tensors agree in shape, up to batch and tokens that are flattened in one of them."""
    flat = 2 in (output.ndim, state.ndim) and output.flatten(0, -2).shape == state.flatten(0, -2).shape
    return output.shape == state.shape or flat


def _body(model: PreTrainedModel, modules: list[nn.Module]) -> nn.Module:
    """Return the model without its head where all `modules` lie in that part, else the model."""
    body = model.base_model
    inside = {id(module) for module in body.modules()}
    return body if all(id(module) in inside for module in modules) else model
