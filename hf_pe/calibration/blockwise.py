"""Blockwise passes: forward passes in which all batches pass one block of a model before any enters the next.

This lets a caller gather statistics at a block and change its weights before the batches run through it, with one pass
over the data and the statistics of a single block in memory. Each batch is a forward pass in a thread of its own, which
waits before or after the blocks. Everything else that the model computes (masks, positions, caches, encoder states)
stays on that thread's stack, so it does not have to be rebuilt for each architecture. Only one thread runs at a time.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.dummies.outputs import no_cache
from hf_pe.modes import evaluating
from hf_pe.tasks import Batch, model_inputs, on_device


class Stop(NamedTuple):
    """A point where all batches pause: before a module runs, or after it."""

    module: str
    after: bool


class PausedBatch(NamedTuple):
    """One batch whose forward pass has paused at a `Stop`.

    Attributes:
        batch: the inputs of the model.
        args: the positional arguments of the module.
        kwargs: its keyword arguments.
        output: its output; None before it runs.
    """

    batch: Batch
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class _Enough(Exception):  # noqa: N818  a signal, not an error
    """Ends a forward pass behind the last stop."""


class _Pass(threading.Thread):
    """The forward pass of one batch."""

    def __init__(self, model: PreTrainedModel, batch: Batch, stops: Sequence[Stop]) -> None:
        super().__init__(daemon=True)
        self.model, self.batch, self.stops_ahead = model, batch, list(stops)
        self.may_run, self.has_paused = threading.Semaphore(0), threading.Semaphore(0)
        self.paused: PausedBatch | None = None
        self.error: BaseException | None = None
        self.stopped = False

    def run(self) -> None:
        self.may_run.acquire()
        try:
            if not self.stopped:
                with torch.no_grad():
                    self.model(**model_inputs(self.batch), **no_cache(self.model))
                raise RuntimeError("the model ended without passing all blocks")
        except _Enough:
            pass
        except BaseException as error:
            self.error = error
        self.has_paused.release()

    def pause(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Wait, on the thread of this pass, until the caller of `advance` lets it go on."""
        self.paused = PausedBatch(self.batch, args, kwargs, output)
        self.has_paused.release()
        self.may_run.acquire()
        self.paused = None
        if self.stopped:
            raise _Enough

    def advance(self) -> PausedBatch:
        """Let the pass run to its next stop, and return what it has there."""
        self.may_run.release()
        self.has_paused.acquire()
        if self.error is not None:
            raise self.error
        assert self.paused is not None
        return self.paused


@contextmanager
def blockwise_passes(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    stops: Sequence[Stop],
    before: Callable[[int, Batch], None] = lambda number, batch: None,
) -> Iterator[Iterator[list[PausedBatch]]]:
    """Give an iterator over `stops` that yields all batches once they have paused at that stop.

    The model runs in evaluation mode and without gradients.

    Args:
        model: while the batches wait, its modules may be changed, and be called with the arguments in `PausedBatch`.
        batches: kept in memory until the end.
        stops: in the order in which the model runs their modules; other modules run without a pause.
        before: called with a batch's number and the batch whenever its pass goes on, so that hooks know which one runs.
    """
    passes = [_Pass(model, on_device(model, batch), stops) for batch in batches]

    def pausing(stop: Stop) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            thread = threading.current_thread()
            if isinstance(thread, _Pass) and thread.stops_ahead[:1] == [stop]:
                thread.stops_ahead.pop(0)
                thread.pause(args, kwargs, output)

        return hook

    def advance(number: int, forward: _Pass) -> PausedBatch:
        before(number, forward.batch)
        return forward.advance()

    handles = []
    for stop in dict.fromkeys(stops):
        module = model.get_submodule(stop.module)
        register: Any = module.register_forward_hook if stop.after else module.register_forward_pre_hook
        handles.append(register(pausing(stop), with_kwargs=True))
    with evaluating(model):
        for forward in passes:
            forward.start()
        try:
            yield ([advance(number, forward) for number, forward in enumerate(passes)] for _ in stops)
        finally:
            for forward in passes:
                forward.stopped = True
                forward.may_run.release()
                forward.join()
            for handle in handles:
                handle.remove()
