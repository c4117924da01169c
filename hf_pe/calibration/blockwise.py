"""Many forward passes side by side: all batches pass one block before any enters the next.

What is learned at a block can change it before the batches go through it, in one pass over the data and with the
statistics of one block in memory. Each batch runs in a thread of its own that sleeps at the blocks' doors, so that all
a model keeps on its way (masks, positions, caches, encoder states) stays as the model made it. One runs at a time.
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
    """A door: before a module runs, or after."""

    module: str
    after: bool


class Waiting(NamedTuple):
    """One batch at a door.

    Attributes:
        batch: what went in at the model's front.
        args, kwargs: of the module, before it runs.
        output: of the module, after it ran.
    """

    batch: Batch
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class _Enough(Exception):  # noqa: N818  a signal, not an error
    """Nothing behind the last door is needed."""


class _Pass(threading.Thread):
    """One batch on its way."""

    def __init__(self, model: PreTrainedModel, batch: Batch, stops: Sequence[Stop]) -> None:
        super().__init__(daemon=True)
        self.model, self.batch, self.left = model, batch, list(stops)
        self.go, self.came = threading.Semaphore(0), threading.Semaphore(0)
        self.at: Waiting | None = None
        self.error: BaseException | None = None
        self.stopped = False

    def run(self) -> None:
        self.go.acquire()
        try:
            if not self.stopped:
                with torch.no_grad():
                    self.model(**model_inputs(self.batch), **no_cache(self.model))
                raise RuntimeError("the model ended without passing all blocks")
        except _Enough:
            pass
        except BaseException as error:
            self.error = error
        self.came.release()

    def wait_here(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.at = Waiting(self.batch, args, kwargs, output)
        self.came.release()
        self.go.acquire()
        self.at = None
        if self.stopped:
            raise _Enough

    def step(self) -> Waiting:
        self.go.release()
        self.came.acquire()
        if self.error is not None:
            raise self.error
        assert self.at is not None
        return self.at


@contextmanager
def lockstep(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    stops: Sequence[Stop],
    before: Callable[[int, Batch], None] = lambda number, batch: None,
) -> Iterator[Iterator[list[Waiting]]]:
    """Iterate over `stops`: at each, all batches wait there. `model` runs in evaluation mode, without gradients.

    Args:
        model: its modules may be changed, and be called with what `Waiting` holds, while the batches wait.
        batches: kept in memory until the end.
        stops: in the order in which the model comes by; modules in between are run without a stop.
        before: called with the number of a batch, and it, whenever it goes on: hooks may then know whose turn it is.
    """
    passes = [_Pass(model, on_device(model, batch), stops) for batch in batches]

    def door(stop: Stop) -> Any:
        def pause(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            me = threading.current_thread()
            if isinstance(me, _Pass) and me.left[:1] == [stop]:
                me.left.pop(0)
                me.wait_here(args, kwargs, output)

        return pause

    def step(number: int, each: _Pass) -> Waiting:
        before(number, each.batch)
        return each.step()

    handles = []
    for stop in dict.fromkeys(stops):
        module = model.get_submodule(stop.module)
        register: Any = module.register_forward_hook if stop.after else module.register_forward_pre_hook
        handles.append(register(door(stop), with_kwargs=True))
    with evaluating(model):
        for each in passes:
            each.start()
        try:
            yield ([step(number, each) for number, each in enumerate(passes)] for _ in stops)
        finally:
            for each in passes:
                each.stopped = True
                each.go.release()
                each.join()
            for handle in handles:
                handle.remove()
