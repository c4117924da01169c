"""Repair block by block, in order: later blocks see the repaired earlier ones, and what whole removed layers did is
taken over by the block before them. Closed form, forward passes only."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.tasks import TaskData, model_inputs


def repair_in_order_(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    axis: Axis,
    layers: Mapping[str, Sequence[int]],
    data: TaskData,
    ridge: float,
) -> None:
    """Refit the maps that read the units of `axis`, so that each block gives what the teacher has at the same depth.

    Block i stands for the teacher's layers from its own up to the next kept one; its target is the hidden state after
    them. With x the map's input and d the change of its output that would reach the target, the map moves by
    D = argmin E||D x - d||^2 + ridge * mean(diag E[x x^T]) * ||D||^2. Where a block ends in a norm, the target is taken
    back through it with the mean and scale that the student's own state has.

    Args:
        student: changed in place.
        teacher: the model before anything was cut.
        axis: of the student.
        layers: per stack the teacher's layers that are left; a stack that is not named has all.
        data: calibration rows.
        ridge: relative to the mean diagonal.

    Raises:
        UsageError: the output of a map does not reach the block's end by an addition (and a norm): Gemma's, say.
    """
    for slot in axis.slots:
        if not slot.consumes:
            continue
        stack, number = _place(slot.name)
        kept = list(layers.get(stack, range(len(teacher.get_submodule(stack)))))  # type: ignore[arg-type]
        last = (kept[number + 1] if number + 1 < len(kept) else len(teacher.get_submodule(stack))) - 1  # type: ignore[arg-type]
        name = slot.name.rpartition(".")[0]
        move, shift = _fit(student, teacher, name, f"{stack}.{number}", f"{stack}.{last}", data, ridge)
        linear: Any = student.get_submodule(name)
        change = move if slot.dim == 0 else move.T
        linear.weight.data = linear.weight.data + change.to(linear.weight.data)
        if linear.bias is not None:
            linear.bias.data = linear.bias.data + shift.to(linear.bias.data)


def _fit(
    student: PreTrainedModel, teacher: PreTrainedModel, name: str, block: str, target: str, data: TaskData, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The change [inputs, outputs] of the map `name`, and that of its bias [outputs]."""
    gram: Any = 0.0
    cross: Any = 0.0
    inputs: Any = 0.0
    changes: Any = 0.0
    count = 0
    centred = getattr(student.get_submodule(name), "bias", None) is not None
    _require_additive(student, name, block, data)
    for wanted, state in zip(_states(teacher, target, data), _states(student, block, data, name), strict=True):
        x, delta = state["x"], _delta(wanted["out"], state)
        gram, cross = gram + x.T @ x, cross + x.T @ delta
        inputs, changes, count = inputs + x.sum(0), changes + delta.sum(0), count + len(x)
    gram, cross, inputs, changes = (part.double() / count for part in (gram, cross, inputs, changes))
    if centred:
        gram, cross = gram - inputs[:, None] * inputs, cross - inputs[:, None] * changes
    gram += ridge * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    move = torch.linalg.solve(gram, cross)
    return move.float(), (changes - inputs @ move).float()


def _delta(target: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """How the map's output should change for the block to end in `target`, [tokens, width]."""
    norm = state.get("norm")
    if norm is None:
        return target - torch.as_tensor(state["out"])
    bias = getattr(norm, "bias", None)
    before: torch.Tensor = state["before"]
    mean = before.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else torch.zeros_like(before[:, :1])
    scale = (before - mean).square().mean(-1, keepdim=True).sqrt()
    plain: torch.Tensor = (target - (0 if bias is None else bias)) / norm.weight
    return plain * scale + mean - before


class _Reached(Exception):
    """The watched block is done: nothing behind it is needed."""


def _states(model: PreTrainedModel, block: str, data: TaskData, name: str | None = None) -> Generator[dict[str, Any]]:
    """Per batch: what `block` gives (`out`), and of the map `name` its input `x`; the norm that ends the block."""
    found: dict[str, Any] = {}
    mask: list[Any] = [None]

    def rows(hidden: torch.Tensor) -> torch.Tensor:
        return (hidden[mask[0].bool()] if mask[0] is not None else hidden.flatten(0, -2)).float()

    def watch_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor):
            found["last"] = (output, module, args[0])

    def watch_map(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found["x"], found["y"] = rows(args[0]), rows(output)

    def watch_block(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        result = output[0] if isinstance(output, tuple) else output
        found["out"] = rows(result)
        if "last" in found and found["last"][0].data_ptr() == result.data_ptr():
            found["norm"], found["before"] = found["last"][1], rows(found["last"][2])
        raise _Reached

    watched = model.get_submodule(block)
    handles = [watched.register_forward_hook(watch_block)]
    if name is not None:
        handles.append(model.get_submodule(name).register_forward_hook(watch_map))
        norms = [m for m in watched.modules() if "Norm" in type(m).__name__ and hasattr(m, "weight")]
        handles += [norm.register_forward_hook(watch_norm) for norm in norms]
    try:
        done = 0
        for batch in data.batches(data.calibration, 16):
            found.clear()
            batch = {k: v.to(model.device) for k, v in batch.items()}
            mask[0] = batch.get("attention_mask")
            try:
                with torch.no_grad():
                    model(**model_inputs(batch))
            except _Reached:
                pass
            done += len(next(iter(batch.values())))
            if name is not None:
                advance(f"repair of {block}", done, len(data.calibration))
            yield dict(found)
    finally:
        for handle in handles:
            handle.remove()


def _require_additive(student: PreTrainedModel, name: str, block: str, data: TaskData) -> None:
    """Add a little to the map's output and see it arrive unchanged before the norm, or at the block's end."""
    with contextlib.closing(_states(student, block, data, name)) as plain:
        state = next(plain)
    width = state["y"].shape[-1]
    step = state["y"].abs().mean() * 1e-2 * torch.linspace(-1, 1, width, device=state["y"].device)
    handle = student.get_submodule(name).register_forward_hook(lambda module, args, output: output + step.to(output))
    with contextlib.closing(_states(student, block, data, name)) as probed:
        moved = next(probed)
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
