"""Measure how much a model loses when only one layer at a time is quantized."""

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
"""Limits of the number of tokens, and of log-probabilities, that are compared."""


def output_change(model: PreTrainedModel, changed: PreTrainedModel, data: TaskData) -> float:
    """Return the distance between the outputs of a changed model and those of `model`; see `measured`."""
    rows = _rows(model, data)
    original_outputs = task_outputs(model, data, rows, by_token=True)
    return distance(task_outputs(changed, data, rows, by_token=True), original_outputs)


def measured(
    model: PreTrainedModel, quantized: PreTrainedModel, names: Sequence[str], data: TaskData
) -> dict[str, float]:
    """Return, for each layer, the distance of the model's outputs when only this layer is quantized.

    The distance is the KL divergence of logits, 1 - cosine for embeddings, or else the difference of the task's loss;
    see `hf_pe.calibration.distance`.

    Args:
        model: The original, which is restored afterwards.
        quantized: The model with all layers in `names` quantized.
        names: Names of the layers.
        data: Data with the calibration rows.
    """
    rows = _rows(model, data)
    original_outputs = task_outputs(model, data, rows, by_token=True)
    return _one_by_one(
        model, quantized, names, lambda: distance(task_outputs(model, data, rows, by_token=True), original_outputs)
    )


def by_metric(
    model: PreTrainedModel, quantized: PreTrainedModel, names: Sequence[str], data: TaskData
) -> dict[str, float]:
    """Return, for each layer, how much worse the task's metric on the calibration rows is when only it is quantized.

    The value is 0 where the metric improves. See `measured` for the arguments.
    """
    calibration = replace(data, eval=data.calibration)
    sign = 1.0 if data.task.higher_is_better else -1.0

    def score() -> float:
        return sign * evaluate_task(model, calibration).scores()[data.task.metric]

    original_score = score()
    return _one_by_one(model, quantized, names, lambda: original_score - score())


@torch.no_grad()
def estimated(
    model: PreTrainedModel, quantized: PreTrainedModel, names: Sequence[str], data: TaskData
) -> dict[str, float]:
    """Return, for each layer, the relative mean square error of its own outputs: tr(D G D^T) / tr(W G W^T).

    D is the change of the weight W by quantization, and G the Gram matrix of the layer's inputs. This takes one pass
    over the calibration rows for all layers. See `measured` for the arguments.
    """
    losses = dict.fromkeys(names, 0.0)
    for name, sums in inputs_of(model, names, data):
        weight, gram = plain_weight(model.get_submodule(name)).float(), sums.gram
        change = weight - dequantized_weight(quantized.get_submodule(name)).float()
        output_power = float(((weight @ gram) * weight).sum())
        losses[name] = float(((change @ gram) * change).sum()) / max(output_power, 1e-30)
    return losses


def _one_by_one(
    model: PreTrainedModel, quantized: PreTrainedModel, names: Sequence[str], lost: Callable[[], float]
) -> dict[str, float]:
    """Return, for each layer, the loss when only it is replaced by its quantized version; never negative."""
    losses: dict[str, float] = {}
    for name in names:
        with _replaced(model, name, quantized.get_submodule(name)):
            losses[name] = max(lost(), 0.0)
        if not math.isfinite(losses[name]):
            raise NotFiniteError(
                f"With only {name} quantized the outputs on the calibration rows are not finite, so layers cannot be "
                f"compared. Keep that layer's weights (skip: [{name}])."
            )
        advance("sensitivity, layer by layer", len(losses), len(names))
    return losses


@contextmanager
def _replaced(model: PreTrainedModel, name: str, replacement: nn.Module) -> Iterator[None]:
    """Replace a module of the model inside the block."""
    original = model.get_submodule(name)
    model.set_submodule(name, replacement)
    try:
        yield
    finally:
        model.set_submodule(name, original)


def _rows(model: PreTrainedModel, data: TaskData) -> int:
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None) or 1
    return rows_within(data, min(TOKENS, NUMBERS // vocabulary))
