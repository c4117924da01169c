"""Repair block by block, in order: later blocks see the repaired earlier ones, and what whole removed layers did is
taken over by the block before them. Closed form, forward passes only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, Slot, discover, is_norm
from hf_pe.calibration import BATCH, Stop, Waiting, comes_by, hidden_of, lockstep, mean_square, same
from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.regression import CHANGE, Folds, fit
from hf_pe.tasks import TaskData, counted_rows

CLOSE = 2e-2
"""Largest difference, over the root mean square, between a state and the output of the norm that it is."""

DEAF = 1e-3
"""Of the largest factor: what is added for a coordinate with a smaller one does not change."""


class _Last(NamedTuple):
    """The map that ends a block's FFN: its name there, and what is added for each coordinate it gives, [width]."""

    name: str
    factor: torch.Tensor


def maps_in_order(axis: Axis) -> list[Slot]:
    """What `repair_in_order_` moves: the maps that read units of `axis`, those inside experts and those outside of
    blocks (a merger of patches) left out."""
    slots = (slot for slot in axis.slots if slot.consumes and slot.entry is None)
    return [slot for slot in slots if any(map(str.isdigit, slot.name.split(".")))]


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

    Where a norm reads what a map gives before that is added (Gemma, OLMo 2), the target of what is added is taken back
    through it in the same way; where what a map gives is multiplied first (layer scales, Granite), so is its change.

    The output maps of `heads` move first, towards the state that the teacher's own layer hands to its FFN. Those whose
    output does not reach that state so stay: a decoder's attention to itself, say, where that to its encoder follows.

    Args:
        student: changed in place.
        teacher: the model before anything was cut.
        axis: of the student, its FFN width.
        layers: per stack the teacher's layers that are left; a stack that is not named has all.
        data: calibration rows.
        heads: of the student, where some were cut.

    Nothing changes where `data` never reach the blocks (those of another tower), or come by more than once: the one
    block of ALBERT has no one target.

    Raises:
        UsageError: what the FFN gives is not added to the state.
    """
    batches = list(data.batches(data.calibration, BATCH))
    stacks = [stack for depth in discover(teacher.config, type(teacher)).named("layers") for stack in depth.groups]
    maps = maps_in_order(axis)
    outputs: dict[tuple[str, int], list[Slot]] = {}
    for slot in (slot for cut in heads for slot in maps_in_order(cut)):
        outputs.setdefault(_place(slot.name, stacks), []).append(slot)
    attention = [outputs.pop(_place(slot.name, stacks), []) for slot in maps]
    own, counterparts, wanted = [], [], []
    for slot, before in zip(maps, attention, strict=True):
        stack, number = _place(slot.name, stacks)
        count = len(teacher.get_submodule(stack))  # type: ignore[arg-type]
        kept = list(layers.get(stack, range(count)))
        deepest = (kept[number + 1] if number + 1 < len(kept) else count) - 1
        own.append(f"{stack}.{number}")
        counterparts.append(f"{stack}.{kept[number]}")
        wanted += [Stop(counterparts[-1], after=False)] if before else []
        wanted.append(Stop(f"{stack}.{deepest}", after=True))
    if not own or comes_by(student, {"": student.get_submodule(own[0])}, batches[0])[""] != 1:
        return
    stops = [Stop(block, after=False) for block in own]
    with lockstep(teacher, batches, wanted) as targets, lockstep(student, batches, stops) as doors:
        for done, (slot, before, block, theirs, door) in enumerate(
            zip(maps, attention, own, counterparts, doors, strict=True), 1
        ):
            ffn = _module(slot, block)
            starts, ends = next(targets) if before else [], next(targets)
            factor = _factor(student, block, ffn, None, door[0])
            if factor is not None:
                last = _Last(ffn, factor)
                for output in before:
                    name = _module(output, block)
                    share = _factor(student, block, name, last, door[0])
                    if share is not None:
                        aims = (_watched(teacher, theirs, name, last, start).state for start in starts)
                        _move_(student, block, output, share, last, door, aims)
                aims = (hidden_of(end.output).float() for end in ends)
                _move_(student, block, slot, factor, None, door, aims)
            elif done == 1:
                raise UsageError(
                    f"prune.repair: in_order needs blocks that add what {block}.{ffn} gives to their state, scaled or "
                    "normed at most; this one does something else. Choose repair: least_squares."
                )
            advance("repair, block by block", done, len(maps))


def _move_(
    student: PreTrainedModel,
    block: str,
    slot: Slot,
    factor: torch.Tensor,
    last: _Last | None,
    door: Sequence[Waiting],
    aims: Iterable[torch.Tensor],
) -> None:
    """Refit one map of a block, before which all batches wait, towards the states `aims`; of what it gives, `factor`
    arrives."""
    name = _module(slot, block)
    linear: Any = student.get_submodule(f"{block}.{name}")
    folds = Folds()
    for number, (aim, start) in enumerate(zip(aims, door, strict=True)):
        seen = _watched(student, block, name, last, start)
        parts = seen.map.reads, *_wanted(seen, aim, factor)
        reads, change, weight = (counted_rows(part, start.batch.get("attention_mask")) for part in parts)
        folds.add(number, reads, change, weight[:, 0])
    found = fit(folds.moments(), bias=getattr(linear, "bias", None) is not None, by_size=CHANGE)
    heard = factor * (1 if seen.map.between is None else seen.map.between.gain)
    heard = torch.where(heard.abs() > DEAF * heard.abs().max(), heard, torch.inf)
    change = found.move / heard
    linear.weight.data = linear.weight.data + (change if slot.dim == 0 else change.T).to(linear.weight.data)
    if linear.bias is not None:
        linear.bias.data = linear.bias.data + (found.shift / heard).to(linear.bias.data)


class _Norm(NamedTuple):
    """A norm at work on one batch: it gave (what it read - mean) / size * gain + bias.

    Attributes:
        gain, bias: [width].
        mean, size: of each token, [..., 1].
    """

    gain: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    size: torch.Tensor

    @classmethod
    def of(cls, module: nn.Module, reads: torch.Tensor, gives: torch.Tensor) -> "_Norm | None":
        """From what it read and gave; None where that is not so (a norm over places, say)."""
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is None or weight.shape != reads.shape[-1:] or gives.shape != reads.shape:
            return None
        reads, gives = reads.float(), gives.float()
        shift = torch.zeros_like(weight.float()) if bias is None else bias.float()
        mean, gain = torch.zeros_like(reads[..., :1]), weight.float()
        if isinstance(module, nn.LayerNorm):
            mean = reads.mean(-1, keepdim=True)
        else:
            gain = module.forward(torch.ones_like(weight)[None])[0].float() - shift  # weight, or 1 + weight
        plain, given = (reads - mean) * gain, gives - shift
        size = plain.square().sum(-1, keepdim=True) / (plain * given).sum(-1, keepdim=True).clamp_min(1e-12)
        size = size.clamp_min(1e-12)
        if not (given - plain / size).abs().mean() <= CLOSE * given.abs().mean():
            return None
        return cls(gain, shift, mean, size)

    def before(self, target: torch.Tensor) -> torch.Tensor:
        """What it should read to give `target`, mean and size as they are."""
        return torch.where(self.gain == 0, 0, (target - self.bias) / self.gain) * self.size + self.mean


@dataclass
class _Map:
    """A map at work.

    Attributes:
        reads: its input, [batch, tokens, inputs].
        gives: its output, [batch, tokens, width].
        passed: what the norm that reads this output gives, or `gives`: this, times a factor, is what is added.
        passes: module that gives `passed`.
        between: that norm, if any.
    """

    reads: torch.Tensor
    gives: torch.Tensor
    passed: torch.Tensor
    passes: nn.Module
    between: _Norm | None = None


class _Seen(NamedTuple):
    """One map of a block at work, and what comes of it.

    Attributes:
        map: with tensors in float32, of the shape of `state` where what it gives is as large.
        state: what should come near to the target: at the block's end, or where its FFN begins, [batch, tokens, width].
        norm: that `state` comes out of, if any.
        added: what is added to: the input of that norm, or `state`.
    """

    map: _Map
    state: torch.Tensor
    norm: _Norm | None
    added: torch.Tensor


def _wanted(seen: _Seen, target: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How a map's output should change for the state to become `target`, [..., width], each coordinate as large as it
    is heard; and what each token counts, [..., 1]."""
    change, weight, between = target - seen.added, 1 / mean_square(target), seen.map.between
    if seen.norm is not None:
        change, weight = seen.norm.before(target) - seen.added, 1 / mean_square(seen.added)
    if between is None:
        return change, weight
    passed = seen.map.passed + torch.where(factor == 0, 0, change / factor)
    change = (between.before(passed) - seen.map.gives) * between.gain * factor
    return change, weight / between.size.square()


def _watched(model: PreTrainedModel, block: str, name: str, last: _Last | None, start: Waiting) -> _Seen:
    """Run one block and look at its map `name`, and at the state at its end; with `last`, at the state before what
    this map adds."""
    maps: dict[str, _Map] = {}
    norms: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def watch_map(key: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            maps[key] = _Map(args[0], output, output, module)

        return keep

    def watch_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(output, torch.Tensor):
            norms.append((module, args[0], output))
            for one in maps.values():
                if one.between is None and same(args[0], one.gives) and (found := _Norm.of(module, args[0], output)):
                    one.between, one.passed, one.passes = found, output, module

    def ending(state: torch.Tensor) -> tuple[_Norm | None, torch.Tensor]:
        """The norm that a state comes out of, and its input; none and the state."""
        close = CLOSE * state.square().mean().sqrt()
        for module, before, after in reversed(norms):
            is_it = after.shape == state.shape and (after.float() - state).abs().max() <= close
            if is_it and (found := _Norm.of(module, before, after)):
                return found, before.float()
        return None, state

    watched = model.get_submodule(block)
    wanted = {key: watched.get_submodule(key) for key in (name, *(last[:1] if last else ()))}
    handles = [module.register_forward_hook(watch_map(key)) for key, module in wanted.items()]
    handles += [module.register_forward_hook(watch_norm) for module in watched.modules() if is_norm(module)]
    try:
        with torch.no_grad():
            state = hidden_of(watched(*start.args, **start.kwargs)).float()
    finally:
        for handle in handles:
            handle.remove()
    norm, added = ending(state)
    if last is not None:
        state = added - last.factor * maps[last.name].passed.float().reshape(added.shape)
        norm, added = ending(state)
    one = maps[name]
    one.reads, one.gives, one.passed = one.reads.float(), one.gives.float(), one.passed.float()
    if one.gives.numel() == added.numel():  # some flatten batch and tokens
        one.reads = one.reads.reshape(*added.shape[:-1], -1)
        one.gives, one.passed = one.gives.reshape(added.shape), one.passed.reshape(added.shape)
    return _Seen(one, state, norm, added)


def _factor(student: PreTrainedModel, block: str, name: str, last: _Last | None, start: Waiting) -> torch.Tensor | None:
    """What is added for each coordinate that a map (and the norm that reads it) gives, [width]; None where that is not
    the same for every token, or something else happens to it."""
    seen = _watched(student, block, name, last, start)
    passed = seen.map.passed
    if passed.shape != seen.added.shape:
        return None
    step = torch.randn(passed.shape, generator=torch.Generator().manual_seed(0)).to(passed.device)
    step = step * passed.abs().mean()
    handle = seen.map.passes.register_forward_hook(
        lambda module, args, output: output + step.reshape(output.shape).to(output)
    )
    try:
        moved = _watched(student, block, name, last, start).added - seen.added
    finally:
        handle.remove()
    tokens = tuple(range(step.ndim - 1))
    factor = (moved * step).sum(tokens) / step.square().sum(tokens)
    return factor if bool((moved - factor * step).abs().max() < 0.05 * (factor * step).abs().max()) else None


def _module(slot: Slot, block: str) -> str:
    """The map's name inside its block."""
    return slot.name.rpartition(".")[0].removeprefix(f"{block}.")


def _place(name: str, stacks: Sequence[str]) -> tuple[str, int]:
    """Stack and number of the block that a parameter lies in: in the innermost of `stacks`, else in the outermost."""
    parts = name.split(".")
    inside = [stack.count(".") + 1 for stack in stacks if name.startswith(f"{stack}.")]
    at = max(inside, default=next(i for i, part in enumerate(parts) if part.isdigit()))
    return ".".join(parts[:at]), int(parts[at])
