"""Refit a pruned model block by block in closed form: each block sees the refitted ones before it.

For one block of the student and one linear map in it, at one token:

    x   input of the map                                        (inputs,)
    y   its output, W x + b                                     (width,)
    N   the norm that reads y, where there is one (Gemma, OLMo 2); it gives (y - mean) / size * n + bias
    u   the update: N(y), or y
    g   factor of each coordinate of u (layer scales, Granite); often 1
    r   residual state that the block adds to
    s   the sum r + g u
    M   the norm that the block ends in, where there is one (BERT)
    h   hidden state that the block hands on: M(s), or s
    t   target: the teacher's hidden state at the same depth. A block that stands for several layers of the teacher, as
        some between it and the next one are gone, has the target behind the last of these
    d   the change of s that would reach the target: t - s; with M it is M^-1(t) - s, by the mean and the size that
        s has now
    q   token weight: 1 / mean(t^2), with M 1 / mean(s^2). Later norms divide by the size of the state, so that an error
        counts relative to it. (`direction_weight` counts a token less whose state only grows or shrinks; but d also
        makes good what earlier blocks left, growth too.)

The map moves by the ridge regression of d on x,

    D, c = argmin  sum over tokens of  q |D x + c - d|^2  +  ridge |D|^2
    W, b <-  W + D / g,  b + c / g

With N the regression is of n g dy in place of d, where dy = N^-1(u + d / g) - y is the change of y, each token counts
q / size^2, and W and b move by D / (n g) and c / (n g). Coordinates with a gain n g near zero stay as they are.

Worked example: a block without norms, one token, width 1. r = 1, x = 2, W = 0.5, so u = y = 1 and s = 2. The teacher
has t = 3: d = 1, and without a ridge D = d / x = 0.5. The new W = 1 gives u = 2 and s = 3 = t.

All batches pass one block before any enters the next (`hf_pe.calibration.lockstep`): the next block's r and x are those
of the refitted blocks before it, which is why later blocks make good what earlier ones leave. `docs/pruning.md` has a
figure. Only forward passes are made.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, Slot, discover
from hf_pe.calibration import BATCH, Stop, Waiting, comes_by, hidden_of, lockstep, mean_square
from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.prune.refit.observed_block import LastMap, ObservedBlock, observe, update_factor
from hf_pe.regression import CHANGE, Folds, fit
from hf_pe.tasks import TaskData, counted_rows

MIN_GAIN = 1e-3
"""Output coordinates whose gain is below this fraction of the largest are left unchanged."""


def maps_in_order(axis: Axis) -> list[Slot]:
    """Return what `repair_in_order_` moves: the maps that read units of `axis`, those inside experts and those outside
    of blocks (a merger of patches) left out."""
    slots = (slot for slot in axis.slots if slot.consumes and slot.entry is None)
    return [slot for slot in slots if any(map(str.isdigit, slot.name.split(".")))]


class _BlockPlan(NamedTuple):
    """What is refitted in one block.

    Attributes:
        ffn: the map that reads the FFN's units.
        attention: output maps of attention whose heads were cut, which move first.
        block: name of the student's block.
        teacher_block: name of the teacher's block that it was.
        stops: where the teacher's states are targets: what that block is handed, if attention moves, then what the last
            block hands on that the student's stands for.
    """

    ffn: Slot
    attention: list[Slot]
    block: str
    teacher_block: str
    stops: list[Stop]


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

    The module's docstring has the formulas. The output maps of `heads` move first, towards the state that the teacher's
    own layer hands to its FFN. Those whose output does not reach that state so stay: a decoder's attention to itself,
    say, where that to its encoder follows.

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
    plans = _block_plans(teacher, axis, layers, heads)
    if not plans or comes_by(student, {"": student.get_submodule(plans[0].block)}, batches[0])[""] != 1:
        return
    target_stops = [stop for plan in plans for stop in plan.stops]
    own_stops = [Stop(plan.block, after=False) for plan in plans]
    with lockstep(teacher, batches, target_stops) as targets, lockstep(student, batches, own_stops) as doors:
        for done, (plan, waiting) in enumerate(zip(plans, doors, strict=True), 1):
            starts, ends = next(targets) if plan.attention else [], next(targets)
            ffn = _module(plan.ffn, plan.block)
            factor = update_factor(student, plan.block, ffn, None, waiting[0])
            if factor is not None:
                last = LastMap(ffn, factor)
                _refit_attention_(student, teacher, plan, last, waiting, starts)
                states = (hidden_of(end.output).float() for end in ends)
                _refit_(student, plan.block, plan.ffn, factor, None, waiting, states)
            elif done == 1:
                raise UsageError(
                    f"prune.repair: in_order needs blocks that add what {plan.block}.{ffn} gives to their state, "
                    "scaled or normed at most; this one does something else. Choose repair: least_squares."
                )
            advance("repair, block by block", done, len(plans))


def _block_plans(
    teacher: PreTrainedModel, axis: Axis, layers: Mapping[str, Sequence[int]], heads: Sequence[Axis]
) -> list[_BlockPlan]:
    """Return what is refitted, block by block; the arguments are those of `repair_in_order_`."""
    stacks = [stack for depth in discover(teacher.config, type(teacher)).named("layers") for stack in depth.groups]
    outputs: dict[tuple[str, int], list[Slot]] = {}
    for slot in (slot for cut in heads for slot in maps_in_order(cut)):
        outputs.setdefault(_place(slot.name, stacks), []).append(slot)
    plans = []
    for slot in maps_in_order(axis):
        stack, number = _place(slot.name, stacks)
        count = len(teacher.get_submodule(stack))  # type: ignore[arg-type]
        kept = list(layers.get(stack, range(count)))
        deepest = (kept[number + 1] if number + 1 < len(kept) else count) - 1
        attention, teacher_block = outputs.pop((stack, number), []), f"{stack}.{kept[number]}"
        starts = [Stop(teacher_block, after=False)] if attention else []
        stops = [*starts, Stop(f"{stack}.{deepest}", after=True)]
        plans.append(_BlockPlan(slot, attention, f"{stack}.{number}", teacher_block, stops))
    return plans


def _refit_attention_(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    plan: _BlockPlan,
    last: LastMap,
    waiting: Sequence[Waiting],
    starts: Sequence[Waiting],
) -> None:
    """Refit the output maps of a block's attention towards the state that the teacher's FFN is handed.

    Args:
        student: changed in place.
        teacher: the model before anything was cut.
        plan: of the block.
        last: the map that ends the block's FFN.
        waiting: all batches before the student's block.
        starts: all batches before the teacher's block.
    """
    for slot in plan.attention:
        name = _module(slot, plan.block)
        factor = update_factor(student, plan.block, name, last, waiting[0])
        if factor is not None:
            states = (observe(teacher, plan.teacher_block, name, last, start).state for start in starts)
            _refit_(student, plan.block, slot, factor, last, waiting, states)


def _refit_(
    student: PreTrainedModel,
    block: str,
    slot: Slot,
    factor: torch.Tensor,
    last: LastMap | None,
    waiting: Sequence[Waiting],
    targets: Iterable[torch.Tensor],
) -> None:
    """Refit one map of a block towards target states.

    Args:
        student: changed in place.
        block: its name.
        slot: of the map.
        factor: g. *Shape:* (width,)
        last: see `observe`.
        waiting: all batches before the block.
        targets: t of each batch. *Shape:* (batch, tokens, width)
    """
    name = _module(slot, block)
    linear: Any = student.get_submodule(f"{block}.{name}")
    folds = Folds()
    for number, (target, start) in enumerate(zip(targets, waiting, strict=True)):
        observed = observe(student, block, name, last, start)
        parts = observed.map.inputs, *_change_and_weight(observed, target, factor)
        inputs, change, weight = (counted_rows(part, start.batch.get("attention_mask")) for part in parts)
        folds.add(number, inputs, change, weight[:, 0])
    regression = fit(folds.moments(), bias=getattr(linear, "bias", None) is not None, by_size=CHANGE)
    gain = factor * (1 if observed.map.norm is None else observed.map.norm.gain)
    gain = torch.where(gain.abs() > MIN_GAIN * gain.abs().max(), gain, torch.inf)
    move = regression.move / gain
    linear.weight.data = linear.weight.data + (move if slot.dim == 0 else move.T).to(linear.weight.data)
    if linear.bias is not None:
        linear.bias.data = linear.bias.data + (regression.shift / gain).to(linear.bias.data)


def _change_and_weight(
    observed: ObservedBlock, target: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the regression is of, and the token weights.

    Args:
        observed: the block at work on a batch.
        target: t. *Shape:* (batch, tokens, width)
        factor: g. *Shape:* (width,)

    Returns:
        d, *Shape:* (batch, tokens, width), and q, *Shape:* (batch, tokens, 1); where a norm N reads the map's output,
        n g dy and q / size^2.
    """
    change, weight, norm = target - observed.sum, 1 / mean_square(target), observed.map.norm
    if observed.norm is not None:
        change, weight = observed.norm.inverse(target) - observed.sum, 1 / mean_square(observed.sum)
    if norm is None:
        return change, weight
    update = observed.map.update + torch.where(factor == 0, 0, change / factor)
    change = (norm.inverse(update) - observed.map.outputs) * norm.gain * factor
    return change, weight / norm.size.square()


def _module(slot: Slot, block: str) -> str:
    """Return a map's name inside its block."""
    return slot.name.rpartition(".")[0].removeprefix(f"{block}.")


def _place(name: str, stacks: Sequence[str]) -> tuple[str, int]:
    """Return stack and number of the block that a parameter lies in: of the innermost of `stacks`, or the outermost."""
    parts = name.split(".")
    inside = [stack.count(".") + 1 for stack in stacks if name.startswith(f"{stack}.")]
    at = max(inside, default=next(i for i, part in enumerate(parts) if part.isdigit()))
    return ".".join(parts[:at]), int(parts[at])
