"""Collect what a criterion scores (`UnitStatistics`) from the weights of a model and its calibration statistics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from hf_pe.anatomy import Axis
from hf_pe.calibration.gradients import Gradients
from hf_pe.prune.criteria import UnitStatistics
from hf_pe.regression import Moments, pooled


def unit_statistics(
    state: Mapping[str, torch.Tensor],
    axis: Axis,
    group: str,
    keep: int,
    moments: dict[str, list[Moments]] | None,
    gradients: dict[str, Gradients],
) -> UnitStatistics:
    """Return the statistics of the units in one group of an axis.

    Where several linear layers read the units (hidden width), they are replaced by one with the same costs. Where no
    token reached a layer (an expert), its inputs are taken as uncorrelated and of equal size.

    Args:
        state: the model's state dict.
        axis: the axis.
        group: name of the group.
        keep: how many units of the group will be kept.
        moments: second moments of the inputs of the layers that read the units, by slot; None where the criterion
            needs none.
        gradients: gradients at the same layers, by slot; empty where the criterion needs none.
    """
    slots = [slot for slot in axis.in_group(group) if slot.name in state]
    weights = [s.layout.by_unit(s.of(state).movedim(s.dim or 0, 0), axis.size) for s in slots]
    consuming = {s.key: s for s in slots if s.consumes and s.layout.share == 1}
    reading = {key: s.of(state).movedim(s.dim or 0, 1) for key, s in consuming.items()}
    grams, means = {}, {}
    if moments is not None:
        for name, weight in reading.items():
            sums = pooled(moments[name]) if name in moments else _white(weight.shape[1])
            grams[name], means[name] = sums.gram, sums.x / sums.count
    gradients = {name: gradients[name] for name in reading if name in gradients}
    gates = [
        consuming[key].layout.by_unit(s.gates.T, axis.size).reshape(axis.size, -1, len(s.gates)).sum(1).T
        for key, s in gradients.items()
    ]
    if not reading:  # only convolutions read the units, which leaves the weights to score by
        consumer, gram, outputs, mean = torch.zeros(1, axis.size), None, None, None
    elif len(reading) > 1:
        curvatures = {name: s.outputs for name, s in gradients.items()}
        layers = []
        for name in (name for name in reading if not curvatures or name in curvatures):
            for columns in consuming[name].layout.positions_by_copy(axis.size):  # joined widths count as one layer each
                gram = grams[name][columns][:, columns] if grams else None
                mean = means[name][columns] if means else None
                layers.append(_Consumer(reading[name][:, columns], gram, curvatures.get(name), mean))
        consumer, gram, outputs, mean = _as_one(layers)
    else:
        (name,) = reading
        consumer, gram, outputs = reading[name], grams.get(name), gradients[name].outputs if gradients else None
        mean = means.get(name)
    return UnitStatistics(
        weights=weights,
        consumer=consumer.reshape(len(consumer), axis.size, -1),
        keep=keep,
        gram=gram,
        gradients=torch.stack(gates).sum(0) if gates else None,
        outputs=outputs,
        mean=mean,
    )


class _Consumer(NamedTuple):
    """A linear layer that reads the units, with its statistics as far as the criterion needs them.

    Attributes:
        consumer: its weight. *Shape:* (outputs, units)
        gram: Gram matrix of its input. *Shape:* (units, units)
        outputs: Gram matrix of the gradients with respect to its output. *Shape:* (outputs, outputs)
        mean: mean of its input. *Shape:* (units,)
    """

    consumer: torch.Tensor
    gram: torch.Tensor | None
    outputs: torch.Tensor | None
    mean: torch.Tensor | None


def _as_one(layers: Sequence[_Consumer]) -> _Consumer:
    """Return one layer in place of several that read the same units, with the same costs.

    With W the weight of a layer and M the Gram matrix of the gradients with respect to its output, the new weight is a
    root of the sum of W^T M W, each divided by the mean square of that layer's output. The new Gram matrix is the mean
    of theirs, each scaled to a mean diagonal of 1, and the new mean that of their means, in the same scale. The new M
    is the identity.
    """
    total = gram_sum = mean_sum = torch.zeros(())
    for weight, gram, curvature, mean in layers:
        weight = weight.double()
        squared = weight.T @ (curvature.double() @ weight if curvature is not None else weight)
        scaled = gram.double() if gram is not None else torch.eye(len(squared)).double()
        level = scaled.diagonal().mean().clamp_min(1e-30)
        scaled = scaled / level
        total = total + squared / (squared * scaled).sum().clamp_min(1e-30)
        gram_sum = gram_sum + scaled / len(layers)
        if mean is not None:
            mean_sum = mean_sum + mean.double() / level.sqrt() / len(layers)
    values, vectors = torch.linalg.eigh(total)
    consumer = values.clamp_min(0).sqrt()[:, None] * vectors.T
    first = layers[0]
    return _Consumer(
        consumer.float(),
        gram_sum.float() if first.gram is not None else None,
        torch.eye(len(consumer)) if first.outputs is not None else None,
        mean_sum.float() if first.mean is not None else None,
    )


def _white(width: int) -> Moments:
    """Return the moments of inputs with mean zero and the identity as their Gram matrix (white inputs)."""
    empty = torch.zeros(width, 0)
    return Moments(torch.eye(width), empty, torch.zeros(width), empty[0], 1.0)
