"""Repair block by block, in order: later blocks see the repaired earlier ones, and what whole removed layers did is
taken over by the block before them. Closed form, forward passes only."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, Slot, is_norm
from hf_pe.calibration import BATCH, Stop, Waiting, hidden_of, lockstep
from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.regression import Moments, add_to_fold, fit
from hf_pe.tasks import TaskData, counted_rows


def maps_in_order(axis: Axis) -> list[Slot]:
    """What `repair_in_order_` moves: the maps that read units of `axis`, those inside experts left out."""
    return [slot for slot in axis.slots if slot.consumes and slot.entry is None]


@torch.no_grad()
def repair_in_order_(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    axis: Axis,
    layers: Mapping[str, Sequence[int]],
    data: TaskData,
) -> None:
    """Refit the maps that read the units of `axis`, so that each block gives what the teacher has at the same depth.

    Block i stands for the teacher's layers from its own up to the next kept one; its target is the hidden state after
    them. With x the map's input and d the change of its output that would reach the target, the map moves by the ridge
    regression of d on x, each token weighted by 1 / the mean square of its target (a few tokens of some models are a
    thousand times as large as the others). Where a block ends in a norm, the target is taken back through it with the
    mean and scale that the student's own state has.

    Args:
        student: changed in place.
        teacher: the model before anything was cut.
        axis: of the student.
        layers: per stack the teacher's layers that are left; a stack that is not named has all.
        data: calibration rows.

    Raises:
        UsageError: the output of a map does not reach the block's end by an addition (and a norm): Gemma's, say.
    """
    maps = maps_in_order(axis)
    own, wanted = [], []
    for slot in maps:
        stack, number = _place(slot.name)
        count = len(teacher.get_submodule(stack))  # type: ignore[arg-type]
        kept = list(layers.get(stack, range(count)))
        last = (kept[number + 1] if number + 1 < len(kept) else count) - 1
        own.append(Stop(f"{stack}.{number}", after=False))
        wanted.append(Stop(f"{stack}.{last}", after=True))
    batches = list(data.batches(data.calibration, BATCH))
    with lockstep(teacher, batches, wanted) as targets, lockstep(student, batches, own) as doors:
        for done, (slot, block, target, door) in enumerate(zip(maps, own, targets, doors, strict=True), 1):
            name = slot.name.rpartition(".")[0]
            linear: Any = student.get_submodule(name)
            if done == 1:
                _require_additive(student, name, block.module, door[0])
            folds: list[Moments] = []
            for number, (aim, start) in enumerate(zip(target, door, strict=True)):
                mask = start.batch.get("attention_mask")
                state = _watched(student, block.module, name, start)
                wish = hidden_of(aim.output).float()
                delta = _delta(wish, state)
                weight = 1 / wish.square().mean(-1, keepdim=True).clamp_min(
                    1e-12
                )  # norms follow: the relative error counts
                rows = [counted_rows(part, mask) for part in (state["x"], delta, weight)]
                add_to_fold(folds, number, Moments.of(rows[0], rows[1], rows[2][:, 0]))
            found = fit(folds, bias=getattr(linear, "bias", None) is not None)
            change = found.move if slot.dim == 0 else found.move.T
            linear.weight.data = linear.weight.data + change.to(linear.weight.data)
            if linear.bias is not None:
                linear.bias.data = linear.bias.data + found.shift.to(linear.bias.data)
            advance("repair, block by block", done, len(maps))


def _delta(target: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """How the map's output should change for the block to end in `target`, [..., width]."""
    norm = state.get("norm")
    if norm is None:
        return target - torch.as_tensor(state["out"])
    bias = getattr(norm, "bias", None)
    before: torch.Tensor = state["before"]
    mean = before.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else torch.zeros_like(before[..., :1])
    scale = (before - mean).square().mean(-1, keepdim=True).sqrt()
    plain: torch.Tensor = (target - (0 if bias is None else bias)) / norm.weight
    return plain * scale + mean - before


def _watched(model: PreTrainedModel, block: str, name: str, start: Waiting) -> dict[str, Any]:
    """Run one block: what it gives (`out`), the input `x` and output `y` of its map `name`, the norm that ends it."""
    found: dict[str, Any] = {}

    def watch_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor):
            found["last"] = (output, module, args[0])

    def watch_map(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found["x"], found["y"] = args[0].float(), output.float()

    watched = model.get_submodule(block)
    handles = [model.get_submodule(name).register_forward_hook(watch_map)]
    norms = [m for m in watched.modules() if is_norm(m) and hasattr(m, "weight")]
    handles += [norm.register_forward_hook(watch_norm) for norm in norms]
    try:
        with torch.no_grad():
            result = hidden_of(watched(*start.args, **start.kwargs))
    finally:
        for handle in handles:
            handle.remove()
    last = found.pop("last", None)
    if last is not None and last[0].data_ptr() == result.data_ptr():
        found["norm"], found["before"] = last[1], last[2].float()
    return found | {"out": result.float()}


def _require_additive(student: PreTrainedModel, name: str, block: str, start: Waiting) -> None:
    """Add a little to the map's output and see it arrive unchanged before the norm, or at the block's end."""
    state = _watched(student, block, name, start)
    width = state["y"].shape[-1]
    step = state["y"].abs().mean() * 1e-2 * torch.linspace(-1, 1, width, device=state["y"].device)
    handle = student.get_submodule(name).register_forward_hook(lambda module, args, output: output + step.to(output))
    try:
        moved = _watched(student, block, name, start)
    finally:
        handle.remove()
    key = "before" if "norm" in state else "out"
    gap = (moved[key] - state[key] - step).abs().max() / step.abs().max()
    if not gap < 0.05:
        raise UsageError(
            f"prune.repair: in_order needs blocks that add what {name} gives; this one scales or norms it first. "
            "Choose repair: least_squares."
        )


def _place(name: str) -> tuple[str, int]:
    """Stack and number of the block that a parameter lies in."""
    parts = name.split(".")
    at = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[:at]), int(parts[at])
