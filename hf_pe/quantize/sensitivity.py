"""How much of its answers a model loses when one layer alone is packed."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.calibration import distance, rows_within, task_outputs
from hf_pe.errors import NotFiniteError
from hf_pe.measure import evaluate_task
from hf_pe.progress import advance
from hf_pe.quantize.inputs import inputs_of
from hf_pe.quantizers.layers import plain_weight
from hf_pe.quantizers.registry import dequantized_weight
from hf_pe.tasks import TaskData

TOKENS, NUMBERS = 2048, 2**27
"""Most tokens, and log-probabilities, that answers are compared at."""


def output_change(model: PreTrainedModel, other: PreTrainedModel, data: TaskData) -> float:
    """How far the answers of another model are from those of `model`; see `measured`."""
    rows = _rows(model, data)
    own_answers = task_outputs(model, data, rows, by_token=True)
    return distance(task_outputs(other, data, rows, by_token=True), own_answers)


def measured(model: PreTrainedModel, packed: PreTrainedModel, names: Sequence[str], data: TaskData) -> dict[str, float]:
    """By layer, what `hf_pe.calibration.distance` says with only this one exchanged for its packed twin.

    Logits are compared by their KL divergence, embeddings by 1 - cosine, else the task's loss is.

    Args:
        model: the original; as it was afterwards.
        packed: all of `names` in it are packed.
        names: of the layers.
        data: the rows.
    """
    rows = _rows(model, data)
    own_answers = task_outputs(model, data, rows, by_token=True)
    return _one_by_one(
        model, packed, names, lambda: distance(task_outputs(model, data, rows, by_token=True), own_answers)
    )


def by_metric(
    model: PreTrainedModel, packed: PreTrainedModel, names: Sequence[str], data: TaskData
) -> dict[str, float]:
    """By layer, how much worse the task's metric is on the calibration rows with only this one exchanged; 0 where it
    is better.

    Args:
        model, packed, names, data: as above.
    """
    held, sign = replace(data, eval=data.calibration), 1.0 if data.task.higher_is_better else -1.0

    def score() -> float:
        return sign * evaluate_task(model, held).scores()[data.task.metric]

    dense = score()
    return _one_by_one(model, packed, names, lambda: dense - score())


@torch.no_grad()
def estimated(
    model: PreTrainedModel, packed: PreTrainedModel, names: Sequence[str], data: TaskData
) -> dict[str, float]:
    """By layer, the mean square error of its outputs over their mean square: tr(D G D^T) / tr(W G W^T).

    D is what packing changes of W, G the Gram matrix of what flows in. One pass over the calibration rows in all.

    Args:
        model, packed, names, data: as above.
    """
    losses = dict.fromkeys(names, 0.0)
    for name, sums in inputs_of(model, names, data):
        weight, gram = plain_weight(model.get_submodule(name)).float(), sums.gram
        gone = weight - dequantized_weight(packed.get_submodule(name)).float()
        whole = float(((weight @ gram) * weight).sum())
        losses[name] = float(((gone @ gram) * gone).sum()) / max(whole, 1e-30)
    return losses


def _one_by_one(
    model: PreTrainedModel, packed: PreTrainedModel, names: Sequence[str], lost: Callable[[], float]
) -> dict[str, float]:
    """By layer, what is `lost` with only this one exchanged for its packed twin; never negative."""
    losses: dict[str, float] = {}
    for name in names:
        with _exchanged(model, name, packed.get_submodule(name)):
            losses[name] = max(lost(), 0.0)
        if not math.isfinite(losses[name]):
            raise NotFiniteError(
                f"With {name} alone packed the outputs on the calibration rows are not finite, so no budget can be "
                f"shared out. Leave that layer as it is (skip: [{name}])."
            )
        advance("sensitivity, layer by layer", len(losses), len(names))
    return losses


@contextmanager
def _exchanged(model: PreTrainedModel, name: str, other: nn.Module) -> Iterator[None]:
    """Another module in place of one, inside."""
    own = model.get_submodule(name)
    model.set_submodule(name, other)
    try:
        yield
    finally:
        model.set_submodule(name, own)


def _rows(model: PreTrainedModel, data: TaskData) -> int:
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None) or 1
    return rows_within(data, min(TOKENS, NUMBERS // vocabulary))
