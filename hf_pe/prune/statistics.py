"""Statistics of a model's activations on calibration data: forward passes only, no gradients."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.progress import advance
from hf_pe.tasks import Batch, TaskData, model_inputs


class Moments(NamedTuple):
    """First and second moments of the inputs of one linear map, over the tokens that count.

    Attributes:
        gram: X^T X / n, [inputs, inputs].
        mean: [inputs].
    """

    gram: torch.Tensor
    mean: torch.Tensor


def consumer_moments(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[str, Moments]:
    """Moments of what flows into every slot that consumes units of `axis`, by slot name; one pass."""
    names = [slot.name for slot in axis.slots if slot.consumes]
    sums: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {}

    def collect(name: str, inputs: torch.Tensor, mask: torch.Tensor | None) -> None:
        rows = _counted(inputs, mask).float()
        gram, total, count = sums.get(name, (0.0, 0.0, 0))
        sums[name] = (gram + rows.T @ rows, total + rows.sum(0), count + len(rows))

    with _watch(model, {name: model.get_submodule(name.rpartition(".")[0]) for name in names}, collect) as run:
        run(data.batches(data.calibration, 8), len(data.calibration), f"statistics of {axis.name}")
    return {name: Moments(gram / count, total / count) for name, (gram, total, count) in sums.items()}


def block_influence(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[int, float]:
    """How much each layer turns the hidden states: 1 - mean cosine between input and output.

    Men et al. 2024, arXiv:2403.03853, eq. 1.
    """
    stack = axis.groups[0]
    turned: dict[str, list[torch.Tensor]] = {str(i): [] for i in range(axis.size)}

    def collect(name: str, inputs: torch.Tensor, mask: torch.Tensor | None, output: torch.Tensor) -> None:
        before, after = _counted(inputs, mask).float(), _counted(output, mask).float()
        turned[name].append(1 - torch.cosine_similarity(before, after))

    layers = {name: model.get_submodule(f"{stack}.{name}") for name in turned}
    with _watch(model, layers, collect, outputs=True) as run:
        run(data.batches(data.calibration, 8), len(data.calibration), f"influence of {axis.name}")
    return {int(name): float(torch.cat(values).mean()) for name, values in turned.items()}


@contextmanager
def _watch(
    model: PreTrainedModel, modules: dict[str, nn.Module], collect: Any, *, outputs: bool = False
) -> Iterator[Any]:
    """Hook `modules` while the given batches run through `model` in evaluation mode."""
    mask: list[torch.Tensor | None] = [None]

    def hook(name: str) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            result = output[0] if isinstance(output, tuple) else output
            collect(name, inputs, mask[0], *([result] if outputs else []))

        return read

    def run(batches: Iterable[Batch], rows: int, what: str) -> None:
        done = 0
        with torch.no_grad():
            for batch in batches:
                batch = {k: v.to(model.device) for k, v in batch.items()}
                mask[0] = batch.get("attention_mask")
                model(**model_inputs(batch))
                done += len(next(iter(batch.values())))
                advance(what, done, rows)

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    training = model.training
    model.eval()
    try:
        yield run
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


def _counted(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Rows [tokens, width] of the positions that are not padding."""
    if mask is not None and hidden.shape[:-1] == mask.shape:
        return hidden[mask.bool()]
    return hidden.flatten(0, -2)
