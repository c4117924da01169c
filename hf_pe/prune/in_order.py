"""Repair block by block, in order: later blocks see the repaired earlier ones, and what whole removed layers did is
taken over by the block before them. Closed form, forward passes only."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_pe.anatomy import Axis, discover
from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.prune.lockstep import Stop, Waiting, lockstep
from hf_pe.prune.repair import fit
from hf_pe.prune.statistics import BATCH, Moments, add_to_fold, counted, hidden_of
from hf_pe.tasks import Batch, TaskData


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
    thousand times as large as the others). Before it attention's output map moves likewise, towards the teacher's state
    behind attention, where it can be told and is added to what the block is given. Where a block ends in a norm, the
    target is taken back through it with the mean and scale that the student's own state has.

    Args:
        student: changed in place.
        teacher: the model before anything was cut.
        axis: of the student.
        layers: per stack the teacher's layers that are left; a stack that is not named has all.
        data: calibration rows.

    Raises:
        UsageError: the output of a map does not reach the block's end by an addition (and a norm): Gemma's, say.
    """
    maps = [slot for slot in axis.slots if slot.consumes]
    attention = _attention_maps(student)
    own, wanted, twins = [], [], []
    for slot in maps:
        stack, number = _place(slot.name)
        count = len(teacher.get_submodule(stack))  # type: ignore[arg-type]
        kept = list(layers.get(stack, range(count)))
        last = (kept[number + 1] if number + 1 < len(kept) else count) - 1
        own.append(Stop(f"{stack}.{number}", after=False))
        wanted.append(Stop(f"{stack}.{last}", after=True))
        twins.append(f"{stack}.{kept[number]}")
    batches = list(data.batches(data.calibration, BATCH))
    middles = _Middles(teacher, dict(zip(twins, own, strict=True)), attention)
    with (
        middles,
        lockstep(teacher, batches, wanted, middles.turn) as targets,
        lockstep(student, batches, own) as doors,
    ):
        for done, (slot, block, target, door) in enumerate(zip(maps, own, targets, doors, strict=True), 1):
            name = slot.name.rpartition(".")[0]
            if done == 1:
                _require_additive(student, name, block.module, door[0])
            if block.module in attention:
                _refit_attention_(student, block.module, attention[block.module], door, middles.taken())
            folds: list[Moments] = []
            for number, (aim, start) in enumerate(zip(target, door, strict=True)):
                state = _watched(student, block.module, name, start)
                wish = hidden_of(aim.output).float()
                add_to_fold(folds, number, _towards(wish, _delta(wish, state), state["x"], start))
            _move_(student.get_submodule(name), folds, slot.dim or 0)
            advance("repair, block by block", done, len(maps))


def _towards(wish: torch.Tensor, delta: torch.Tensor, x: torch.Tensor, start: Waiting) -> Moments:
    """Moments of x and the wanted change; norms follow, so that each token counts by its relative error."""
    weight = 1 / wish.square().mean(-1, keepdim=True).clamp_min(1e-12)
    rows = [counted(part, start.batch.get("attention_mask")) for part in (x, delta, weight)]
    return Moments.of(rows[0], rows[1], rows[2][:, 0])


def _move_(linear: Any, folds: list[Moments], dim: int) -> None:
    found = fit(folds, bias=getattr(linear, "bias", None) is not None)
    change = found.move if dim == 0 else found.move.T
    linear.weight.data = linear.weight.data + change.to(linear.weight.data)
    if linear.bias is not None:
        linear.bias.data = linear.bias.data + found.shift.to(linear.bias.data)


def _attention_maps(student: PreTrainedModel) -> dict[str, str]:
    """By block the map that gives its attention's output, where heads are an axis and so tell it."""
    axes = [a for a in discover(student.config, type(student)).axes if a.kind in ("heads", "kv_groups")]
    return {slot.group: slot.name.rpartition(".")[0] for axis in axes for slot in axis.slots if slot.consumes}


class _Middles:
    """The teacher's states between attention and FFN, of the blocks that a student's stand for.

    Args:
        teacher: with blocks that add attention's output to what they are given.
        twins: teacher's block to the student's door that stands for it.
        attention: student's block to its attention's output map.
    """

    def __init__(self, teacher: PreTrainedModel, twins: Mapping[str, Stop], attention: Mapping[str, str]) -> None:
        self.teacher, self.number = teacher, 0
        self.states: dict[int, torch.Tensor] = {}
        self.given: torch.Tensor | None = None
        self.maps = {
            twin: twin + attention[stop.module].removeprefix(stop.module)
            for twin, stop in twins.items()
            if stop.module in attention
        }
        self.handles: list[Any] = []

    def __enter__(self) -> "_Middles":
        for block, name in self.maps.items():
            enter = self.teacher.get_submodule(block).register_forward_pre_hook(self._enter, with_kwargs=True)
            leave = self.teacher.get_submodule(name).register_forward_hook(self._leave)
            self.handles += [enter, leave]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def turn(self, number: int, batch: Batch) -> None:
        """Batch `number` goes on."""
        self.number = number

    def taken(self) -> dict[int, torch.Tensor]:
        """By batch, what came since it was last asked for."""
        found, self.states = self.states, {}
        return found

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.given = args[0] if args else kwargs["hidden_states"]

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        assert self.given is not None
        self.states[self.number] = self.given.float() + output.float()


def _refit_attention_(
    student: PreTrainedModel, block: str, name: str, door: Sequence[Waiting], middles: Mapping[int, torch.Tensor]
) -> None:
    """Move the attention's output map towards the teacher's state behind it, where the block adds what it gives."""
    folds: list[Moments] = []
    for number, start in enumerate(door):
        state = _watched(student, block, name, start)
        given = start.args[0] if start.args else start.kwargs["hidden_states"]
        now = given.float() + state["y"]
        if number == 0 and not _is_read(student, block, start, now):
            return
        add_to_fold(folds, number, _towards(middles[number], middles[number] - now, state["x"], start))
    dim = 0 if isinstance(student.get_submodule(name), Conv1D) else 1
    _move_(student.get_submodule(name), folds, dim)


def _is_read(model: PreTrainedModel, block: str, start: Waiting, state: torch.Tensor) -> bool:
    """Whether a norm of the block is given `state`: then nothing scales what attention gives before it is added."""
    found: list[bool] = []
    norms = [m for m in model.get_submodule(block).modules() if "Norm" in type(m).__name__]
    handles = [
        norm.register_forward_pre_hook(
            lambda module, args: found.append(
                args[0].shape == state.shape and torch.allclose(args[0].float(), state, rtol=1e-3, atol=1e-5)
            )
        )
        for norm in norms
    ]
    try:
        model.get_submodule(block)(*start.args, **start.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return any(found)


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
    norms = [m for m in watched.modules() if "Norm" in type(m).__name__ and hasattr(m, "weight")]
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
