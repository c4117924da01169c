"""Repair block by block, in order: later blocks see the repaired earlier ones, and what whole removed layers did is
taken over by the block before them. Closed form, forward passes only."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, Slot, is_norm
from hf_pe.calibration import BATCH, Stop, Waiting, hidden_of, lockstep, mean_square
from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.regression import CHANGE, Folds, fit
from hf_pe.tasks import TaskData, counted_rows

CLOSE = 2e-2
"""Largest difference, over the root mean square, between a state and the output of the norm that it is."""


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
    heads: Sequence[Axis] = (),
) -> None:
    """Refit the maps that read the units of `axis`, so that each block gives what the teacher has at the same depth.

    Block i stands for the teacher's layers from its own up to the next kept one; its target is the hidden state after
    them. With x the map's input and d the change of its output that would reach the target, the map moves by the ridge
    regression of d on x, each token counted 1 / the mean square of its target: norms follow, so the relative error
    counts. (`turning` counts a token less whose state only grows or shrinks; but here d makes good what earlier blocks
    left, growth too.) Where a block ends in a norm, the target is taken back through it with the mean and scale that
    the student's own state has.

    The output maps of `heads` move first, towards the state that the teacher's own layer hands to its FFN. Those whose
    output does not reach that state by an addition (and a norm) stay: a decoder's attention to itself, say, where that
    to its encoder follows.

    Args:
        student: changed in place.
        teacher: the model before anything was cut.
        axis: of the student, its FFN width.
        layers: per stack the teacher's layers that are left; a stack that is not named has all.
        data: calibration rows.
        heads: of the student, where some were cut.

    Raises:
        UsageError: the output of a map does not reach the block's end by an addition (and a norm): Gemma's, say.
    """
    maps = maps_in_order(axis)
    outputs: dict[tuple[str, int], list[Slot]] = {}
    for slot in (slot for cut in heads for slot in maps_in_order(cut)):
        outputs.setdefault(_place(slot.name), []).append(slot)
    attention = [outputs.pop(_place(slot.name), []) for slot in maps]
    own, counterparts, wanted = [], [], []
    for slot, before in zip(maps, attention, strict=True):
        stack, number = _place(slot.name)
        count = len(teacher.get_submodule(stack))  # type: ignore[arg-type]
        kept = list(layers.get(stack, range(count)))
        last = (kept[number + 1] if number + 1 < len(kept) else count) - 1
        own.append(f"{stack}.{number}")
        counterparts.append(f"{stack}.{kept[number]}")
        wanted += [Stop(counterparts[-1], after=False)] if before else []
        wanted.append(Stop(f"{stack}.{last}", after=True))
    batches = list(data.batches(data.calibration, BATCH))
    stops = [Stop(block, after=False) for block in own]
    with lockstep(teacher, batches, wanted) as targets, lockstep(student, batches, stops) as doors:
        for done, (slot, before, block, theirs, door) in enumerate(
            zip(maps, attention, own, counterparts, doors, strict=True), 1
        ):
            ffn = _module(slot, block)
            if done == 1 and not _adds(student, block, ffn, None, door[0]):
                raise UsageError(
                    f"prune.repair: in_order needs blocks that add what {block}.{ffn} gives; this one scales or norms "
                    "it first. Choose repair: least_squares."
                )
            starts = next(targets) if before else []
            for output in before:
                name = _module(output, block)
                if _adds(student, block, name, ffn, door[0]):
                    aims = [_watched(teacher, theirs, name, ffn, start).state for start in starts]
                    _move_(student, block, output, ffn, door, aims)
            _move_(student, block, slot, None, door, [hidden_of(aim.output).float() for aim in next(targets)])
            advance("repair, block by block", done, len(maps))


def _move_(
    student: PreTrainedModel,
    block: str,
    slot: Slot,
    ffn: str | None,
    door: Sequence[Waiting],
    aims: Sequence[torch.Tensor],
) -> None:
    """Refit one map of a block, before which all batches wait, towards the states `aims`."""
    name = _module(slot, block)
    linear: Any = student.get_submodule(f"{block}.{name}")
    folds = Folds()
    for number, (aim, start) in enumerate(zip(aims, door, strict=True)):
        mask = start.batch.get("attention_mask")
        seen = _watched(student, block, name, ffn, start)
        weight = 1 / mean_square(aim if seen.norm is None else seen.added)
        rows = [counted_rows(part, mask) for part in (seen.reads, _delta(aim, seen), weight)]
        folds.add(number, rows[0], rows[1], rows[2][:, 0])
    found = fit(folds.moments(), bias=getattr(linear, "bias", None) is not None, by_size=CHANGE)
    change = found.move if slot.dim == 0 else found.move.T
    linear.weight.data = linear.weight.data + change.to(linear.weight.data)
    if linear.bias is not None:
        linear.bias.data = linear.bias.data + found.shift.to(linear.bias.data)


class _Seen(NamedTuple):
    """One map of a block at work.

    Attributes:
        reads: the map's input, [batch, tokens, inputs].
        gives: its output, [batch, tokens, width].
        state: what should come near to the target: at the block's end, or where its FFN begins, of the same shape.
        norm: that `state` comes out of, if any.
        added: what the output is added into: the input of that norm, or `state`.
    """

    reads: torch.Tensor
    gives: torch.Tensor
    state: torch.Tensor
    norm: Any
    added: torch.Tensor


def _delta(target: torch.Tensor, seen: _Seen) -> torch.Tensor:
    """How the map's output should change for the state to become `target`, [..., width]."""
    norm, before = seen.norm, seen.added
    if norm is None:
        return target - before
    bias = getattr(norm, "bias", None)
    mean = before.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else torch.zeros_like(before[..., :1])
    scale = (before - mean).square().mean(-1, keepdim=True).sqrt()
    plain: torch.Tensor = (target - (0 if bias is None else bias)) / norm.weight
    return plain * scale + mean - before


def _watched(model: PreTrainedModel, block: str, name: str, ffn: str | None, start: Waiting) -> _Seen:
    """Run one block and look at its map `name`, and at the state at its end; with `ffn` (the name of the map that ends
    the FFN) at the state before what this map adds."""
    maps: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    norms: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def watch_map(key: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            maps[key] = (args[0].float(), output.float())

        return keep

    def watch_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor):
            norms.append((module, args[0].float(), output.float()))

    def ending(state: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The norm that a state comes out of, and its input; none and the state."""
        close = CLOSE * state.square().mean().sqrt()
        for norm, before, after in reversed(norms):
            if after.shape == state.shape and (after - state).abs().max() <= close:
                return norm, before
        return None, state

    watched = model.get_submodule(block)
    wanted = {key: watched.get_submodule(key) for key in (name, ffn) if key is not None}
    handles = [module.register_forward_hook(watch_map(key)) for key, module in wanted.items()]
    handles += [m.register_forward_hook(watch_norm) for m in watched.modules() if is_norm(m) and hasattr(m, "weight")]
    try:
        with torch.no_grad():
            state = hidden_of(watched(*start.args, **start.kwargs)).float()
    finally:
        for handle in handles:
            handle.remove()
    norm, added = ending(state)
    if ffn is not None:
        state = added - maps[ffn][1].reshape(added.shape)
        norm, added = ending(state)
    reads, gives = maps[name]
    if gives.numel() == added.numel():  # some flatten batch and tokens
        reads, gives = reads.reshape(*added.shape[:-1], -1), gives.reshape(added.shape)
    return _Seen(reads, gives, state, norm, added)


def _adds(student: PreTrainedModel, block: str, name: str, ffn: str | None, start: Waiting) -> bool:
    """Whether a little noise in a map's output arrives unchanged where that is added."""
    seen = _watched(student, block, name, ffn, start)
    if seen.gives.shape != seen.added.shape:
        return False
    noise = torch.randn(seen.gives.shape, generator=torch.Generator().manual_seed(0)).to(seen.gives.device)
    step = seen.gives.abs().mean() * 1e-2 * noise
    handle = student.get_submodule(f"{block}.{name}").register_forward_hook(
        lambda module, args, output: output + step.reshape(output.shape).to(output)
    )
    try:
        moved = _watched(student, block, name, ffn, start)
    finally:
        handle.remove()
    return bool((moved.added - seen.added - step).abs().max() < 0.05 * step.abs().max())


def _module(slot: Slot, block: str) -> str:
    """The map's name inside its block."""
    return slot.name.rpartition(".")[0].removeprefix(f"{block}.")


def _place(name: str) -> tuple[str, int]:
    """Stack and number of the block that a parameter lies in."""
    parts = name.split(".")
    at = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[:at]), int(parts[at])
