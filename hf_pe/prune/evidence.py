"""What a criterion may look at, gathered from a model and its statistics."""

from collections.abc import Mapping

import torch

from hf_pe.anatomy import Axis
from hf_pe.prune.criteria import Evidence
from hf_pe.prune.statistics import Slopes
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
    reading = {s.key: s.of(state).movedim(s.dim or 0, 1) for s in slots if s.consumes}
    grams = {}
    if moments is not None:
        for name, weight in reading.items():
            grams[name] = pooled(moments[name]).gram if name in moments else torch.eye(weight.shape[1])
    seen = {name: slopes[name] for name in reading if name in slopes}
    gates = [s.gates.reshape(len(s.gates), axis.size, -1).sum(2) for s in seen.values()]
    one, *others = reading
    if others:
        felt = {name: s.outputs for name, s in seen.items()}
        reading = {name: weight for name, weight in reading.items() if not felt or name in felt}
        consumer, gram, outputs = _as_one(reading, grams, felt)
    else:
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
    reading: dict[str, torch.Tensor], grams: dict[str, torch.Tensor], felt: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Many maps that read the same units as one with the same cost: a root of the sum of W^T M W, each map by the size
    of its output; the mean Gram matrix, each of trace 1; M = I."""
    total = gram = torch.zeros(())
    for name, weight in reading.items():
        weight = weight.double()
        held = weight.T @ (felt[name].double() @ weight if felt else weight)
        here = grams.get(name, torch.eye(len(held))).double()
        here = here / here.diagonal().mean().clamp_min(1e-30)
        total = total + held / (held * here).sum().clamp_min(1e-30)
        gram = gram + here / len(reading)
    values, vectors = torch.linalg.eigh(total)
    consumer = values.clamp_min(0).sqrt()[:, None] * vectors.T
    return consumer.float(), gram.float() if grams else None, torch.eye(len(consumer)) if felt else None
