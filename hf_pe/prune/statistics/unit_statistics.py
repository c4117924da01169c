"""What a criterion may look at, gathered from a model and its statistics."""

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
    """Of the units of `axis` in `group`, `keep` of which will stay; `moments` and `gradients` by slot.

    Where many maps read the units (hidden width), they are taken as one. What no token reached (an expert) is judged
    as if its inputs were white.

    Args:
        state: the model's state dict.
        axis, group, keep: which units.
        moments: of the maps that read them; None where the criterion asks for none.
        gradients: of the same maps; empty likewise.
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
    seen = {name: gradients[name] for name in reading if name in gradients}
    gates = [
        consuming[key].layout.by_unit(s.gates.T, axis.size).reshape(axis.size, -1, len(s.gates)).sum(1).T
        for key, s in seen.items()
    ]
    if not reading:  # convolutions: there are the weights to go by
        consumer, gram, outputs, mean = torch.zeros(1, axis.size), None, None, None
    elif len(reading) > 1:
        felt = {name: s.outputs for name, s in seen.items()}
        maps = []
        for name in (name for name in reading if not felt or name in felt):
            for places in consuming[name].layout.positions_by_copy(axis.size):  # joined widths are read by a map each
                gram = grams[name][places][:, places] if grams else None
                mean = means[name][places] if means else None
                maps.append(_Map(reading[name][:, places], gram, felt.get(name), mean))
        consumer, gram, outputs, mean = _as_one(maps)
    else:
        (one,) = reading
        consumer, gram, outputs = reading[one], grams.get(one), seen[one].outputs if seen else None
        mean = means.get(one)
    return UnitStatistics(
        weights=weights,
        consumer=consumer.reshape(len(consumer), axis.size, -1),
        keep=keep,
        gram=gram,
        gradients=torch.stack(gates).sum(0) if gates else None,
        outputs=outputs,
        mean=mean,
    )


class _Map(NamedTuple):
    """A linear map that reads the units, and the statistics of it that were asked for.

    Attributes:
        consumer: its weight, [outputs, units].
        gram: Gram matrix of its input, [units, units].
        outputs: that of the derivatives by its output, [outputs, outputs].
        mean: of its input, [units].
    """

    consumer: torch.Tensor
    gram: torch.Tensor | None
    outputs: torch.Tensor | None
    mean: torch.Tensor | None


def _as_one(maps: Sequence[_Map]) -> _Map:
    """Return one map in place of many that read the same units, with the same cost.

    Its weight is a root of the sum of W^T M W, each map by the size of its output; its Gram matrix is the mean of
    theirs, each scaled to a trace of one a unit, and its mean that of their means, in the same scale; M is I.
    """
    total = gram_sum = mean_sum = torch.zeros(())
    for weight, gram, felt, mean in maps:
        weight = weight.double()
        held = weight.T @ (felt.double() @ weight if felt is not None else weight)
        scaled = gram.double() if gram is not None else torch.eye(len(held)).double()
        level = scaled.diagonal().mean().clamp_min(1e-30)
        scaled = scaled / level
        total = total + held / (held * scaled).sum().clamp_min(1e-30)
        gram_sum = gram_sum + scaled / len(maps)
        if mean is not None:
            mean_sum = mean_sum + mean.double() / level.sqrt() / len(maps)
    values, vectors = torch.linalg.eigh(total)
    consumer = values.clamp_min(0).sqrt()[:, None] * vectors.T
    first = maps[0]
    return _Map(
        consumer.float(),
        gram_sum.float() if first.gram is not None else None,
        torch.eye(len(consumer)) if first.outputs is not None else None,
        mean_sum.float() if first.mean is not None else None,
    )


def _white(width: int) -> Moments:
    """Return the moments of inputs with mean zero and the identity as their Gram matrix."""
    empty = torch.zeros(width, 0)
    return Moments(torch.eye(width), empty, torch.zeros(width), empty[0], 1.0)
