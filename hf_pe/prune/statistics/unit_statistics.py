"""What a criterion may look at, gathered from a model and its statistics."""

from collections.abc import Mapping

import torch

from hf_pe.anatomy import Axis
from hf_pe.calibration.gradients import Slopes
from hf_pe.prune.criteria import Evidence
from hf_pe.regression import Moments, pooled


def evidence(
    state: Mapping[str, torch.Tensor],
    axis: Axis,
    group: str,
    keep: int,
    moments: dict[str, list[Moments]] | None,
    slopes: dict[str, Slopes],
) -> Evidence:
    """Of the units of `axis` in `group`, `keep` of which will stay; `moments` and `slopes` by slot.

    Where many maps read the units (hidden width), they are taken as one. What no token reached (an expert) is judged
    as if its inputs were white.

    Args:
        state: the model's state dict.
        axis, group, keep: which units.
        moments: of the maps that read them; None where the criterion asks for none.
        slopes: of the same maps; empty likewise.
    """
    slots = [slot for slot in axis.in_group(group) if slot.name in state]
    weights = [s.layout.by_unit(s.of(state).movedim(s.dim or 0, 0), axis.size) for s in slots]
    consuming = {s.key: s for s in slots if s.consumes and s.layout.share == 1}
    reading = {key: s.of(state).movedim(s.dim or 0, 1) for key, s in consuming.items()}
    grams = {}
    if moments is not None:
        for name, weight in reading.items():
            grams[name] = pooled(moments[name]).gram if name in moments else torch.eye(weight.shape[1])
    seen = {name: slopes[name] for name in reading if name in slopes}
    gates = [
        consuming[key].layout.by_unit(s.gates.T, axis.size).reshape(axis.size, -1, len(s.gates)).sum(1).T
        for key, s in seen.items()
    ]
    if not reading:  # convolutions: there are the weights to go by
        consumer, gram, outputs = torch.zeros(1, axis.size), None, None
    elif len(reading) > 1:
        felt = {name: s.outputs for name, s in seen.items()}
        maps = []
        for name in (name for name in reading if not felt or name in felt):
            for places in consuming[name].layout.apart(axis.size):  # joined widths are read by a map each
                gram = grams[name][places][:, places] if grams else None
                maps.append((reading[name][:, places], gram, felt.get(name)))
        consumer, gram, outputs = _as_one(maps)
    else:
        (one,) = reading
        consumer, gram, outputs = reading[one], grams.get(one), seen[one].outputs if seen else None
    return Evidence(
        weights=weights,
        consumer=consumer.reshape(len(consumer), axis.size, -1),
        keep=keep,
        gram=gram,
        slopes=torch.stack(gates).sum(0) if gates else None,
        outputs=outputs,
    )


def _as_one(
    maps: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Many maps that read the same units as one with the same cost: a root of the sum of W^T M W, each map by the size
    of its output; the mean Gram matrix, each of trace 1; M = I.

    Args:
        maps: of each W [outputs, units], the Gram matrix and M; None where they are not asked for.
    """
    total = mean = torch.zeros(())
    for weight, gram, felt in maps:
        weight = weight.double()
        held = weight.T @ (felt.double() @ weight if felt is not None else weight)
        here = gram.double() if gram is not None else torch.eye(len(held)).double()
        here = here / here.diagonal().mean().clamp_min(1e-30)
        total = total + held / (held * here).sum().clamp_min(1e-30)
        mean = mean + here / len(maps)
    values, vectors = torch.linalg.eigh(total)
    consumer = values.clamp_min(0).sqrt()[:, None] * vectors.T
    first = maps[0]
    outputs = torch.eye(len(consumer)) if first[2] is not None else None
    return consumer.float(), mean.float() if first[1] is not None else None, outputs
